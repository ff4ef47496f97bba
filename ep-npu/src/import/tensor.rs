//! `TensorProto` to a constant: wherever the message keeps the elements.

use super::error::Fault;
use super::external::Beside;
use super::proto;
use crate::graph::{ElementType, Tensor};
use bytes::Bytes;

/// Most dimensions of a tensor.
const MOST_DIMS: usize = 64;

/// The constant that `tensor`, called `name`, holds. Element types that nothing reads keep their shape only.
pub(super) fn tensor(
    name: &str,
    tensor: &proto::Tensor,
    beside: &mut Beside,
) -> Result<Tensor, Fault> {
    let whose = || format!("initializer `{name}`");
    let element = element(tensor.data_type(), whose)?;
    let shape = shape(&tensor.dims, whose)?;
    let Some(size) = element.bytes() else {
        return Ok(Tensor { element, shape, bytes: Bytes::new() });
    };
    let count = shape.iter().try_fold(size, |count, &len| count.checked_mul(len));
    // No address space holds more, and arithmetic on it must not overflow.
    let Some(want) = count.filter(|&want| isize::try_from(want).is_ok()) else {
        return Err(Fault::field(
            whose(),
            "dims",
            format!("{shape:?}"),
            "so many elements cannot exist",
        ));
    };
    let bytes = match (tensor.data_location(), &tensor.raw_data) {
        (1, _) => beside.bytes(name, tensor, want)?,
        (0, Some(raw)) => raw.clone(),
        (0, None) => typed(element, tensor),
        (other, _) => {
            return Err(Fault::field(whose(), "data_location", other, "0 or 1 is known"));
        }
    };
    if bytes.len() != want {
        let found = format!("{} bytes long", bytes.len());
        let want = format!("{element}{shape:?} asks for {want}; export the model again");
        return Err(Fault::field(whose(), "data", found, want));
    }
    Ok(Tensor { element, shape, bytes })
}

/// The element type of an ONNX number.
pub(super) fn element(code: i32, whose: impl Fn() -> String) -> Result<ElementType, Fault> {
    match u32::try_from(code) {
        Ok(code) if code > 0 => Ok(ElementType::from_onnx(code)),
        _ => Err(Fault::field(whose(), "data_type", code, "a type of TensorProto is wanted")),
    }
}

/// Lengths from zero.
pub(super) fn shape(dims: &[i64], whose: impl Fn() -> String) -> Result<Vec<usize>, Fault> {
    let lengths: Option<Vec<usize>> = dims.iter().map(|&len| usize::try_from(len).ok()).collect();
    match lengths {
        Some(lengths) if lengths.len() <= MOST_DIMS => Ok(lengths),
        _ => {
            let (shown, rank) = (&dims[..dims.len().min(8)], dims.len());
            let found = format!("{shown:?} ({rank} dimensions)");
            let want = format!("at most {MOST_DIMS} lengths from 0 are wanted");
            Err(Fault::field(whose(), "dims", found, want))
        }
    }
}

/// Elements of the typed fields, as bytes.
fn typed(element: ElementType, tensor: &proto::Tensor) -> Bytes {
    let bytes: Vec<u8> = match element {
        ElementType::F32 => tensor.float_data.iter().flat_map(|f| f.to_le_bytes()).collect(),
        // Eight bits of each; the rest is the sign's.
        ElementType::U8 | ElementType::I8 => {
            tensor.int32_data.iter().map(|i| i.to_le_bytes()[0]).collect()
        }
        ElementType::I32 => tensor.int32_data.iter().flat_map(|i| i.to_le_bytes()).collect(),
        ElementType::I64 => tensor.int64_data.iter().flat_map(|i| i.to_le_bytes()).collect(),
        ElementType::Other(_) => Vec::new(),
    };
    bytes.into()
}
