//! Sums in floats (`FLOAT`), one scalar at a time: the definition.

use super::Problem;
use super::scalar::weight_at;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::stage::Float;
use npu_uapi::command::FloatRecord;
use npu_uapi::float_order::{Place, Sum, weight};
use npu_uapi::requantise::dequantise;
use zerocopy::FromBytes;

/// Terms between two looks whether the job is to end.
const LOOK: i64 = 1 << 16;

/// The record of output channel `oc`.
pub(super) fn record(p: &Problem, oc: i64) -> FloatRecord {
    let bytes: [u8; 16] = p.records.memory.load_bytes(p.records.start + oc * 16);
    FloatRecord::read_from_bytes(&bytes).expect("a record has 16 bytes, any bits valid")
}

/// The sum of output element `[n, oy, ox, oc]`.
pub(super) fn sum(
    p: &Problem,
    float: Float,
    [n, oy, ox, oc]: [i64; 4],
    budget: &mut Budget<'_>,
) -> Result<f32, Aborted> {
    let record = record(p, oc);
    let first_input = oc / p.group_outputs * p.group_inputs;
    let [channel, channels] =
        [oc % p.group_outputs, p.group_outputs].map(|count| count.unsigned_abs());
    let mut sum = Sum::new(float.order, Place::of(channel, channels), record.bias);
    let mut left = LOOK;
    for ic in 0..p.group_inputs {
        for ky in 0..p.window.kernel_h {
            for kx in 0..p.window.kernel_w {
                let at = p.input(n, p.window.row(oy, ky), p.window.column(ox, kx));
                let code = at.map_or(p.input_zero_point, |at| p.ifm.load(at + first_input + ic));
                let weights = weight_at(p, oc, ky * p.window.kernel_w + kx);
                let w = p.weights.memory.load(weights + ic / 4 * 64 + ic % 4).cast_signed();
                let x = dequantise(code, float.input_scale, p.input_zero_point);
                sum.add(x, weight(w, record.weight_scale));
                left -= 1;
                if left == 0 {
                    budget.spend(LOOK)?;
                    left = LOOK;
                }
            }
        }
    }
    budget.spend(LOOK - left)?;
    Ok(sum.finish())
}
