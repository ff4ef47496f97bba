//! What the programs of the self-test must give: plain loops over unpacked data, from the definition in
//! `npu_uapi::command`, with the arithmetic of `npu_uapi::requantise`. Shares nothing with the device.

use npu_uapi::command::{ChannelRecord, Stage};
use npu_uapi::requantise::requantise;

/// `len` reproducible codes.
pub(super) fn codes(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let [_, _, byte, _] = state.to_le_bytes();
        byte
    };
    (0..len).map(|_| next()).collect()
}

/// `len` reproducible weights.
pub(super) fn weights(len: usize, seed: u32) -> Vec<i8> {
    codes(len, seed).into_iter().map(u8::cast_signed).collect()
}

/// Records with different biases and multipliers that keep most results off the ends; every
/// `zero_points`-th channel has the same weight zero point, of 1 none.
pub(super) fn records(channels: usize, reduction: usize, zero_points: u16) -> Vec<ChannelRecord> {
    let spread = 1.0 / (f64::from(u32::try_from(reduction).unwrap_or(u32::MAX)).sqrt() * 110.0);
    (0_u16..)
        .take(channels)
        .map(|channel| {
            #[expect(clippy::cast_possible_truncation, reason = "any nearby multiplier will do")]
            let multiplier = (spread * (1.0 + f64::from(channel % 7) / 8.0)) as f32;
            let (bias, weight_zero_point) =
                (i32::from(channel) * 37 - 900, i32::from(channel % zero_points));
            ChannelRecord { bias, multiplier, weight_zero_point, weight_sum: 0 }
        })
        .collect()
}

/// The end of a sum: requantised and clamped.
fn finish(accumulator: i32, record: &ChannelRecord, stage: &Stage) -> u8 {
    let zero_point = u8::try_from(stage.zero_point).unwrap_or(0);
    requantise(accumulator, record.multiplier, zero_point).clamp(stage.clamp_low, stage.clamp_high)
}

/// One step of a sum: `x * w - x * weight_zero_point`, wrapping.
fn step(accumulator: i32, x: u8, w: i8, record: &ChannelRecord) -> i32 {
    let (x, w) = (i32::from(x), i32::from(w));
    accumulator.wrapping_add(x.wrapping_mul(w.wrapping_sub(record.weight_zero_point)))
}

/// `a` of `m` by `k` times the transpose of `w`, of as many rows as there are records.
pub(super) fn matmul(
    a: &[u8],
    w: &[i8],
    k: usize,
    records: &[ChannelRecord],
    stage: &Stage,
) -> Vec<u8> {
    let row = |row: &[u8]| -> Vec<u8> {
        let columns = w.chunks_exact(k).zip(records);
        columns
            .map(|(w, record)| {
                let terms = row.iter().zip(w);
                let sum = terms.fold(record.bias, |sum, (&x, &w)| step(sum, x, w, record));
                finish(sum, record, stage)
            })
            .collect()
    };
    a.chunks_exact(k).flat_map(row).collect()
}

/// A feature map of one image, dense, channel-last.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Map {
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) c: usize,
    pub(super) data: Vec<u8>,
}

impl Map {
    pub(super) fn at(&self, y: usize, x: usize, c: usize) -> u8 {
        self.data[(y * self.w + x) * self.c + c]
    }
}

/// A convolution of kernel 3 by 3, stride 1, padding 1; weights `[output][row][column][input]`.
pub(super) fn conv3x3(ifm: &Map, w: &[i8], records: &[ChannelRecord], stage: &Stage) -> Map {
    let outside = u8::try_from(stage.input_zero_point).unwrap_or(0);
    let (h, width, c) = (ifm.h, ifm.w, records.len());
    let mut data = Vec::with_capacity(h * width * c);
    for (oy, ox) in (0..h).flat_map(|oy| (0..width).map(move |ox| (oy, ox))) {
        for (oc, record) in records.iter().enumerate() {
            let mut sum = record.bias;
            for (ky, kx) in (0..3).flat_map(|ky| (0..3).map(move |kx| (ky, kx))) {
                let (y, x) = ((oy + ky).wrapping_sub(1), (ox + kx).wrapping_sub(1));
                for ic in 0..ifm.c {
                    let is_inside = y < h && x < width;
                    let value = if is_inside { ifm.at(y, x, ic) } else { outside };
                    sum = step(sum, value, w[((oc * 3 + ky) * 3 + kx) * ifm.c + ic], record);
                }
            }
            data.push(finish(sum, record, stage));
        }
    }
    Map { h, w: width, c, data }
}

/// The maximum over windows of 2 by 2, stride 2.
pub(super) fn max_pool2x2(ifm: &Map) -> Map {
    let (h, w, c) = (ifm.h / 2, ifm.w / 2, ifm.c);
    let mut data = Vec::with_capacity(h * w * c);
    for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
        for channel in 0..c {
            let window = [(0, 0), (0, 1), (1, 0), (1, 1)];
            let codes = window.map(|(dy, dx)| ifm.at(2 * y + dy, 2 * x + dx, channel));
            data.push(codes.into_iter().fold(0, u8::max));
        }
    }
    Map { h, w, c, data }
}
