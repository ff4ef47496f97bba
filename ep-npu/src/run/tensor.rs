//! Tensors of the caller, as a run sees them. Unsafe: they are addresses.

use crate::graph::ElementType;
use std::marker::PhantomData;

/// A tensor to read: dense, row-major, wherever the caller has it.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    element: ElementType,
    shape: &'a [usize],
    data: *const u8,
    len_bytes: usize,
    lifetime: PhantomData<&'a [u8]>,
}

impl<'a> TensorRef<'a> {
    /// The tensor at `data`. Whether its length fits its shape is checked when it is used.
    ///
    /// # Safety
    ///
    /// The bytes are valid and unwritten for `'a`.
    pub const unsafe fn from_raw(
        element: ElementType,
        shape: &'a [usize],
        data: *const u8,
        len_bytes: usize,
    ) -> Self {
        Self { element, shape, data, len_bytes, lifetime: PhantomData }
    }

    /// A tensor of codes.
    pub const fn from_u8(shape: &'a [usize], codes: &'a [u8]) -> Self {
        // SAFETY: a slice is valid and unwritten as long as it is borrowed.
        unsafe { Self::from_raw(ElementType::U8, shape, codes.as_ptr(), codes.len()) }
    }

    /// A tensor of floats.
    pub const fn from_f32(shape: &'a [usize], floats: &'a [f32]) -> Self {
        let (data, len_bytes) = (floats.as_ptr().cast(), size_of_val(floats));
        // SAFETY: a slice is valid and unwritten as long as it is borrowed.
        unsafe { Self::from_raw(ElementType::F32, shape, data, len_bytes) }
    }

    /// Element type.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Shape.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Where it lies.
    pub fn as_ptr(&self) -> *const u8 {
        self.data
    }
}

/// Who has memory for outputs, once their shape is known.
///
/// # Safety
///
/// What [`Outputs::output`] returns is valid for writing as many bytes as the element type and shape
/// ask for, until the run returns, and nothing else touches it until then.
pub unsafe trait Outputs {
    /// Memory for output `index`. Called once for each, in order.
    fn output(
        &mut self,
        index: usize,
        element: ElementType,
        shape: &[usize],
    ) -> Result<*mut u8, String>;
}

/// Outputs in memory of their own.
#[derive(Debug, Default)]
pub struct OwnedOutputs {
    tensors: Vec<Owned>,
}

#[derive(Debug)]
struct Owned {
    shape: Vec<usize>,
    // Words, so that floats are aligned.
    words: Vec<u64>,
    len_bytes: usize,
}

impl OwnedOutputs {
    /// The bytes of output `index`, if a run has written it.
    pub fn bytes(&self, index: usize) -> Option<Vec<u8>> {
        let Owned { words, len_bytes, .. } = self.tensors.get(index)?;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(*len_bytes);
        Some(bytes)
    }

    /// The shape of output `index`.
    pub fn shape(&self, index: usize) -> Option<&[usize]> {
        self.tensors.get(index).map(|owned| owned.shape.as_slice())
    }
}

// SAFETY: each output is a vector of its own with at least that many bytes; pushing another moves the
// vector's header, not its contents.
unsafe impl Outputs for OwnedOutputs {
    fn output(
        &mut self,
        index: usize,
        element: ElementType,
        shape: &[usize],
    ) -> Result<*mut u8, String> {
        if index == 0 {
            self.tensors.clear();
        }
        let bytes = element.bytes().ok_or_else(|| format!("no memory for {element}"))?;
        let count = shape.iter().try_fold(bytes, |count, &len| count.checked_mul(len));
        let len_bytes = count.ok_or_else(|| format!("no memory for shape {shape:?}"))?;
        let words = vec![0; len_bytes.div_ceil(8)];
        let mut owned = Owned { shape: shape.to_vec(), words, len_bytes };
        let data = owned.words.as_mut_ptr();
        self.tensors.push(owned);
        Ok(data.cast())
    }
}
