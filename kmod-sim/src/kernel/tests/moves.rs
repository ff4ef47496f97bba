//! LAYOUT from bytes to bytes: turned, repeated, reversed, every other element, through a table.

use super::machine::{Machine, Random};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Dims, Flags, Header, Layout, Strides4, element, opcode};
use proptest::prelude::*;

/// One side: the order of the five dimensions from the innermost, and what each steps by.
#[derive(Clone, Debug)]
struct Side {
    order: [usize; 5],
    steps: [Step; 5],
}

/// How a dimension steps over what the inner ones span.
#[derive(Clone, Copy, Debug)]
enum Step {
    Dense,
    Gap,
    Back,
    Repeat,
}

fn side(source: bool) -> impl Strategy<Value = Side> {
    let order = prop_oneof![
        Just([4usize, 3, 2, 1, 0]),
        Just([3, 2, 4, 1, 0]),
        Just([4usize, 3, 2, 1, 0]).prop_shuffle(),
    ];
    let last = if source { Step::Repeat } else { Step::Back };
    let step = prop_oneof![8 => Just(Step::Dense), 1 => Just(Step::Gap), 1 => Just(Step::Back), 1 => Just(last)];
    (order, [step.clone(), step.clone(), step.clone(), step.clone(), step])
        .prop_map(|(order, steps)| Side { order, steps })
}

impl Side {
    /// Strides, offset of the first element, and bytes in all.
    fn lay(&self, counts: [u32; 5]) -> ([i64; 5], i64, usize) {
        let (mut strides, mut below, mut above, mut span) = ([0; 5], 0, 0, 1);
        for (axis, step) in self.order.into_iter().zip(self.steps) {
            let stride = match step {
                Step::Dense => span,
                Step::Gap => 2 * span + 1,
                Step::Back => -span,
                Step::Repeat => 0,
            };
            strides[axis] = stride;
            let reach = stride * i64::from(counts[axis] - 1);
            if reach < 0 {
                below -= reach
            } else {
                above += reach
            }
            span = below + above + 1;
        }
        (strides, below, usize::try_from(span).unwrap())
    }
}

fn counts() -> impl Strategy<Value = [u32; 5]> {
    prop_oneof![
        3 => [1u32..4, 1u32..4, 1u32..6, 1u32..40, 1u32..80],
        1 => [1u32..3, 1u32..3, 1u32..5, 1u32..5, 1u32..5],
        1 => [1u32..2, 1u32..2, 1u32..4, 100u32..300, 100u32..300],
        1 => [1u32..2, 1u32..2, 1u32..3, 1u32..3, 15_000u32..40_000],
    ]
}

proptest! {
    #[test]
    fn moves_put_every_byte_in_its_place(
        counts in counts(), sides in (side(true), side(false)), table in any::<bool>(), seed: u64,
    ) {
        let (src, src_at, src_len) = sides.0.lay(counts);
        let (dst, dst_at, dst_len) = sides.1.lay(counts);
        let strides4 = |[_, image, row, pixel, channel]: [i64; 5]| Strides4 { image, row, pixel, channel };
        let [outer, n, h, w, c] = counts;
        let flags = if table { Flags::TABLE_0 } else { Flags::empty() };
        let layout = Layout {
            header: Header::new(opcode::LAYOUT, 3, flags, 0),
            src: Operand::new(SlotId(0), src_at.unsigned_abs()),
            dst: Operand::new(SlotId(1), dst_at.unsigned_abs()),
            dims: Dims { n, h, w, c },
            src_strides: strides4(src),
            dst_strides: strides4(dst),
            src_element: element::U8,
            dst_element: element::U8,
            outer,
            src_outer: src[0],
            dst_outer: dst[0],
            tables: if table { Operand::new(SlotId(2), 0) } else { Operand::default() },
            ..Layout::default()
        };
        let machine = Machine::new(&[src_len, dst_len, 256], Random::new(seed).next());
        let (from, entries, mut expected) = (machine.read(0), machine.read(2), machine.read(1));
        let mut index = [0u32; 5];
        loop {
            let at = |strides: [i64; 5], first: i64| {
                let steps = strides.iter().zip(index).map(|(s, i)| s * i64::from(i));
                usize::try_from(first + steps.sum::<i64>()).unwrap()
            };
            let code = from[at(src, src_at)];
            expected[at(dst, dst_at)] = if table { entries[usize::from(code)] } else { code };
            let Some(axis) = (0..5).rev().find(|&axis| index[axis] + 1 < counts[axis]) else { break };
            index[axis] += 1;
            index[axis + 1..].fill(0);
        }
        for (isa, after) in machine.run_each(&Command::Layout(layout), 1) {
            let wrong = after.iter().zip(&expected).position(|(found, want)| found != want);
            prop_assert_eq!(wrong, None, "{:?}", isa);
        }
    }
}
