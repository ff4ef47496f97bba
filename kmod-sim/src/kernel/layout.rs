//! LAYOUT: a tensor between layouts, with quantise or dequantise on the way.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod bytes;
#[cfg(target_arch = "x86_64")]
mod picks_avx512vnni;
mod scalar;

use super::operand::{Region, Slots, signed, zero_point};
use super::split::Split;
use super::{Isa, Stop};
use npu_uapi::command::{self, Flags, Strides4, element};

/// A change of layout with resolved operands.
pub(crate) struct Problem {
    pub(crate) src: Region,
    pub(crate) dst: Region,
    /// `[outer, n, h, w, c]`.
    pub(crate) dims: [i64; 5],
    pub(crate) src_strides: [i64; 5],
    pub(crate) dst_strides: [i64; 5],
    pub(crate) conversion: Conversion,
    pub(crate) scale: f32,
    pub(crate) zero_point: u8,
    /// Of a move of bytes.
    pub(crate) table: Option<[u8; 256]>,
}

impl Problem {
    /// Rows that follow each other without a gap on both sides as one, images and outer dimensions too.
    fn join_rows(&mut self) {
        for axis in [2, 1, 0] {
            if self.dims[axis] == 1 {
                continue;
            }
            let row = self.dims[3];
            let follows = |strides: &[i64; 5]| strides[3].checked_mul(row) == Some(strides[axis]);
            let joined = row.checked_mul(self.dims[axis]);
            let joined =
                joined.filter(|_| [&self.src_strides, &self.dst_strides].into_iter().all(follows));
            let Some(joined) = joined else { return };
            (self.dims[3], self.dims[axis]) = (joined, 1);
        }
    }
}

/// What happens to an element.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Conversion {
    Quantise,
    Dequantise,
    MoveBytes,
    MoveFloats,
}

/// Offset of element `[i, n, y, x, ch]` from the first.
#[inline]
pub(crate) fn offset(strides: &[i64; 5], at: [i64; 5]) -> i64 {
    strides.iter().zip(at).map(|(stride, index)| stride * index).sum()
}

fn strides(outer: i64, s: &Strides4) -> [i64; 5] {
    [outer, s.image, s.row, s.pixel, s.channel]
}

/// Runs a LAYOUT.
pub(crate) fn run(
    c: &command::Layout,
    slots: Slots<'_>,
    isa: Isa,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let floats = (c.src_element == element::F32, c.dst_element == element::F32);
    let [n, h, w, channels] = signed(&c.dims);
    let mut problem = Problem {
        src: slots.region(c.src),
        dst: slots.region(c.dst),
        dims: [c.repeats().into(), n, h, w, channels],
        src_strides: strides(c.src_outer, &c.src_strides),
        dst_strides: strides(c.dst_outer, &c.dst_strides),
        conversion: match floats {
            (true, false) => Conversion::Quantise,
            (false, true) => Conversion::Dequantise,
            (false, false) => Conversion::MoveBytes,
            (true, true) => Conversion::MoveFloats,
        },
        scale: c.scale,
        zero_point: zero_point(c.zero_point),
        table: c.header.flags().contains(Flags::TABLE_0).then(|| slots.table(c.tables, 0)),
    };
    problem.join_rows();
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni && problem.conversion == Conversion::MoveBytes {
        // SAFETY: `isa` says that the instructions exist.
        return unsafe { bytes::run(&problem, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni && avx512vnni::takes(&problem) {
        // SAFETY: it takes the problem, and `isa` says that the instructions exist.
        return unsafe { avx512vnni::run(&problem, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa.is_256() && avx2::takes(&problem) {
        // SAFETY: as above.
        return unsafe { avx2::run(&problem, split) };
    }
    let _ = isa;
    scalar::run(&problem, split)
}
