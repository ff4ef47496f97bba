//! Constants, and what is known of tensors that flow.

use bytes::Bytes;
use std::fmt;

/// Element types that the importers know; numbers are ONNX's `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ElementType {
    /// `float`
    F32,
    /// `uint8`
    U8,
    /// `int8`
    I8,
    /// `int32`
    I32,
    /// `int64`
    I64,
    /// Any other, by its ONNX number: imported, never taken.
    Other(u32),
}

/// One dimension of a shape.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Dim {
    /// A length.
    Known(usize),
    /// Known only when the model runs; the name is empty when the model gives none.
    Symbol(String),
}

/// A constant: shape and bytes, row-major, little-endian.
#[derive(Clone, Eq, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub element: ElementType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// `shape.product()` elements; a view of the model's file where that is mapped.
    pub bytes: Bytes,
}

/// What is known of a tensor that flows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TensorType {
    /// Element type.
    pub element: ElementType,
    /// Shape; `None` when the rank is unknown.
    pub shape: Option<Vec<Dim>>,
}

impl ElementType {
    /// From ONNX's number.
    pub fn from_onnx(code: u32) -> Self {
        match code {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            6 => Self::I32,
            7 => Self::I64,
            other => Self::Other(other),
        }
    }

    /// ONNX's number.
    pub fn onnx(self) -> u32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Other(code) => code,
        }
    }

    /// Bytes of an element; `None` for a type that is not read.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Self::F32 | Self::I32 => Some(4),
            Self::U8 | Self::I8 => Some(1),
            Self::I64 => Some(8),
            Self::Other(_) => None,
        }
    }
}

/// `[batch, 3, 224, 224]`: a shape as messages write it; `?` is an open dimension without a name.
pub fn shape_text(shape: &[Dim]) -> String {
    let dims = shape.iter().map(|dim| match dim {
        Dim::Known(length) => length.to_string(),
        Dim::Symbol(symbol) if symbol.is_empty() => "?".to_owned(),
        Dim::Symbol(symbol) => symbol.clone(),
    });
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("float32"),
            Self::U8 => f.write_str("uint8"),
            Self::I8 => f.write_str("int8"),
            Self::I32 => f.write_str("int32"),
            Self::I64 => f.write_str("int64"),
            Self::Other(code) => write!(f, "onnx type {code}"),
        }
    }
}

impl Tensor {
    /// Bytes of its shape; `None` for a type that is not read, or a shape that overflows.
    pub(crate) fn expected_bytes(&self) -> Option<usize> {
        let count = self.shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len))?;
        count.checked_mul(self.element.bytes()?)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, when it holds `float32`.
    pub fn as_f32(&self) -> Option<Vec<f32>> {
        (self.element == ElementType::F32)
            .then(|| self.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    /// The elements, when it holds `int32`.
    pub fn as_i32(&self) -> Option<Vec<i32>> {
        (self.element == ElementType::I32)
            .then(|| self.bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect())
    }

    /// The elements, when it holds `int64`.
    pub fn as_i64(&self) -> Option<Vec<i64>> {
        (self.element == ElementType::I64)
            .then(|| self.bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.element, self.shape)
    }
}
