//! LAYOUT: a tensor between layouts, with quantise or dequantise on the way.

#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod scalar;

use super::Stop;
use super::operand::{Region, Slots, signed, zero_point};
use super::split::Split;
use npu_uapi::command::{self, Strides4, element};

/// A change of layout with resolved operands.
pub(crate) struct Problem {
    pub(crate) src: Region,
    pub(crate) dst: Region,
    /// `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) src_strides: Strides4,
    pub(crate) dst_strides: Strides4,
    pub(crate) conversion: Conversion,
    pub(crate) scale: f32,
    pub(crate) zero_point: u8,
}

/// What happens to an element.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Conversion {
    Quantise,
    Dequantise,
    MoveBytes,
    MoveFloats,
}

/// Offset of element `[n, y, x, ch]` from the first.
#[inline]
pub(crate) fn offset(strides: &Strides4, [n, y, x, ch]: [i64; 4]) -> i64 {
    n * strides.image + y * strides.row + x * strides.pixel + ch * strides.channel
}

/// Runs a LAYOUT.
pub(crate) fn run(
    c: &command::Layout,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let floats = (c.src_element == element::F32, c.dst_element == element::F32);
    let problem = Problem {
        src: slots.region(c.src),
        dst: slots.region(c.dst),
        dims: signed(&c.dims),
        src_strides: c.src_strides,
        dst_strides: c.dst_strides,
        conversion: match floats {
            (true, false) => Conversion::Quantise,
            (false, true) => Conversion::Dequantise,
            (false, false) => Conversion::MoveBytes,
            (true, true) => Conversion::MoveFloats,
        },
        scale: c.scale,
        zero_point: zero_point(c.zero_point),
    };
    #[cfg(target_arch = "x86_64")]
    if vector && avx512vnni::takes(&problem) {
        // SAFETY: it takes the problem, and `vector` says that the instructions exist.
        return unsafe { avx512vnni::run(&problem, split) };
    }
    let _ = vector;
    scalar::run(&problem, split)
}
