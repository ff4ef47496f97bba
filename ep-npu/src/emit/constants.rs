//! Weights, channel records and tables as the device reads them.

use super::packing::Packing;
use crate::lower::{Conv, Function, Normalise, OpKind, Ops};
use npu_uapi::command::{ChannelRecord, FloatRecord, record_bytes};
use npu_uapi::extent::SHARES_BYTES;
use npu_uapi::rows::Affine;
use std::collections::HashMap;
use zerocopy::IntoBytes;

/// Alignment of every constant, in bytes.
const ALIGN: u64 = 64;

/// One constant of one operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// Where it lies in the constants slot.
    pub offset: u64,
    /// Index in [`Ops::ops`] of the operation.
    pub op: usize,
    /// Which of its constants.
    pub content: Content,
}

/// Kinds of constants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// Weights in blocks of 16 output by 4 input channels, of a kernel of these rows and columns.
    Weights([usize; 2]),
    /// Channel records.
    Records,
    /// Tables. Large ones of equal content lie in one place.
    Tables,
    /// A constant operand.
    Operand,
}

/// Places the constants of `ops`, in the order of `ops`; with the bytes that they take together.
pub(super) fn plan(ops: &Ops) -> (Vec<Chunk>, u64) {
    let mut chunks = Vec::new();
    let mut end = 0_u64;
    let mut large: HashMap<&[u8], u64> = HashMap::new();
    for (op, operation) in ops.ops.iter().enumerate() {
        if let Some(table) = large_table(&operation.kind) {
            // Equal tables lie in one place.
            let offset = *large.entry(table).or_insert(end);
            chunks.push(Chunk { offset, op, content: Content::Tables });
            if offset == end {
                end = (end + table.len() as u64).next_multiple_of(ALIGN);
            }
        }
        let mut place = |content, len_bytes: u64| {
            chunks.push(Chunk { offset: end, op, content });
            end = (end + len_bytes).next_multiple_of(ALIGN);
        };
        match &operation.kind {
            OpKind::Conv(conv) => {
                place(
                    Content::Weights(conv.weights.kernel),
                    Packing::of(conv).packed_bytes() as u64,
                );
                place(Content::Records, record_bytes(outputs_u32(conv)));
                if conv.table_0.is_some() || conv.table_1.is_some() {
                    place(Content::Tables, 512);
                }
            }
            OpKind::Move { parts, .. } => {
                let tables = parts.iter().filter(|part| part.table.is_some()).count();
                if tables > 0 {
                    place(Content::Tables, 256 * tables as u64);
                }
            }
            OpKind::Pair { constant, table, .. } => {
                if let Some(constant) = constant {
                    place(Content::Operand, constant.bytes.len() as u64);
                }
                if table.is_some() {
                    place(Content::Tables, 256);
                }
            }
            OpKind::Pool { table: Some(_), .. }
            | OpKind::Product { table: Some(_), .. }
            | OpKind::Table(_) => place(Content::Tables, 256),
            OpKind::Resize { taps, .. } => place(Content::Tables, taps.as_bytes().len() as u64),
            OpKind::Softmax { .. } => place(Content::Tables, SHARES_BYTES),
            OpKind::Norm { kind, .. } => place(Content::Tables, 4 * numbers(kind).count() as u64),
            OpKind::Channels(_)
            | OpKind::Reduce { .. }
            | OpKind::Pool { .. }
            | OpKind::Product { .. }
            | OpKind::Layout { .. } => {}
        }
    }
    (chunks, end)
}

/// A table that does not fit the device's registers, and that several operations may have in common.
fn large_table(kind: &OpKind) -> Option<&[u8]> {
    match kind {
        OpKind::Pair { function: Function::Table(pairs), .. } => Some(pairs.bytes()),
        OpKind::Channels(tables) => Some(tables),
        _ => None,
    }
}

/// The bytes of `chunks`.
pub(super) fn pack(ops: &Ops, chunks: &[Chunk], bytes: &mut [u8]) {
    let len = |bytes: u64| usize::try_from(bytes).expect("constants fit the memory they come from");
    for chunk in chunks {
        let to = &mut bytes[len(chunk.offset)..];
        match (&ops.ops[chunk.op].kind, chunk.content) {
            (OpKind::Conv(conv), Content::Weights(_)) => {
                Packing::of(conv).pack(&conv.weights.bytes, to);
            }
            (OpKind::Conv(conv), Content::Records) => pack_records(conv, to),
            (OpKind::Conv(conv), Content::Tables) => {
                let tables = [&conv.table_0, &conv.table_1];
                for (to, table) in to.chunks_mut(256).zip(tables) {
                    if let Some(table) = table {
                        to[..256].copy_from_slice(table.as_slice());
                    }
                }
            }
            (OpKind::Move { parts, .. }, Content::Tables) => {
                let tables = parts.iter().filter_map(|part| part.table.as_ref());
                for (to, table) in to.chunks_mut(256).zip(tables) {
                    to.copy_from_slice(table.as_slice());
                }
            }
            (OpKind::Pair { constant: Some(constant), .. }, Content::Operand) => {
                to[..constant.bytes.len()].copy_from_slice(&constant.bytes);
            }
            (OpKind::Channels(tables), _) => to[..tables.len()].copy_from_slice(tables),
            (OpKind::Pair { function: Function::Table(pairs), .. }, Content::Tables) => {
                to[..pairs.bytes().len()].copy_from_slice(pairs.bytes());
            }
            (
                OpKind::Pair { table: Some(table), .. }
                | OpKind::Pool { table: Some(table), .. }
                | OpKind::Product { table: Some(table), .. }
                | OpKind::Table(table),
                _,
            ) => to[..256].copy_from_slice(table.as_slice()),
            (OpKind::Resize { taps, .. }, _) => {
                to[..taps.as_bytes().len()].copy_from_slice(taps.as_bytes());
            }
            (OpKind::Softmax { parts, .. }, _) => {
                for (to, part) in to.chunks_mut(4).zip(parts.iter()) {
                    to.copy_from_slice(&part.to_le_bytes());
                }
            }
            (OpKind::Norm { kind, .. }, _) => {
                for (to, number) in to.chunks_mut(4).zip(numbers(kind)) {
                    to.copy_from_slice(&number.to_le_bytes());
                }
            }
            (kind, content) => panic!("{kind:?} has no {content:?}: `plan` placed it"),
        }
    }
}

/// The terms of a normalisation as the device has them.
fn numbers(kind: &Normalise) -> impl Iterator<Item = f32> + '_ {
    let (terms, divisors): (&[Affine], &[f32]) = match kind {
        Normalise::Layer { terms, .. } | Normalise::Instance { terms, .. } => (terms, &[]),
        Normalise::Staged { divisors, .. } => (&[], divisors),
    };
    terms.iter().flat_map(|terms| [terms.gain, terms.bias]).chain(divisors.iter().copied())
}

fn pack_records(conv: &Conv, to: &mut [u8]) {
    if let Some(floats) = &conv.floats {
        let channels = floats.weight_scales.iter().zip(&floats.bias);
        for ((&weight_scale, &bias), to) in channels.zip(to.chunks_mut(16)) {
            let record = FloatRecord { weight_scale, bias, unused: [0; 2] };
            to.copy_from_slice(record.as_bytes());
        }
        return;
    }
    let zero_point = i64::from(conv.input_zero_point);
    for (output, to) in to.chunks_mut(16).take(conv.weights.outputs).enumerate() {
        let sum = conv.weights.sum(output);
        let record = ChannelRecord {
            bias: wrap(i64::from(conv.bias[output]) - zero_point * sum),
            multiplier: conv.multipliers[output],
            weight_zero_point: conv.weights.zero_point(output).into(),
            weight_sum: wrap(conv.weights.sum_as_held(output, sum)),
        };
        to.copy_from_slice(record.as_bytes());
    }
}

/// The low 32 bits: the device's sums wrap, and the whole sum is known to fit.
#[expect(clippy::cast_possible_truncation, reason = "sums wrap in 32 bits, as the device's do")]
fn wrap(sum: i64) -> i32 {
    sum as i32
}

fn outputs_u32(conv: &Conv) -> u32 {
    u32::try_from(conv.weights.outputs).expect("`shape` bounds channels to 31 bits")
}
