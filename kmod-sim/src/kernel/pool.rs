//! POOL: a window's maximum or mean.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod maximum_avx512vnni;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod sums_avx512vnni;

use super::conv::Taps;
use super::operand::{Map, Slots, signed, zero_point};
use super::split::Split;
use super::{Isa, Stop};
use npu_uapi::command::{self, Flags};
use std::ops::Range;

/// A pooling with resolved operands.
pub(crate) struct Problem {
    pub(crate) ifm: Map,
    pub(crate) ofm: Map,
    /// Of the input, `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) ofm_h: i64,
    pub(crate) ofm_w: i64,
    pub(crate) window: Taps,
    pub(crate) kind: u8,
    /// Rows and columns that count in a mean, padding included where it counts.
    pub(crate) counted: [Range<i64>; 2],
    pub(crate) input_zero_point: u8,
    pub(crate) zero_point: u8,
    pub(crate) low: u8,
    pub(crate) high: u8,
    pub(crate) input_scale: f32,
    pub(crate) output_scale: f32,
    pub(crate) multiplier: f32,
    pub(crate) table: Option<[u8; 256]>,
}

impl Problem {
    fn new(c: &command::Pool, slots: Slots<'_>) -> Self {
        let ofm_dims = c.ofm_dims();
        let dims @ [_, ifm_h, ifm_w, _] = signed(&c.ifm_dims);
        let [_, ofm_h, ofm_w, _] = signed(&ofm_dims);
        let window = Taps::new(&c.window);
        let counted = if c.count_padding == 1 {
            let (bottom, right) = (i64::from(c.pad_bottom), i64::from(c.pad_right));
            [-window.pad_top..ifm_h + bottom, -window.pad_left..ifm_w + right]
        } else {
            [0..ifm_h, 0..ifm_w]
        };
        Self {
            ifm: slots.map(c.ifm, &c.ifm_dims, &c.ifm_strides),
            ofm: slots.map(c.ofm, &ofm_dims, &c.ofm_strides),
            dims,
            ofm_h,
            ofm_w,
            window,
            kind: c.kind,
            counted,
            input_zero_point: zero_point(c.input_zero_point),
            zero_point: zero_point(c.zero_point),
            low: c.clamp_low,
            high: c.clamp_high,
            input_scale: c.input_scale,
            output_scale: c.output_scale,
            multiplier: c.multiplier,
            table: c.header.flags().contains(Flags::TABLE_0).then(|| slots.table(c.tables, 0)),
        }
    }

    /// Kernel rows of output row `oy` whose input row lies in `0..end`, and how many are counted.
    pub(crate) fn rows(&self, oy: i64) -> (Range<i64>, i64) {
        let w = &self.window;
        let start = w.row(oy, 0);
        let inside = covered(start, w.dilation_h, w.kernel_h, &(0..self.dims[1]));
        let counted = covered(start, w.dilation_h, w.kernel_h, &self.counted[0]);
        (inside, counted.end - counted.start)
    }

    /// Kernel columns of output column `ox`, likewise.
    pub(crate) fn columns(&self, ox: i64) -> (Range<i64>, i64) {
        let w = &self.window;
        let start = w.column(ox, 0);
        let inside = covered(start, w.dilation_w, w.kernel_w, &(0..self.dims[2]));
        let counted = covered(start, w.dilation_w, w.kernel_w, &self.counted[1]);
        (inside, counted.end - counted.start)
    }
}

/// Which `k` of `0..count` have `start + k * step` in `range`; a contiguous range, as `step >= 0`.
fn covered(start: i64, step: i64, count: i64, range: &Range<i64>) -> Range<i64> {
    let inside = |k: &i64| range.contains(&(start + k * step));
    let first = (0..count).find(inside).unwrap_or(0);
    let covered = (first..count).take_while(inside).count();
    first..first + i64::try_from(covered).expect("a kernel has at most 65,535 rows")
}

/// Runs a POOL.
pub(crate) fn run(
    c: &command::Pool,
    slots: Slots<'_>,
    isa: Isa,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let problem = Problem::new(c, slots);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni {
        // SAFETY: `isa` says that the instructions exist.
        return unsafe { avx512vnni::run(&problem, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa.is_256() {
        // SAFETY: as above.
        return unsafe { avx2::run(&problem, split) };
    }
    let _ = isa;
    scalar::run(&problem, split)
}
