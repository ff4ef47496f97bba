//! POOL as the documented loops.

use crate::kernel::Stop;
use crate::kernel::pool::Problem;
use crate::kernel::split::{Aborted, Budget, POLL_MACS, Split};
use crate::kernel::stage::lookup;
use npu_uapi::command::pool_kind;
use npu_uapi::requantise;

/// Runs `problem`.
pub(crate) fn run(problem: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let p = problem;
    let dims = [p.dims[0], p.ofm_h, p.ofm_w, p.dims[3]];
    let window = match pool_kind::is_global(p.kind) {
        true => p.dims[1].saturating_mul(p.dims[2]),
        false => p.window.kernel_h * p.window.kernel_w,
    };
    // Only the plan of the chunks counts whole windows: one may be larger than what is polled after.
    split.elements(dims, window.clamp(1, POLL_MACS / 2), &|at @ [n, oy, ox, ch], budget| {
        let code = match p.kind {
            pool_kind::MAX => maximum(p, at, budget)?,
            pool_kind::AVERAGE => average(p, at, budget)?,
            pool_kind::GLOBAL_MEAN => global_mean(p, n, ch, budget)?,
            _ => global_average(p, n, ch, budget)?,
        };
        let code = code.max(p.low).min(p.high);
        p.ofm.store(p.ofm.at(n, oy, ox) + ch, lookup(p.table.as_ref(), code));
        Ok(())
    })
}

fn maximum(p: &Problem, at: [i64; 4], budget: &mut Budget<'_>) -> Result<u8, Aborted> {
    let mut largest = 0;
    window(p, at, budget, |code| largest = largest.max(code))?;
    Ok(largest)
}

fn average(p: &Problem, at: [i64; 4], budget: &mut Budget<'_>) -> Result<u8, Aborted> {
    let mut sum = 0.0;
    window(p, at, budget, |code| {
        sum = requantise::average_step(sum, code, p.input_scale, p.input_zero_point);
    })?;
    let count = p.rows(at[1]).1 * p.columns(at[2]).1;
    let count = u32::try_from(count).expect("two factors below 2^16");
    Ok(requantise::average_finish(sum, count, p.output_scale, p.zero_point))
}

/// Calls `step` with each code of the window, row by row.
fn window(
    p: &Problem,
    [n, oy, ox, ch]: [i64; 4],
    budget: &mut Budget<'_>,
    mut step: impl FnMut(u8),
) -> Result<(), Aborted> {
    let columns = p.columns(ox).0;
    for ky in p.rows(oy).0 {
        budget.spend(p.window.kernel_w)?;
        for kx in columns.clone() {
            let at = p.ifm.at(n, p.window.row(oy, ky), p.window.column(ox, kx));
            step(p.ifm.load(at + ch));
        }
    }
    budget.spend(p.window.kernel_h + p.window.kernel_w)
}

fn global_average(p: &Problem, n: i64, ch: i64, budget: &mut Budget<'_>) -> Result<u8, Aborted> {
    let mut sum = 0i32;
    for y in 0..p.dims[1] {
        for x in 0..p.dims[2] {
            budget.spend(1)?;
            let code = p.ifm.load(p.ifm.at(n, y, x) + ch);
            sum = sum.wrapping_add(i32::from(code) - i32::from(p.input_zero_point));
        }
    }
    Ok(requantise::requantise(sum, p.multiplier, p.zero_point))
}

/// As [`requantise::global_mean`], in pieces between which it can be stopped.
fn global_mean(p: &Problem, n: i64, ch: i64, budget: &mut Budget<'_>) -> Result<u8, Aborted> {
    let (pixels, mut pixel) = (p.dims[1] * p.dims[2], 0);
    let (mut parts, mut part) = ([0.0_f32; 4], 0);
    let mut left = Vec::with_capacity(3);
    for y in 0..p.dims[1] {
        for x in 0..p.dims[2] {
            budget.spend(1)?;
            let code = p.ifm.load(p.ifm.at(n, y, x) + ch);
            let value = requantise::dequantise(code, p.input_scale, p.input_zero_point);
            if pixel < pixels / 4 * 4 {
                parts[part] += value;
                part = (part + 1) % 4;
            } else {
                left.push(value);
            }
            pixel += 1;
        }
    }
    let sum = left.iter().fold((parts[0] + parts[2]) + (parts[1] + parts[3]), |sum, v| sum + v);
    #[expect(
        clippy::cast_precision_loss,
        reason = "the rounding to 24 bits is part of the definition"
    )]
    let mean = sum / pixels as f32;
    Ok(requantise::quantise(mean, p.output_scale, p.zero_point))
}
