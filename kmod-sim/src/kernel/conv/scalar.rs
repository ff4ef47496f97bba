//! CONV and MATMUL as the documented loops; takes every problem, depthwise included.

use crate::kernel::Stop;
use crate::kernel::conv::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use npu_uapi::command::ChannelRecord;
use std::ops::Range;
use zerocopy::FromBytes;

/// Multiply-accumulates of a chunk, about.
const CHUNK: i64 = 1 << 18;

/// Runs `problem`, some output channels of a pixel at a time.
pub(crate) fn run(problem: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let p = problem;
    let macs = p.taps().saturating_mul(p.group_inputs).max(1);
    let some = (split.fine(CHUNK) / macs).clamp(1, p.outputs.max(1));
    let parts = (p.outputs + some - 1) / some;
    split.chunks((p.images * p.ofm_h * p.ofm_w).saturating_mul(parts), &|chunk, budget| {
        let (pixel, first) = (chunk / parts, chunk % parts * some);
        let (row, ox) = (pixel / p.ofm_w, pixel % p.ofm_w);
        let outputs = first..(first + some).min(p.outputs);
        compute(p, [row / p.ofm_h, row % p.ofm_h, ox], outputs, budget)
    })
}

/// Some channels of one output pixel.
fn compute(
    p: &Problem,
    [n, oy, ox]: [i64; 3],
    outputs: Range<i64>,
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let out = p.ofm.at(n, oy, ox);
    if let Some(float) = p.stage.float {
        for oc in outputs {
            let sum = super::float::sum(p, float, [n, oy, ox, oc], budget)?;
            let aux = || p.aux.map_or(0, |aux| aux.load(aux.at(n, oy, ox) + oc));
            p.ofm.store(out + oc, p.stage.float_code(float, sum, aux));
        }
        return Ok(());
    }
    for oc in outputs {
        let record = record(p, oc);
        let sum = accumulate(p, [n, oy, ox, oc], &record, budget)?;
        let aux = || p.aux.map_or(0, |aux| aux.load(aux.at(n, oy, ox) + oc));
        p.ofm.store(out + oc, p.stage.code(sum, record.multiplier, aux));
    }
    Ok(())
}

fn record(p: &Problem, oc: i64) -> ChannelRecord {
    let bytes: [u8; 16] = p.records.memory.load_bytes(p.records.start + oc * 16);
    ChannelRecord::read_from_bytes(&bytes).expect("a record has 16 bytes, any bits valid")
}

/// The accumulator of one output element.
fn accumulate(
    p: &Problem,
    [n, oy, ox, oc]: [i64; 4],
    record: &ChannelRecord,
    budget: &mut Budget<'_>,
) -> Result<i32, Aborted> {
    let first_input = oc / p.group_outputs * p.group_inputs;
    let mut sum = record.bias;
    for ky in 0..p.window.kernel_h {
        for kx in 0..p.window.kernel_w {
            budget.spend(p.group_inputs.min(1 << 20))?;
            let at = p.input(n, p.window.row(oy, ky), p.window.column(ox, kx));
            let weights = weight_at(p, oc, ky * p.window.kernel_w + kx);
            for ic in 0..p.group_inputs {
                if ic & 0xf_ffff == 0xf_ffff {
                    budget.spend(1 << 20)?;
                }
                let x = at.map_or(p.input_zero_point, |at| p.ifm.load(at + first_input + ic));
                let w = p.weights.memory.load(weights + ic / 4 * 64 + ic % 4).cast_signed();
                let x = i32::from(x);
                sum = sum
                    .wrapping_add(x * i32::from(w))
                    .wrapping_sub(x.wrapping_mul(record.weight_zero_point));
            }
        }
    }
    Ok(sum)
}

/// Offset of the weight of output channel `oc`, tap `tap`, first input channel of its group; the next
/// three follow it, the fifth lies 64 bytes on.
pub(super) fn weight_at(p: &Problem, oc: i64, tap: i64) -> i64 {
    let fours = |count: i64| (count + 3) / 4;
    if p.depthwise {
        let (block, lane) = (oc / 16, oc % 16);
        return p.weights.start + (block * fours(p.taps()) + tap / 4) * 64 + lane * 4 + tap % 4;
    }
    let (group, output) = (oc / p.group_outputs, oc % p.group_outputs);
    let block = group * ((p.group_outputs + 15) / 16) + output / 16;
    let step = fours(p.group_inputs);
    p.weights.start + (block * p.taps() * step + tap * step) * 64 + output % 16 * 4
}
