//! ADD, MUL, TABLE, PAIR_TABLE, CHANNEL_TABLE and LAYOUT, element by element.

use super::machine::{Machine, Random, Shape, style};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    self, Add, Command, Dims, Flags, Header, Layout, Mul, Strides, Strides4, element, opcode,
};
use npu_uapi::requantise::{self, AddTerms, MulTerms};
use proptest::prelude::*;

fn dims() -> impl Strategy<Value = Dims> {
    (1u32..3, 1u32..12, 1u32..40, 1u32..150).prop_map(|(n, h, w, c)| Dims { n, h, w, c })
}

/// Layouts of four dimensions: the order in which they lie, from the outermost, and gaps.
#[derive(Clone, Copy, Debug)]
struct Order {
    order: [usize; 4],
    gap: u8,
}

fn order() -> impl Strategy<Value = Order> {
    let any = Just([0usize, 1, 2, 3]).prop_shuffle();
    let order = prop_oneof![2 => Just([0, 1, 2, 3]), 2 => Just([0, 3, 1, 2]), 1 => any];
    (order, prop_oneof![2 => Just(0u8), 1 => 1u8..3]).prop_map(|(order, gap)| Order { order, gap })
}

impl Order {
    /// Strides, and bytes in all. Gaps widen what the last but one dimension of the order steps by.
    fn strides(self, dims: Dims, bytes: i64) -> (Strides4, usize) {
        let counts = [dims.n, dims.h, dims.w, dims.c];
        let (mut strides, mut step) = ([0; 4], bytes);
        for (depth, &axis) in self.order.iter().enumerate().rev() {
            strides[axis] = step;
            step *= i64::from(counts[axis]);
            if depth == 3 {
                step += i64::from(self.gap) * bytes;
            }
        }
        let last = |axis: usize| i64::from(counts[axis] - 1) * strides[axis];
        let len = (0..4).map(last).sum::<i64>() + bytes;
        let [image, row, pixel, channel] = strides;
        (Strides4 { image, row, pixel, channel }, usize::try_from(len).unwrap())
    }
}

fn index(s: &Strides4, [n, y, x, ch]: [u32; 4]) -> usize {
    let at = i64::from(n) * s.image
        + i64::from(y) * s.row
        + i64::from(x) * s.pixel
        + i64::from(ch) * s.channel;
    usize::try_from(at).unwrap()
}

fn check_layout(
    dims: Dims,
    orders: [Order; 2],
    kinds: (u8, u8),
    seed: u64,
) -> Result<(), TestCaseError> {
    let r = &mut Random::new(seed);
    let bytes = |kind| i64::try_from(element::bytes(kind).unwrap()).unwrap();
    let (src, src_len) = orders[0].strides(dims, bytes(kinds.0));
    let (dst, dst_len) = orders[1].strides(dims, bytes(kinds.1));
    let converts = kinds.0 != kinds.1;
    let machine = Machine::new(&[src_len, dst_len], seed);
    if kinds.0 == element::F32 {
        let value = |r: &mut Random| ((r.scale() - 1.0) * 120.0).to_le_bytes();
        let values: Vec<u8> = (0..src_len / 4).flat_map(|_| value(r)).collect();
        machine.write(0, &values);
    }
    let layout = Layout {
        header: Header::new(opcode::LAYOUT, 3, Flags::empty(), 0),
        src: Operand::new(SlotId(0), 0),
        dst: Operand::new(SlotId(1), 0),
        dims,
        src_strides: src,
        dst_strides: dst,
        src_element: kinds.0,
        dst_element: kinds.1,
        zero_point: if converts { r.byte().into() } else { 0 },
        scale: if converts { r.scale() } else { 0.0 },
        ..Layout::default()
    };
    let zero_point = u8::try_from(layout.zero_point).unwrap();
    let from = machine.read(0);
    let mut expected = machine.read(1);
    let float = |at: usize| f32::from_le_bytes(from[at..at + 4].try_into().unwrap());
    for at in (0..dims.n).flat_map(|n| {
        (0..dims.h).flat_map(move |y| {
            (0..dims.w).flat_map(move |x| (0..dims.c).map(move |ch| [n, y, x, ch]))
        })
    }) {
        let (i, o) = (index(&src, at), index(&dst, at));
        match kinds {
            (element::F32, element::U8) => {
                expected[o] = requantise::quantise(float(i), layout.scale, zero_point);
            }
            (element::U8, element::F32) => {
                let value = requantise::dequantise(from[i], layout.scale, zero_point);
                expected[o..o + 4].copy_from_slice(&value.to_le_bytes());
            }
            (element::U8, _) => expected[o] = from[i],
            _ => expected[o..o + 4].copy_from_slice(&from[i..i + 4]),
        }
    }
    for (isa, after) in machine.run_each(&Command::Layout(layout), 1) {
        let wrong = after.iter().zip(&expected).position(|(found, want)| found != want);
        prop_assert_eq!(wrong, None, "{:?}", isa);
    }
    Ok(())
}

/// Images of few channels, and rows longer than the piece that a kernel takes at a time.
fn layout_dims() -> impl Strategy<Value = Dims> {
    let image = (1u32..3, 1u32..4, 1u32..70, 1u32..6);
    let long = (4000u32..9000, 1u32..4, any::<bool>());
    let long = long.prop_map(|(long, few, wide)| {
        let (w, c) = if wide { (long, few) } else { (few, long) };
        Dims { n: 1, h: 1, w, c }
    });
    prop_oneof![
        4 => dims(),
        4 => image.prop_map(|(n, h, w, c)| Dims { n, h, w, c }),
        1 => long,
    ]
}

/// `shape` repeated over pixels; over rows and images too, where `over` says so.
fn repeated(shape: Shape, over: u8) -> Shape {
    let Strides { image, row, pixel } = shape.strides;
    let strides = match over {
        0 => shape.strides,
        1 => Strides { image, row, pixel: 0 },
        2 => Strides { image, row: 0, pixel: 0 },
        3 => Strides { image: 0, row, pixel },
        _ => Strides { image: 0, row: 0, pixel: 0 },
    };
    Shape { strides, ..shape }
}

proptest! {
    #[test]
    fn layouts_equal_the_oracle(
        dims in layout_dims(),
        orders in [order(), order()], from in 1u8..3, to in 1u8..3, seed: u64,
    ) {
        check_layout(dims, orders, (from, to), seed)?;
    }

    #[test]
    fn sums_equal_the_definition(
        dims in dims(), styles in [style(), style(), style()], same in any::<bool>(),
        in_place in any::<bool>(), table in any::<bool>(), over in 0u8..9, seed: u64,
    ) {
        let r = &mut Random::new(seed);
        let [a, b, out] = styles.map(|style| (if same { styles[0] } else { style }).shape(dims, 1));
        let a = repeated(a, if over < 5 { over } else { 0 });
        let in_place = same && in_place;
        let out_slot = if in_place { 1 } else { 2 };
        let terms = AddTerms {
            first: r.scale() - 0.5,
            second: r.scale() - 0.5,
            offset: (r.scale() - 1.0) * 100.0,
        };
        let (low, high) = if r.below(2) == 0 { (0, 255) } else { (10, 240) };
        let add = Add {
            header: Header::new(opcode::ADD, 3, if table { Flags::TABLE_0 } else { Flags::empty() }, 0),
            a: a.operand(0),
            b: b.operand(1),
            out: out.operand(out_slot),
            tables: if table { Operand::new(SlotId(3), 0) } else { Operand::default() },
            dims,
            a_strides: a.strides,
            b_strides: b.strides,
            out_strides: out.strides,
            first: terms.first,
            second: terms.second,
            offset: terms.offset,
            clamp_low: low,
            clamp_high: high,
            ..Add::default()
        };
        let machine = Machine::new(&[a.len, b.len, out.len, 256], seed);
        let (x, y, tables) = (machine.read(0), machine.read(1), machine.read(3));
        let before = machine.read(out_slot.into());
        let expected = |[n, row, column]: [u32; 3], ch: u32| {
            let ch = usize::try_from(ch).unwrap();
            let (p, q) = (x[a.at(n, row, column) + ch], y[b.at(n, row, column) + ch]);
            let code = requantise::add(p, q, terms).clamp(low, high);
            if table { tables[usize::from(code)] } else { code }
        };
        for (isa, after) in machine.run_each(&Command::Add(add), out_slot.into()) {
            out.check(&before, &after, &expected)
                .map_err(|error| TestCaseError::fail(format!("{isa:?}: {error}")))?;
        }
    }

    #[test]
    fn products_equal_the_definition(
        dims in dims(), styles in [style(), style(), style()], same in any::<bool>(),
        in_place in any::<bool>(), table in any::<bool>(), over in 0u8..9, seed: u64,
    ) {
        let r = &mut Random::new(seed);
        let [a, b, out] = styles.map(|style| (if same { styles[0] } else { style }).shape(dims, 1));
        let b = repeated(b, if over < 5 { over } else { 0 });
        let in_place = same && in_place;
        let out_slot = if in_place { 0 } else { 2 };
        let terms = MulTerms {
            multiplier: (r.scale() - 0.5) / 64.0,
            first_zero_point: r.byte(),
            second_zero_point: r.byte(),
            zero_point: r.byte(),
        };
        let (low, high) = if r.below(2) == 0 { (0, 255) } else { (10, 240) };
        let mul = Mul {
            header: Header::new(opcode::MUL, 3, if table { Flags::TABLE_0 } else { Flags::empty() }, 0),
            a: a.operand(0),
            b: b.operand(1),
            out: out.operand(out_slot),
            tables: if table { Operand::new(SlotId(3), 0) } else { Operand::default() },
            dims,
            a_strides: a.strides,
            b_strides: b.strides,
            out_strides: out.strides,
            multiplier: terms.multiplier,
            first_zero_point: terms.first_zero_point,
            second_zero_point: terms.second_zero_point,
            zero_point: terms.zero_point,
            clamp_low: low,
            clamp_high: high,
            ..Mul::default()
        };
        let machine = Machine::new(&[a.len, b.len, out.len, 256], seed);
        let (x, y, tables) = (machine.read(0), machine.read(1), machine.read(3));
        let before = machine.read(out_slot.into());
        let expected = |[n, row, column]: [u32; 3], ch: u32| {
            let ch = usize::try_from(ch).unwrap();
            let (p, q) = (x[a.at(n, row, column) + ch], y[b.at(n, row, column) + ch]);
            let code = requantise::multiply(p, q, terms).clamp(low, high);
            if table { tables[usize::from(code)] } else { code }
        };
        for (isa, after) in machine.run_each(&Command::Mul(mul), out_slot.into()) {
            out.check(&before, &after, &expected)
                .map_err(|error| TestCaseError::fail(format!("{isa:?}: {error}")))?;
        }
    }

    #[test]
    fn tables_are_looked_up(
        dims in dims(), styles in [style(), style()], same in any::<bool>(),
        in_place in any::<bool>(), seed: u64,
    ) {
        let [src, dst] = styles.map(|style| (if same { styles[0] } else { style }).shape(dims, 1));
        let out_slot = if same && in_place { 0 } else { 1 };
        let table = command::Table {
            header: Header::new(opcode::TABLE, 2, Flags::empty(), 0),
            src: src.operand(0),
            dst: dst.operand(out_slot),
            table: Operand::new(SlotId(2), 0),
            dims,
            src_strides: src.strides,
            dst_strides: dst.strides,
            ..command::Table::default()
        };
        let machine = Machine::new(&[src.len, dst.len, 256], seed);
        let (from, entries) = (machine.read(0), machine.read(2));
        let before = machine.read(out_slot.into());
        let expected = |[n, y, x]: [u32; 3], ch: u32| {
            entries[usize::from(from[src.at(n, y, x) + usize::try_from(ch).unwrap()])]
        };
        for (isa, after) in machine.run_each(&Command::Table(table), out_slot.into()) {
            dst.check(&before, &after, &expected)
                .map_err(|error| TestCaseError::fail(format!("{isa:?}: {error}")))?;
        }
    }

    #[test]
    fn pairs_are_looked_up(
        dims in dims(), styles in [style(), style(), style()], same in any::<bool>(),
        in_place in any::<bool>(), over in 0u8..9, seed: u64,
    ) {
        let [a, b, out] = styles.map(|style| (if same { styles[0] } else { style }).shape(dims, 1));
        let b = repeated(b, if over < 5 { over } else { 0 });
        let out_slot = if same && in_place { 0 } else { 2 };
        let pairs = command::PairTable {
            header: Header::new(opcode::PAIR_TABLE, 3, Flags::empty(), 0),
            a: a.operand(0),
            b: b.operand(1),
            out: out.operand(out_slot),
            table: Operand::new(SlotId(3), 0),
            dims,
            a_strides: a.strides,
            b_strides: b.strides,
            out_strides: out.strides,
            ..command::PairTable::default()
        };
        // No byte more than the table has, so that a read behind it faults.
        let machine = Machine::new(&[a.len, b.len, out.len, 1 << 16], seed);
        let (x, y, table) = (machine.read(0), machine.read(1), machine.read(3));
        let before = machine.read(out_slot.into());
        let expected = |[n, row, column]: [u32; 3], ch: u32| {
            let ch = usize::try_from(ch).unwrap();
            let (p, q) = (x[a.at(n, row, column) + ch], y[b.at(n, row, column) + ch]);
            table[usize::from(p) * 256 + usize::from(q)]
        };
        for (isa, after) in machine.run_each(&Command::PairTable(pairs), out_slot.into()) {
            out.check(&before, &after, &expected)
                .map_err(|error| TestCaseError::fail(format!("{isa:?}: {error}")))?;
        }
    }

    #[test]
    fn each_channel_has_its_table(
        dims in dims(), styles in [style(), style()], same in any::<bool>(),
        in_place in any::<bool>(), seed: u64,
    ) {
        let [src, dst] = styles.map(|style| (if same { styles[0] } else { style }).shape(dims, 1));
        let out_slot = if same && in_place { 0 } else { 1 };
        let tables = command::ChannelTable {
            header: Header::new(opcode::CHANNEL_TABLE, 2, Flags::empty(), 0),
            src: src.operand(0),
            dst: dst.operand(out_slot),
            tables: Operand::new(SlotId(2), 0),
            dims,
            src_strides: src.strides,
            dst_strides: dst.strides,
            ..command::ChannelTable::default()
        };
        let bytes = usize::try_from(tables.table_bytes()).unwrap();
        let machine = Machine::new(&[src.len, dst.len, bytes], seed);
        let (from, entries) = (machine.read(0), machine.read(2));
        let before = machine.read(out_slot.into());
        let expected = |[n, y, x]: [u32; 3], ch: u32| {
            let ch = usize::try_from(ch).unwrap();
            entries[256 * ch + usize::from(from[src.at(n, y, x) + ch])]
        };
        for (isa, after) in machine.run_each(&Command::ChannelTable(tables), out_slot.into()) {
            dst.check(&before, &after, &expected)
                .map_err(|error| TestCaseError::fail(format!("{isa:?}: {error}")))?;
        }
    }
}
