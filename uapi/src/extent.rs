//! Which bytes of which slots a command may touch: its operands as byte ranges.
//!
//! The verifier proves them against the slot table when a program is loaded, and the device resolves
//! every operand once, against the memory that is bound, when a command starts. A range is the hull of
//! what the operand's strides reach, pad lanes of feature maps included; holes between rows count.

use crate::addr::{Operand, SlotId};
use crate::command::{
    Command, Conv, Dims, Flags, Layout, MatMul, PAIR_TABLE_BYTES, Pool, Product, Strides, element,
    lanes, record_bytes,
};
use core::ops::Deref;

/// Bytes of a table of the output stage.
pub const TABLE_BYTES: u64 = 256;

/// Bytes of the table of a SOFTMAX.
pub const SHARES_BYTES: u64 = 1024;

/// Bytes of a record of dynamic quantisation.
pub const QUANT_BYTES: u64 = 16;

/// One operand of a command: bytes `start .. start + len` of a slot. `len` is not zero.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Access {
    /// The field of the command that names the operand.
    pub field: &'static str,
    /// The slot.
    pub slot: SlotId,
    /// First byte, from the start of the slot.
    pub start: u64,
    /// Bytes; `start + len` does not overflow.
    pub len: u64,
    /// Whether the command writes the operand; otherwise it reads it.
    pub write: bool,
}

impl Access {
    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Whether both name a byte of the same slot.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.slot == other.slot && self.start < other.end() && other.start < self.end()
    }
}

/// A feature map among the operands of a command, or a matrix seen as one (rows are its pixels).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FeatureMap {
    /// The field of the command that names the operand.
    pub field: &'static str,
    /// Where it begins.
    pub operand: Operand,
    /// Its dimensions.
    pub dims: Dims,
    /// Its strides.
    pub strides: Strides,
    /// Whether the command writes it.
    pub write: bool,
}

/// Why a command's operands are no byte ranges.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtentError {
    /// A dimension or length is zero.
    #[error("`{field}` is zero, it must be at least 1")]
    Zero {
        /// The dimension.
        field: &'static str,
    },
    /// The operand reaches below the start of its slot, or past the end of the address space.
    #[error(
        "operand `{field}` reaches from byte {low} to byte {high} of its slot: no slot has both"
    )]
    Range {
        /// The operand.
        field: &'static str,
        /// Lowest byte.
        low: i128,
        /// One past the highest byte.
        high: i128,
    },
    /// A size that follows from other fields does not fit 64 bits, or cannot be told.
    #[error("the size of operand `{field}` cannot be computed from the dimensions")]
    Size {
        /// The operand.
        field: &'static str,
    },
}

/// The operands of one command, on the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct List<T> {
    items: [T; 8],
    len: usize,
}

/// The byte ranges of one command.
pub type Accesses = List<Access>;

/// The feature maps of one command.
pub type FeatureMaps = List<FeatureMap>;

impl<T> List<T> {
    fn push(&mut self, item: T) {
        self.items[self.len] = item; // CONV has most operands: 7
        self.len += 1;
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items[..self.len]
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = core::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The byte ranges that `command` reads and writes, each operand once.
///
/// Feature maps cover their lanes ([`lanes`]), read or written; LAYOUT's tensors only their elements.
pub fn accesses(command: &Command) -> Result<Accesses, ExtentError> {
    let mut out = Accesses::default();
    nonzero(command)?;
    for map in &feature_maps(command) {
        out.push(map.access()?);
    }
    match command {
        Command::Conv(c) => {
            out.push(flat("weights", c.weights, c.weight_bytes())?);
            out.push(flat("channels", c.channels, Some(record_bytes(c.ofm_c)))?);
            stage_operands(&mut out, c.header.flags(), c.tables, c.quant)?;
        }
        Command::MatMul(c) => {
            out.push(flat("weights", c.weights, c.weight_bytes())?);
            out.push(flat("channels", c.channels, Some(record_bytes(c.n)))?);
            stage_operands(&mut out, c.header.flags(), c.tables, c.quant)?;
        }
        Command::Product(c) => {
            for matrices in [c.matrices_a(), c.matrices_b(), c.matrices_out()] {
                out.push(matrices.access()?);
            }
            stage_operands(&mut out, c.header.flags(), c.tables, Operand::default())?;
        }
        Command::Softmax(c) => out.push(flat("table", c.table, Some(SHARES_BYTES))?),
        Command::Reduce(_) => {}
        Command::Norm(c) => out.push(flat("terms", c.terms, Some(c.terms_bytes()))?),
        Command::Resize(c) => out.push(flat("taps", c.taps, Some(c.tap_bytes()))?),
        Command::Add(c) => stage_operands(&mut out, c.header.flags(), c.tables, c.quant)?,
        Command::Mul(c) => stage_operands(&mut out, c.header.flags(), c.tables, c.quant)?,
        Command::Pool(c) => stage_operands(&mut out, c.header.flags(), c.tables, c.quant)?,
        Command::Table(c) => out.push(flat("table", c.table, Some(TABLE_BYTES))?),
        Command::PairTable(c) => out.push(flat("table", c.table, Some(PAIR_TABLE_BYTES))?),
        Command::ChannelTable(c) => out.push(flat("tables", c.tables, Some(c.table_bytes()))?),
        Command::Layout(c) => {
            out.push(elements(c, false)?);
            out.push(elements(c, true)?);
            stage_operands(&mut out, c.header.flags(), c.tables, c.quant)?;
        }
        Command::Copy(c) => {
            out.push(flat("src", c.src, Some(c.len))?);
            out.push(Access { write: true, ..flat("dst", c.dst, Some(c.len))? });
        }
        Command::Fill(c) => out.push(Access { write: true, ..flat("dst", c.dst, Some(c.len))? }),
        Command::End(_) => {}
    }
    Ok(out)
}

/// The feature maps of `command`, inputs before outputs; PRODUCT, LAYOUT, COPY, FILL and END have
/// none.
pub fn feature_maps(command: &Command) -> FeatureMaps {
    let mut out = FeatureMaps::default();
    match command {
        Command::Conv(c) => {
            out.push(FeatureMap::read("ifm", c.ifm, c.ifm_dims, c.ifm_strides));
            if c.header.flags().contains(Flags::ADD_AUX) {
                out.push(FeatureMap::read("aux", c.aux, c.ofm_dims(), c.aux_strides));
            }
            out.push(FeatureMap::write("ofm", c.ofm, c.ofm_dims(), c.ofm_strides));
        }
        Command::MatMul(c) => {
            let rows = |c_, columns| Dims { n: 1, h: 1, w: c_, c: columns };
            let strides = |pixel| Strides { image: 0, row: 0, pixel };
            out.push(FeatureMap::read("a", c.a, rows(c.m, c.k), strides(c.a_row)));
            if c.header.flags().contains(Flags::ADD_AUX) {
                out.push(FeatureMap::read("aux", c.aux, rows(c.m, c.n), strides(c.aux_row)));
            }
            out.push(FeatureMap::write("out", c.out, rows(c.m, c.n), strides(c.out_row)));
        }
        Command::Add(c) => {
            out.push(FeatureMap::read("a", c.a, c.dims, c.a_strides));
            out.push(FeatureMap::read("b", c.b, c.dims, c.b_strides));
            out.push(FeatureMap::write("out", c.out, c.dims, c.out_strides));
        }
        Command::Mul(c) => {
            out.push(FeatureMap::read("a", c.a, c.dims, c.a_strides));
            out.push(FeatureMap::read("b", c.b, c.dims, c.b_strides));
            out.push(FeatureMap::write("out", c.out, c.dims, c.out_strides));
        }
        Command::Pool(c) => {
            out.push(FeatureMap::read("ifm", c.ifm, c.ifm_dims, c.ifm_strides));
            out.push(FeatureMap::write("ofm", c.ofm, c.ofm_dims(), c.ofm_strides));
        }
        Command::Table(c) => {
            out.push(FeatureMap::read("src", c.src, c.dims, c.src_strides));
            out.push(FeatureMap::write("dst", c.dst, c.dims, c.dst_strides));
        }
        Command::PairTable(c) => {
            out.push(FeatureMap::read("a", c.a, c.dims, c.a_strides));
            out.push(FeatureMap::read("b", c.b, c.dims, c.b_strides));
            out.push(FeatureMap::write("out", c.out, c.dims, c.out_strides));
        }
        Command::ChannelTable(c) => {
            out.push(FeatureMap::read("src", c.src, c.dims, c.src_strides));
            out.push(FeatureMap::write("dst", c.dst, c.dims, c.dst_strides));
        }
        Command::Resize(c) => {
            out.push(FeatureMap::read("ifm", c.ifm, c.ifm_dims, c.ifm_strides));
            out.push(FeatureMap::write("ofm", c.ofm, c.ofm_dims(), c.ofm_strides));
        }
        Command::Softmax(c) => {
            out.push(FeatureMap::read("src", c.src, c.dims, c.src_strides));
            out.push(FeatureMap::write("dst", c.dst, c.dims, c.dst_strides));
        }
        Command::Reduce(c) => {
            out.push(FeatureMap::read("src", c.src, c.dims, c.src_strides));
            out.push(FeatureMap::write("dst", c.dst, c.dst_dims(), c.dst_strides));
        }
        Command::Norm(c) => {
            out.push(FeatureMap::read("src", c.src, c.dims, c.src_strides));
            out.push(FeatureMap::write("dst", c.dst, c.dims, c.dst_strides));
        }
        Command::Product(_)
        | Command::Layout(_)
        | Command::Copy(_)
        | Command::Fill(_)
        | Command::End(_) => {}
    }
    out
}

/// The matrices of one operand of a PRODUCT: loops, and bytes from a turn of each to the next.
#[derive(Clone, Copy, Debug)]
pub struct Matrices {
    field: &'static str,
    operand: Operand,
    loops: [(u32, i64); 4],
    write: bool,
}

impl Matrices {
    /// The bytes they cover.
    pub fn access(&self) -> Result<Access, ExtentError> {
        let access = hull(self.field, self.operand, &self.loops, 1)?;
        Ok(Access { write: self.write, ..access })
    }

    /// Loops, from the outermost, and the stride of each in bytes.
    pub fn loops(&self) -> [(u32, i64); 4] {
        self.loops
    }

    /// Their bytes, each as often as the loops come by; `None` when they are too many to count.
    pub fn bytes(&self) -> Option<u64> {
        self.loops.iter().try_fold(1_u64, |all, &(count, _)| all.checked_mul(count.into()))
    }
}

impl Product {
    /// The left matrices.
    pub fn matrices_a(&self) -> Matrices {
        let rows = [(self.m, self.a_row.into()), (self.k, 1)];
        self.matrices("a", self.a, [self.a_outer, self.a_batch], rows)
    }

    /// The right matrices.
    pub fn matrices_b(&self) -> Matrices {
        let rows = [(self.k, self.b_row.into()), (self.n, self.b_column.into())];
        self.matrices("b", self.b, [self.b_outer, self.b_batch], rows)
    }

    /// The results.
    pub fn matrices_out(&self) -> Matrices {
        let rows = [(self.m, self.out_row.into()), (self.n, 1)];
        let out = self.matrices("out", self.out, [self.out_outer, self.out_batch], rows);
        Matrices { write: true, ..out }
    }

    fn matrices(
        &self,
        field: &'static str,
        operand: Operand,
        [outer, batch]: [i64; 2],
        [rows, columns]: [(u32, i64); 2],
    ) -> Matrices {
        let loops = [(self.outer, outer), (self.batch, batch), rows, columns];
        Matrices { field, operand, loops, write: false }
    }
}

impl Conv {
    /// Dimensions of the output.
    pub fn ofm_dims(&self) -> Dims {
        Dims { n: self.ifm_dims.n, h: self.ofm_h, w: self.ofm_w, c: self.ofm_c }
    }
}

impl Pool {
    /// Dimensions of the output.
    pub fn ofm_dims(&self) -> Dims {
        Dims { h: self.ofm_h, w: self.ofm_w, ..self.ifm_dims }
    }
}

impl FeatureMap {
    fn read(field: &'static str, operand: Operand, dims: Dims, strides: Strides) -> Self {
        Self { field, operand, dims, strides, write: false }
    }

    fn write(field: &'static str, operand: Operand, dims: Dims, strides: Strides) -> Self {
        Self { field, operand, dims, strides, write: true }
    }

    /// Lanes of a pixel, see [`lanes`].
    pub fn lanes(&self) -> u32 {
        lanes(self.dims.c, self.strides.pixel)
    }

    /// The bytes it covers, pad lanes included.
    pub fn access(&self) -> Result<Access, ExtentError> {
        let reach = [
            (self.dims.n, self.strides.image),
            (self.dims.h, self.strides.row.into()),
            (self.dims.w, self.strides.pixel.into()),
        ];
        let access = hull(self.field, self.operand, &reach, self.lanes().into())?;
        Ok(Access { write: self.write, ..access })
    }
}

/// The hull of `base + sum(i * stride)` over all `i < count`, `tail` bytes each.
fn hull(
    field: &'static str,
    operand: Operand,
    reach: &[(u32, i64)],
    tail: u64,
) -> Result<Access, ExtentError> {
    // 128 bits hold a sum of five products of 32 and 64 bits.
    let mut low = i128::from(operand.offset);
    let mut high = low + i128::from(tail);
    for &(count, stride) in reach {
        let last = i128::from(count.saturating_sub(1)) * i128::from(stride);
        if last < 0 {
            low += last;
        } else {
            high += last;
        }
    }
    let range = |_| ExtentError::Range { field, low, high };
    let start = u64::try_from(low).map_err(range)?;
    let end = u64::try_from(high).map_err(range)?;
    if end == start {
        return Err(ExtentError::Zero { field });
    }
    Ok(Access { field, slot: operand.slot, start, len: end - start, write: false })
}

fn flat(field: &'static str, operand: Operand, len: Option<u64>) -> Result<Access, ExtentError> {
    hull(field, operand, &[], len.ok_or(ExtentError::Size { field })?)
}

/// The elements of one side of a LAYOUT.
fn elements(c: &Layout, write: bool) -> Result<Access, ExtentError> {
    let (field, operand, strides, outer, code) = match write {
        true => ("dst", c.dst, &c.dst_strides, c.dst_outer, c.dst_element),
        false => ("src", c.src, &c.src_strides, c.src_outer, c.src_element),
    };
    let reach = [
        (c.repeats(), outer),
        (c.dims.n, strides.image),
        (c.dims.h, strides.row),
        (c.dims.w, strides.pixel),
        (c.dims.c, strides.channel),
    ];
    let bytes = element::bytes(code).ok_or(ExtentError::Size { field })?;
    Ok(Access { write, ..hull(field, operand, &reach, bytes)? })
}

/// Tables that the flags ask for, and the record of dynamic quantisation.
fn stage_operands(
    out: &mut Accesses,
    flags: Flags,
    tables: Operand,
    quant: Operand,
) -> Result<(), ExtentError> {
    let field = "tables";
    let (first, last) = (flags.contains(Flags::TABLE_0), flags.contains(Flags::TABLE_1));
    if first || last {
        let whole = flat(field, tables, Some(TABLE_BYTES * if last { 2 } else { 1 }))?;
        let skip = if first { 0 } else { TABLE_BYTES };
        out.push(Access { start: whole.start + skip, len: whole.len - skip, ..whole });
    }
    if flags.contains(Flags::DYNAMIC) {
        out.push(flat("quant", quant, Some(QUANT_BYTES))?);
    }
    Ok(())
}

/// Every dimension, stride count and length that must not be zero for the command to mean anything.
fn nonzero(command: &Command) -> Result<(), ExtentError> {
    let check = |fields: &[(&'static str, u64)]| match fields.iter().find(|(_, value)| *value == 0)
    {
        Some(&(field, _)) => Err(ExtentError::Zero { field }),
        None => Ok(()),
    };
    let dims = |names: [&'static str; 4], d: &Dims| {
        let [n, h, w, c] = names;
        check(&[(n, d.n.into()), (h, d.h.into()), (w, d.w.into()), (c, d.c.into())])
    };
    const IFM: [&str; 4] = ["ifm_dims.n", "ifm_dims.h", "ifm_dims.w", "ifm_dims.c"];
    const DIMS: [&str; 4] = ["dims.n", "dims.h", "dims.w", "dims.c"];
    match command {
        Command::Conv(c) => {
            dims(IFM, &c.ifm_dims)?;
            check(&[("ofm_h", c.ofm_h.into()), ("ofm_w", c.ofm_w.into())])?;
            check(&[("ofm_c", c.ofm_c.into()), ("groups", c.groups.into())])?;
            let w = &c.window;
            check(&[("window.kernel_h", w.kernel_h.into()), ("window.kernel_w", w.kernel_w.into())])
        }
        Command::MatMul(MatMul { m, n, k, .. }) => {
            check(&[("m", (*m).into()), ("n", (*n).into()), ("k", (*k).into())])
        }
        Command::Pool(c) => {
            dims(IFM, &c.ifm_dims)?;
            check(&[("ofm_h", c.ofm_h.into()), ("ofm_w", c.ofm_w.into())])
        }
        Command::Product(c) => {
            check(&[("outer", c.outer.into()), ("batch", c.batch.into())])?;
            check(&[("m", c.m.into()), ("n", c.n.into()), ("k", c.k.into())])
        }
        Command::Softmax(c) => dims(DIMS, &c.dims),
        Command::Reduce(c) => dims(DIMS, &c.dims),
        Command::Norm(c) => {
            dims(DIMS, &c.dims)?;
            check(&[("terms", c.terms_bytes())])
        }
        Command::Resize(c) => {
            dims(IFM, &c.ifm_dims)?;
            check(&[("ofm_h", c.ofm_h.into()), ("ofm_w", c.ofm_w.into())])
        }
        Command::Add(c) => dims(DIMS, &c.dims),
        Command::Mul(c) => dims(DIMS, &c.dims),
        Command::Table(c) => dims(DIMS, &c.dims),
        Command::PairTable(c) => dims(DIMS, &c.dims),
        Command::ChannelTable(c) => dims(DIMS, &c.dims),
        Command::Layout(c) => dims(DIMS, &c.dims),
        Command::Copy(c) => check(&[("len", c.len)]),
        Command::Fill(c) => check(&[("len", c.len)]),
        Command::End(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{self, Fill, Header, Window, opcode};
    use proptest::prelude::*;

    fn map(offset: u64, dims: Dims, strides: Strides) -> FeatureMap {
        FeatureMap::read("ifm", Operand::new(SlotId(3), offset), dims, strides)
    }

    #[test]
    fn a_feature_map_covers_its_lanes_and_no_more() {
        let dims = Dims { n: 2, h: 3, w: 5, c: 20 };
        let strides = Strides { image: 1000, row: 200, pixel: 32 };
        let access = map(64, dims, strides).access().unwrap();
        assert_eq!((access.start, access.len), (64, 1000 + 2 * 200 + 4 * 32 + 32));
        let packed = Strides { pixel: 20, ..strides };
        let access = map(64, dims, packed).access().unwrap();
        assert_eq!(access.len, 1000 + 2 * 200 + 4 * 20 + 20);
    }

    #[test]
    fn a_negative_stride_reaches_below_the_offset() {
        let dims = Dims { n: 1, h: 4, w: 1, c: 16 };
        let strides = Strides { image: 0, row: -16, pixel: 16 };
        let access = map(48, dims, strides).access().unwrap();
        assert_eq!((access.start, access.len), (0, 64));
        let error = map(47, dims, strides).access().unwrap_err();
        assert_eq!(error, ExtentError::Range { field: "ifm", low: -1, high: 63 });
    }

    #[test]
    fn the_second_table_lies_behind_the_first_even_alone() {
        let conv = Conv {
            header: Header::new(opcode::CONV, 4, Flags::TABLE_1, 0),
            tables: Operand::new(SlotId(1), 100),
            ifm_dims: Dims { n: 1, h: 1, w: 1, c: 4 },
            ofm_h: 1,
            ofm_w: 1,
            ofm_c: 1,
            groups: 1,
            window: Window { kernel_h: 1, kernel_w: 1, ..Window::default() },
            ..Conv::default()
        };
        let all = accesses(&Command::Conv(conv)).unwrap();
        let tables = all.iter().find(|access| access.field == "tables").unwrap();
        assert_eq!((tables.start, tables.len), (356, 256));
        assert_eq!(all.iter().filter(|access| access.write).count(), 1);
    }

    #[test]
    fn a_zero_dimension_is_named() {
        let fill = Fill { len: 0, ..Fill::default() };
        let error = accesses(&Command::Fill(fill)).unwrap_err();
        assert_eq!(error, ExtentError::Zero { field: "len" });
        let conv = Conv { ifm_dims: Dims { n: 1, h: 1, w: 0, c: 1 }, ..Conv::default() };
        let error = accesses(&Command::Conv(conv)).unwrap_err();
        assert_eq!(error, ExtentError::Zero { field: "ifm_dims.w" });
    }

    proptest! {
        /// The hull is what listing every byte gives.
        #[test]
        fn a_hull_is_the_range_of_all_touched_bytes(
            offset in 0u64..2000, n in 1u32..4, h in 1u32..4, w in 1u32..4, c in 1u32..40,
            image in -300i64..300, row in -100i32..100, pixel in -50i32..50,
        ) {
            let map = map(offset, Dims { n, h, w, c }, Strides { image, row, pixel });
            let lanes = i64::from(command::lanes(c, pixel));
            let (mut low, mut high) = (i64::MAX, i64::MIN);
            for (i, y, x) in (0..n).flat_map(|i| (0..h).flat_map(move |y| (0..w).map(move |x| (i, y, x)))) {
                let at = i64::try_from(offset).unwrap() + i64::from(i) * image
                    + i64::from(y) * i64::from(row) + i64::from(x) * i64::from(pixel);
                low = low.min(at);
                high = high.max(at + lanes);
            }
            match map.access() {
                Ok(access) => {
                    prop_assert_eq!(i64::try_from(access.start).unwrap(), low);
                    prop_assert_eq!(i64::try_from(access.end()).unwrap(), high);
                }
                Err(error) => prop_assert_eq!(
                    error,
                    ExtentError::Range { field: "ifm", low: low.into(), high: high.into() }
                ),
            }
        }

        #[test]
        fn the_largest_fields_overflow_nothing(image: i64, row: i32, pixel: i32, offset: u64) {
            let d = u32::MAX;
            let _ = map(offset, Dims { n: d, h: d, w: d, c: d }, Strides { image, row, pixel }).access();
        }
    }
}
