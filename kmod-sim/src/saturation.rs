//! How many codes of a command's result lie at an end of their range, for those who asked to have them counted.
//!
//! Counted is what lies in memory once the command is through, so that kernels know nothing of it and cost
//! what they cost while nobody asks. [`npu_uapi::telemetry::Saturation`] says what is looked at.

use crate::kernel::{Engine, Stop};
use crate::memory::Extent;
use npu_uapi::addr::Operand;
use npu_uapi::command::{Command, element, pool_kind};
use npu_uapi::extent::feature_maps;
use npu_uapi::telemetry::EndCodes;

/// Bytes that are looked at in one piece.
const PIECE: usize = 4096;
/// Pieces between two looks whether the command is to end: a fraction of a millisecond.
const PIECES_A_LOOK: u32 = 256;

/// The codes of one command's result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Counted {
    /// Whether the MAC array made them, not the vector unit.
    pub(crate) is_of_array: bool,
    pub(crate) codes: EndCodes,
}

impl Counted {
    /// One more than the codes at either end, as events have it.
    pub(crate) fn at_ends(self) -> u32 {
        let EndCodes { lowest, highest, .. } = self.codes;
        let more = lowest.saturating_add(highest).saturating_add(1);
        u32::try_from(more).unwrap_or(u32::MAX)
    }
}

/// Counts the codes that `command` has written into `slots`; `None` where it quantises nothing.
///
/// # Errors
/// The command is to end.
pub(crate) fn count(
    command: &Command,
    slots: &[Option<Extent>],
    engine: &Engine,
) -> Result<Option<Counted>, Stop> {
    let Some((operand, loops)) = result(command) else { return Ok(None) };
    // The command has run, so its result lies in its slot.
    let Some(memory) = slots.get(operand.slot.index()).copied().flatten() else { return Ok(None) };
    let runs = Runs::new(operand, loops);
    let is_of_array =
        matches!(command, Command::Conv(_) | Command::MatMul(_) | Command::Product(_));
    let mut codes = EndCodes::default();
    let mut pieces = 0_u32;
    let mut bytes = [0; PIECE];
    runs.each(|start, len| {
        for (at, piece) in (start..).step_by(PIECE).zip(bytes_of(len)) {
            let bytes = &mut bytes[..piece];
            memory.read(at, bytes);
            codes.add(ends(bytes));
            pieces = pieces.wrapping_add(1);
            if pieces.is_multiple_of(PIECES_A_LOOK) {
                engine.beat();
                if let Some(stop) = engine.end() {
                    return Err(stop);
                }
            }
        }
        Ok(())
    })?;
    Ok(Some(Counted { is_of_array, codes }))
}

/// A length in pieces.
fn bytes_of(len: u64) -> impl Iterator<Item = usize> {
    let piece = PIECE as u64;
    (0..len.div_ceil(piece)).map(move |index| {
        let left = len - index * piece;
        usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
    })
}

/// The codes of `bytes` at an end.
fn ends(bytes: &[u8]) -> EndCodes {
    // Few enough at a time that a byte holds their count: then a vector of bytes counts.
    let count = |end: u8| -> u64 {
        let of =
            |part: &[u8]| part.iter().fold(0_u8, |sum, &b| sum.wrapping_add((b == end).into()));
        bytes.chunks(255).map(|part| u64::from(of(part))).sum()
    };
    EndCodes { codes: bytes.len() as u64, lowest: count(0), highest: count(255) }
}

/// Five loops over bytes: turns, and bytes from one to the next.
type Loops = [(u64, i64); 5];

/// Where the result of a command lies that quantises it, each code once.
fn result(command: &Command) -> Option<(Operand, Loops)> {
    let loops = match command {
        Command::Layout(c) if c.src_element == element::F32 && c.dst_element == element::U8 => {
            let strides = &c.dst_strides;
            return Some((
                c.dst,
                [
                    (c.repeats().into(), c.dst_outer),
                    (c.dims.n.into(), strides.image),
                    (c.dims.h.into(), strides.row),
                    (c.dims.w.into(), strides.pixel),
                    (c.dims.c.into(), strides.channel),
                ],
            ));
        }
        Command::Product(c) => {
            let [outer, batch, rows, columns] = c.matrices_out().loops();
            let loops = [outer, batch, rows, columns].map(|(turns, stride)| (turns.into(), stride));
            let [outer, batch, rows, columns] = loops;
            return Some((c.out, [(1, 0), outer, batch, rows, columns]));
        }
        Command::Pool(c) if c.kind == pool_kind::MAX => return None,
        Command::Conv(_)
        | Command::MatMul(_)
        | Command::Add(_)
        | Command::Mul(_)
        | Command::Pool(_)
        | Command::Softmax(_)
        | Command::Reduce(_)
        | Command::Norm(_)
        | Command::Resize(_) => feature_maps(command),
        Command::Table(_)
        | Command::PairTable(_)
        | Command::ChannelTable(_)
        | Command::Layout(_)
        | Command::Copy(_)
        | Command::Fill(_)
        | Command::End(_) => return None,
    };
    let map = loops.iter().find(|map| map.write)?;
    let (dims, strides) = (&map.dims, &map.strides);
    Some((
        map.operand,
        [
            (1, 0),
            (dims.n.into(), strides.image),
            (dims.h.into(), strides.row.into()),
            (dims.w.into(), strides.pixel.into()),
            (dims.c.into(), 1),
        ],
    ))
}

/// The bytes of loops as runs of neighbours, as long as they get.
struct Runs {
    /// The lowest byte.
    start: i64,
    /// Bytes of a run.
    len: u64,
    /// The loops around it, the innermost first.
    loops: Loops,
}

impl Runs {
    fn new(operand: Operand, mut loops: Loops) -> Self {
        let mut start = i64::try_from(operand.offset).unwrap_or(i64::MAX);
        for (turns, stride) in &mut loops {
            if *stride < 0 {
                // From its other end: the same bytes.
                let back = i64::try_from(*turns - 1).unwrap_or(i64::MAX).saturating_mul(*stride);
                start = start.saturating_add(back);
                *stride = stride.saturating_neg();
            } else if *stride == 0 {
                // The same byte again.
                *turns = 1;
            }
        }
        loops.sort_unstable_by_key(|&(_, stride)| stride);
        let mut len = 1_u64;
        let mut is_joined = true;
        for (turns, stride) in &mut loops {
            is_joined &= *turns == 1 || u64::try_from(*stride) == Ok(len);
            if is_joined {
                len *= *turns;
                *turns = 1;
            }
        }
        Self { start, len, loops }
    }

    /// Has `visit` see the start and length of each.
    fn each(&self, mut visit: impl FnMut(i64, u64) -> Result<(), Stop>) -> Result<(), Stop> {
        let mut turns = [0; 5];
        let mut at = self.start;
        loop {
            visit(at, self.len)?;
            let mut is_over = true;
            for (turn, &(count, stride)) in turns.iter_mut().zip(&self.loops) {
                *turn += 1;
                at = at.wrapping_add(stride);
                if *turn < count {
                    is_over = false;
                    break;
                }
                let back = i64::try_from(count).unwrap_or(i64::MAX).wrapping_mul(stride);
                (*turn, at) = (0, at.wrapping_sub(back));
            }
            if is_over {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::addr::SlotId;
    use npu_uapi::command::{
        Add, Conv, Dims, Fill, Header, Layout, MatMul, Pool, Product, Strides, Strides4, Table,
    };
    use proptest::collection::vec;
    use proptest::prelude::*;

    const BYTES: usize = 1 << 14;

    /// What [`count`] makes of `command` whose result is in slot 0, which holds `bytes`.
    fn counted(command: &Command, bytes: &mut [u8]) -> Option<Counted> {
        // SAFETY: the bytes outlive the call, and nobody else uses them meanwhile.
        let slot = unsafe { Extent::from_raw(bytes.as_mut_ptr(), bytes.len(), true) };
        count(command, &[Some(slot)], &Engine::default()).unwrap()
    }

    /// The same of codes at `offsets`, by hand.
    fn expected(bytes: &[u8], offsets: impl Iterator<Item = i64>) -> EndCodes {
        let mut sum = EndCodes::default();
        for at in offsets {
            let code = bytes[usize::try_from(at).unwrap()];
            sum.codes += 1;
            sum.lowest += u64::from(code == 0);
            sum.highest += u64::from(code == 255);
        }
        sum
    }

    /// Codes of which many are at an end.
    fn codes() -> impl Strategy<Value = Vec<u8>> {
        let code = prop_oneof![Just(0_u8), Just(255), any::<u8>()];
        vec(code, BYTES)
    }

    fn at(offset: u64) -> Operand {
        Operand::new(SlotId(0), offset)
    }

    proptest! {
        #[test]
        fn a_feature_map_is_counted_without_its_pad_lanes_and_gaps(
            mut bytes in codes(), n in 1_u32..3, h in 1_u32..5, w in 1_u32..6, c in 1_u32..40,
            gaps in [0_i32..8, 0..3, 0..2], offset in 0_u64..9,
        ) {
            let pixel = i32::try_from(c).unwrap() + gaps[0];
            let row = i32::try_from(w).unwrap() * pixel + gaps[1];
            let image = i64::from(h) * i64::from(row) + i64::from(gaps[2]);
            let strides = Strides { image, row, pixel };
            let dims = Dims { n, h, w, c };
            let add = Command::Add(Add { out: at(offset), dims, out_strides: strides, ..Add::default() });
            let here = i64::try_from(offset).unwrap();
            let all = (0..i64::from(n)).flat_map(|n| (0..i64::from(h)).flat_map(move |y| {
                (0..i64::from(w)).flat_map(move |x| (0..i64::from(c)).map(move |ch| {
                    here + n * image + y * i64::from(row) + x * i64::from(pixel) + ch
                }))
            }));
            let expected = expected(&bytes, all);
            let found = counted(&add, &mut bytes);
            prop_assert_eq!(found, Some(Counted { is_of_array: false, codes: expected }));
            let conv = Conv {
                ofm: at(offset),
                ifm_dims: Dims { n, h: 1, w: 1, c: 1 },
                ofm_h: h,
                ofm_w: w,
                ofm_c: c,
                ofm_strides: strides,
                ..Conv::default()
            };
            let found = counted(&Command::Conv(conv), &mut bytes);
            prop_assert_eq!(found, Some(Counted { is_of_array: true, codes: expected }));
        }

        #[test]
        fn loops_in_any_order_forwards_and_backwards_are_counted_once_each(
            mut bytes in codes(), turns in [1_u32..4, 1..4, 1..4, 1..5, 1..6],
            order in Just([0_usize, 1, 2, 3, 4]).prop_shuffle(), gaps in [0_i64..3, 0..3, 0..3, 0..3, 0..3],
            backwards in any::<[bool; 5]>(),
        ) {
            let (mut strides, mut span, mut start) = ([0_i64; 5], 1_i64, 0_i64);
            for (&which, gap) in order.iter().zip(gaps) {
                let stride = span + gap;
                span = stride * i64::from(turns[which]);
                strides[which] = if backwards[which] { -stride } else { stride };
                if backwards[which] {
                    start += stride * i64::from(turns[which] - 1);
                }
            }
            let layout = Layout {
                dst: at(u64::try_from(start).unwrap()),
                outer: turns[0],
                dims: Dims { n: turns[1], h: turns[2], w: turns[3], c: turns[4] },
                dst_outer: strides[0],
                dst_strides: Strides4 {
                    image: strides[1],
                    row: strides[2],
                    pixel: strides[3],
                    channel: strides[4],
                },
                src_element: element::F32,
                dst_element: element::U8,
                ..Layout::default()
            };
            let mut offsets = vec![start];
            for (stride, turns) in strides.into_iter().zip(turns) {
                let each = (0..i64::from(turns)).map(|turn| turn * stride);
                offsets = offsets.iter().flat_map(|at| each.clone().map(move |far| at + far)).collect();
            }
            let expected = expected(&bytes, offsets.into_iter());
            let found = counted(&Command::Layout(layout), &mut bytes);
            prop_assert_eq!(found, Some(Counted { is_of_array: false, codes: expected }));
            let moved = Layout { src_element: element::U8, ..layout };
            prop_assert_eq!(counted(&Command::Layout(moved), &mut bytes), None);
        }
    }

    #[test]
    fn matrices_are_counted_whole_and_what_only_moves_or_chooses_codes_is_not() {
        let mut bytes: Vec<u8> = (0..BYTES).map(|at| if at % 3 == 0 { 255 } else { 0 }).collect();
        let codes = EndCodes { codes: 9000, lowest: 6000, highest: 3000 };
        let whole = Some(Counted { is_of_array: true, codes });
        let matmul = MatMul { out: at(0), m: 3, n: 3000, out_row: 3000, ..MatMul::default() };
        assert_eq!(counted(&Command::MatMul(matmul), &mut bytes), whole);
        let product = Product {
            out: at(0),
            outer: 1,
            batch: 2,
            m: 3,
            n: 1500,
            out_batch: 4500,
            out_row: 1500,
            ..Product::default()
        };
        assert_eq!(counted(&Command::Product(product), &mut bytes), whole);
        let pool = Pool { kind: pool_kind::MAX, ..Pool::default() };
        let header = Header::default();
        for command in [
            Command::Pool(pool),
            Command::Table(Table { header, ..Table::default() }),
            Command::Fill(Fill { header, len: 9, ..Fill::default() }),
        ] {
            assert_eq!(counted(&command, &mut bytes), None, "{command:?}");
        }
    }

    #[test]
    fn counting_ends_with_its_command() {
        let mut bytes = vec![0; 2 * PIECE * usize::try_from(PIECES_A_LOOK).unwrap()];
        let n = u32::try_from(bytes.len()).unwrap();
        let matmul = Command::MatMul(MatMul { out: at(0), m: 1, n, ..MatMul::default() });
        // SAFETY: the bytes outlive the call, and nobody else uses them meanwhile.
        let slot = unsafe { Extent::from_raw(bytes.as_mut_ptr(), bytes.len(), true) };
        let engine = Engine::default();
        engine.abort();
        assert_eq!(count(&matmul, &[Some(slot)], &engine), Err(Stop::Aborted));
    }
}
