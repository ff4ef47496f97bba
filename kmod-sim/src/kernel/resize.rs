//! RESIZE: each pixel from four of the input.

#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod scalar;

use super::Stop;
use super::operand::{Map, Slots, signed};
use super::split::Split;
use crate::kernel::room::Room;
use npu_uapi::command::{self, Tap};
use zerocopy::FromBytes;

/// A resizing with resolved operands.
pub(crate) struct Problem {
    pub(crate) ifm: Map,
    pub(crate) ofm: Map,
    /// Of the output, `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) rows: Room<Corner>,
    pub(crate) columns: Room<Corner>,
    pub(crate) input: (f32, u8),
    pub(crate) output: (f32, u8),
}

/// A [`Tap`] whose places lie in the input.
#[derive(Clone, Copy)]
pub(crate) struct Corner {
    pub(crate) at: [i64; 2],
    pub(crate) weights: [f32; 2],
}

impl Corner {
    fn new(tap: Tap, len: u32) -> Self {
        let inside = |at: u32| i64::from(at.min(len.saturating_sub(1)));
        Self {
            at: [inside(tap.first), inside(tap.second)],
            weights: [tap.first_weight, tap.second_weight],
        }
    }
}

/// Runs a RESIZE.
pub(crate) fn run(
    c: &command::Resize,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let taps = slots.region(c.taps);
    // Read once: what others write to them meanwhile cannot lead out of the input.
    let tap = |index: u32| {
        let bytes: [u8; 16] = taps.memory.load_bytes(taps.start + 16 * i64::from(index));
        Tap::read_from_bytes(&bytes).unwrap_or_default()
    };
    let problem = Problem {
        ifm: slots.map(c.ifm, &c.ifm_dims, &c.ifm_strides),
        ofm: slots.map(c.ofm, &c.ofm_dims(), &c.ofm_strides),
        dims: signed(&c.ofm_dims()),
        rows: (0..c.ofm_h).map(|y| Corner::new(tap(y), c.ifm_dims.h)).collect(),
        columns: (0..c.ofm_w).map(|x| Corner::new(tap(c.ofm_h + x), c.ifm_dims.w)).collect(),
        input: (c.input_scale, c.input_zero_point),
        output: (c.output_scale, c.zero_point),
    };
    #[cfg(target_arch = "x86_64")]
    if vector {
        // SAFETY: `vector` says that the instructions exist.
        return unsafe { avx512vnni::run(&problem, split) };
    }
    let _ = vector;
    scalar::run(&problem, split)
}
