//! Which programs a device may run: every access proven in bounds, every geometry sane, all work bounded.
//!
//! The same code is linked into compiler, driver and device. What it accepts cannot make the device
//! touch memory outside the program's slots, divide by zero or run without bound, whatever the bytes in
//! those slots are. It does not judge whether the results make sense.

mod rule;

pub use rule::{Refusal, Rule};

use crate::command::{
    Command, Conv, Dims, Flags, Layout, Pool, Strides, UNIT_BYTES, Window, element, pool_kind,
};
use crate::extent::{self, Access, Accesses, ExtentError, FeatureMap};
use crate::image::{Image, SlotDecl, slot_kind};
use crate::limits::{Features, Limits};
use crate::queue::access::{READ, WRITE};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

/// A program that passed [`verify`]; nothing else makes one.
#[derive(Clone, Debug)]
pub struct Verified {
    commands: Vec<Command>,
    slots: Vec<SlotDecl>,
    used: Vec<u8>,
    macs: u64,
    traffic: u64,
}

impl Verified {
    /// The commands, END included.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// The slot table.
    pub fn slots(&self) -> &[SlotDecl] {
        &self.slots
    }

    /// [`crate::queue::access`] bits that the commands make use of, by slot.
    pub fn used(&self) -> &[u8] {
        &self.used
    }

    /// Multiply-accumulates of one run.
    pub fn macs(&self) -> u64 {
        self.macs
    }

    /// Bytes of one run, each operand of a command counted once.
    pub fn traffic(&self) -> u64 {
        self.traffic
    }
}

/// Checks `image` against every [`Rule`] for a device of `limits`.
pub fn verify(image: &Image, limits: &Limits) -> Result<Verified, Refusal> {
    whole(image, limits)?;
    slot_table(&image.slots, limits)?;
    let mut program = Verified {
        commands: image.commands.clone(),
        slots: image.slots.clone(),
        used: image.slots.iter().map(|_| 0).collect(),
        macs: 0,
        traffic: 0,
    };
    let mut work = 0u64;
    for (index, command) in image.commands.iter().enumerate() {
        let last = index + 1 == image.commands.len();
        let at = |refusal: Refusal| refusal.at(index, command);
        if matches!(command, Command::End(_)) != last {
            let found = if last { "the last command is another" } else { "more commands follow" };
            return Err(at(Refusal::new(Rule::End, "opcode", found.into())));
        }
        let accesses = one(command, image).map_err(at)?;
        for access in &accesses {
            program.used[access.slot.index()] |= if access.write { WRITE } else { READ };
        }
        let operations = bounded_work(command, limits).map_err(at)?;
        work = add("work", work, operations, limits.program_macs, Rule::ProgramWork).map_err(at)?;
        program.macs += if matches!(command, Command::Pool(_)) { 0 } else { operations };
        let moved = moved_bytes(command, &accesses).map_err(at)?;
        let (bound, rule) = (limits.program_traffic, Rule::ProgramTraffic);
        program.traffic = add("traffic", program.traffic, moved, bound, rule).map_err(at)?;
    }
    Ok(program)
}

/// `sum + more`, as long as that keeps `bound`.
fn add(field: &'static str, sum: u64, more: u64, bound: u64, rule: Rule) -> Result<u64, Refusal> {
    match sum.checked_add(more) {
        Some(total) if total <= bound => Ok(total),
        _ => Err(Refusal::new(
            rule,
            field,
            format!("{more} more than the {sum} so far pass the bound of {bound}"),
        )),
    }
}

/// What concerns the image as a whole.
fn whole(image: &Image, limits: &Limits) -> Result<(), Refusal> {
    let (found, device) = (image.isa_version(), limits.isa_version);
    if limits.isa_major() != found >> 16 || device < found {
        let found = format!("the program has {found:#x}, the device {device:#x}");
        return Err(Refusal::new(Rule::IsaVersion, "isa_version", found));
    }
    let lacking = image.features & !(limits.features & Features::all().bits());
    if lacking != 0 {
        let found = format!("the device lacks features {lacking:#x}");
        return Err(Refusal::new(Rule::Features, "features", found));
    }
    if image.commands.len() as u64 > limits.commands.into() {
        let found = format!("{} commands, bound {}", image.commands.len(), limits.commands);
        return Err(Refusal::new(Rule::CommandCount, "commands", found));
    }
    if image.slots.len() as u64 > u64::from(limits.slots.min(256)) {
        let found = format!("{} slots, bound {}", image.slots.len(), limits.slots.min(256));
        return Err(Refusal::new(Rule::SlotCount, "slots", found));
    }
    let table = (image.slots.len() as u64 * 16).next_multiple_of(UNIT_BYTES as u64);
    let commands: u64 = image.commands.iter().map(|c| crate::encode::command(c).len() as u64).sum();
    let bytes = 64 + table + commands;
    if bytes > limits.program_bytes {
        let found = format!("{bytes} bytes, bound {}", limits.program_bytes);
        return Err(Refusal::new(Rule::ImageSize, "command_bytes", found));
    }
    if image.commands.is_empty() {
        return Err(Refusal::new(Rule::End, "commands", "there is no command".into()));
    }
    Ok(())
}

fn slot_table(slots: &[SlotDecl], limits: &Limits) -> Result<(), Refusal> {
    let mut sram = 0u64;
    for (slot, decl) in slots.iter().enumerate() {
        let wrong = decl.kind > slot_kind::OUTPUT
            || decl.reserved != [0; 7]
            || (decl.kind == slot_kind::UNUSED && decl.len != 0);
        if wrong {
            let found = format!("slot {slot} has kind {} and {} bytes", decl.kind, decl.len);
            return Err(Refusal::new(Rule::SlotDeclaration, "slots", found));
        }
        if decl.kind == slot_kind::SRAM {
            sram = add("slots", sram, decl.len, limits.sram_bytes, Rule::SramSize)?;
        }
    }
    Ok(())
}

/// Everything about one command but its work; its accesses when all is well.
fn one(command: &Command, image: &Image) -> Result<Accesses, Refusal> {
    well_formed(command)?;
    let dynamic = command.header().flags().contains(Flags::DYNAMIC);
    if dynamic && image.features & Features::DYNAMIC_QUANT.bits() == 0 {
        let found = "DYNAMIC is set, the image does not ask for the feature".into();
        return Err(Refusal::new(Rule::Features, "flags", found));
    }
    let accesses = extent::accesses(command).map_err(|error| {
        let (rule, field) = match error {
            ExtentError::Zero { field } => (Rule::Dimension, field),
            ExtentError::Range { field, .. } => (Rule::OperandRange, field),
            ExtentError::Size { field } => (Rule::OperandSize, field),
        };
        Refusal::new(rule, field, error.to_string())
    })?;
    for access in &accesses {
        in_slot(access, &image.slots)?;
    }
    let maps = extent::feature_maps(command);
    for map in &maps {
        pixel_stride(command, map)?;
    }
    match command {
        Command::Conv(conv) => convolution(conv)?,
        Command::MatMul(product) => {
            multiple_of_4("a_row", product.a_row)?;
        }
        Command::Pool(pool) => pooling(pool)?,
        Command::Layout(layout) => {
            let size = element::bytes(layout.dst_element).unwrap_or(1);
            let (dims, strides) = (layout.dims, layout.dst_strides);
            let steps = [
                (layout.repeats(), layout.dst_outer),
                (dims.n, strides.image),
                (dims.h, strides.row),
                (dims.w, strides.pixel),
                (dims.c, strides.channel),
            ];
            disjoint("dst_strides", steps, size)?;
        }
        Command::Product(product) => disjoint("out_row", product.matrices_out().loops(), 1)?,
        _ => {}
    }
    for map in maps.iter().filter(|map| map.write) {
        let Strides { image, row, pixel } = map.strides;
        let Dims { n, h, w, .. } = map.dims;
        let steps = [(n, image), (h, row.into()), (w, pixel.into())];
        disjoint(map.field, steps, map.lanes().into())?;
    }
    apart(command, &accesses, &maps)?;
    Ok(accesses)
}

/// A hand-built command must be what its own bytes decode to: flags, reserved fields, enumerations.
fn well_formed(command: &Command) -> Result<(), Refusal> {
    let refuse = |found| Refusal::new(Rule::Malformed, "header", found);
    match crate::decode::command(crate::encode::command(command), 0) {
        Ok((decoded, _))
            if core::mem::discriminant(&decoded) == core::mem::discriminant(command) =>
        {
            Ok(())
        }
        Ok((decoded, _)) => Err(refuse(format!("the opcode says {}", decoded.name()))),
        Err(error) => Err(refuse(error.to_string())),
    }
}

fn in_slot(access: &Access, slots: &[SlotDecl]) -> Result<(), Refusal> {
    let refuse = |rule, found| Err(Refusal::new(rule, access.field, found).of(*access));
    let Some(decl) = slots.get(access.slot.index()).filter(|d| d.kind != slot_kind::UNUSED) else {
        return refuse(Rule::UnknownSlot, format!("the program has {} slots", slots.len()));
    };
    let need = if access.write { WRITE } else { READ };
    if decl.access() & need == 0 {
        return refuse(Rule::SlotAccess, format!("a write, and the slot has kind {}", decl.kind));
    }
    if access.end() > decl.len {
        return refuse(Rule::SlotLength, format!("the slot has {} bytes", decl.len));
    }
    Ok(())
}

fn pixel_stride(command: &Command, map: &FeatureMap) -> Result<(), Refusal> {
    let (found, channels) = (map.strides.pixel, map.dims.c);
    let of_pairs = matches!(command, Command::Add(_) | Command::Mul(_) | Command::PairTable(_));
    let repeats = !map.write && of_pairs;
    if found.unsigned_abs() >= channels || (repeats && found == 0) {
        return Ok(());
    }
    let found = format!("stride {found} with {channels} channels");
    Err(Refusal::new(Rule::PixelStride, map.field, found))
}

fn multiple_of_4(field: &'static str, stride: i32) -> Result<(), Refusal> {
    if stride % 4 == 0 {
        return Ok(());
    }
    Err(Refusal::new(Rule::InputStride, field, format!("stride {stride}")))
}

fn convolution(conv: &Conv) -> Result<(), Refusal> {
    multiple_of_4("ifm_strides.pixel", conv.ifm_strides.pixel)?;
    let (groups, inputs, outputs) = (conv.groups, conv.ifm_dims.c, conv.ofm_c);
    if inputs % groups != 0 || outputs % groups != 0 {
        let found = format!("{groups} groups, {inputs} input and {outputs} output channels");
        return Err(Refusal::new(Rule::Groups, "groups", found));
    }
    window(&conv.window, &conv.ifm_dims, conv.ofm_h, conv.ofm_w, 0, 0)
}

fn pooling(pool: &Pool) -> Result<(), Refusal> {
    if !pool_kind::is_global(pool.kind) {
        let (bottom, right) = (pool.pad_bottom, pool.pad_right);
        return window(&pool.window, &pool.ifm_dims, pool.ofm_h, pool.ofm_w, bottom, right);
    }
    if pool.ofm_h != 1 || pool.ofm_w != 1 {
        let found = format!("{} by {}", pool.ofm_h, pool.ofm_w);
        return Err(Refusal::new(Rule::GlobalOutput, "ofm_h", found));
    }
    let pixels = u64::from(pool.ifm_dims.h) * u64::from(pool.ifm_dims.w);
    if pixels > u64::from(i32::MAX.unsigned_abs() / 255) {
        return Err(Refusal::new(Rule::GlobalSum, "ifm_dims", format!("{pixels} pixels")));
    }
    Ok(())
}

/// Each output position's window meets the padded input, so padding and output are of sane size.
fn window(
    window: &Window,
    input: &Dims,
    ofm_h: u32,
    ofm_w: u32,
    pad_bottom: u16,
    pad_right: u16,
) -> Result<(), Refusal> {
    let w = window;
    axis(
        ["window.kernel_h", "window.pad_top", "ofm_h"],
        [w.kernel_h, w.stride_h, w.dilation_h],
        [w.pad_top, pad_bottom],
        [input.h, ofm_h],
    )?;
    axis(
        ["window.kernel_w", "window.pad_left", "ofm_w"],
        [w.kernel_w, w.stride_w, w.dilation_w],
        [w.pad_left, pad_right],
        [input.w, ofm_w],
    )
}

/// One axis of a window: its fields, `[kernel, stride, dilation]`, `[pad before, pad after]`,
/// `[input, output]`.
fn axis(
    fields: [&'static str; 3],
    [kernel, stride, dilation]: [u16; 3],
    pads: [u16; 2],
    [input, output]: [u32; 2],
) -> Result<(), Refusal> {
    if kernel == 0 || stride == 0 || dilation == 0 {
        let found = format!("kernel {kernel}, stride {stride}, dilation {dilation}");
        return Err(Refusal::new(Rule::WindowStep, fields[0], found));
    }
    let reach = (u64::from(kernel) - 1) * u64::from(dilation) + 1;
    if pads.iter().any(|&pad| u64::from(pad) >= reach) {
        let found = format!("pads {pads:?}, dilated kernel {reach}");
        return Err(Refusal::new(Rule::WindowPad, fields[1], found));
    }
    let last = (u64::from(output) - 1) * u64::from(stride);
    if last >= u64::from(input) + u64::from(pads[0]) {
        let found = format!(
            "{output} outputs at stride {stride} begin {last} behind the padding, input {input}, pad {}",
            pads[0]
        );
        return Err(Refusal::new(Rule::WindowOutput, fields[2], found));
    }
    Ok(())
}

/// No two elements of a written tensor share a byte, if each step clears what the smaller ones span.
fn disjoint<const N: usize>(
    field: &'static str,
    mut steps: [(u32, i64); N],
    element: u64,
) -> Result<(), Refusal> {
    steps.sort_unstable_by_key(|(_, stride)| stride.unsigned_abs());
    let mut span = u128::from(element);
    for (count, stride) in steps.into_iter().filter(|(count, _)| *count > 1) {
        let stride = u128::from(stride.unsigned_abs());
        if stride < span {
            let found = format!("a step of {stride} bytes within {span} bytes of elements");
            return Err(Refusal::new(Rule::SelfOverlap, field, found));
        }
        span += u128::from(count - 1) * stride;
    }
    Ok(())
}

/// No result overlaps an input, unless the command may work in place and does so exactly.
fn apart(command: &Command, accesses: &Accesses, maps: &[FeatureMap]) -> Result<(), Refusal> {
    let may_alias = matches!(
        command,
        Command::Add(_)
            | Command::Mul(_)
            | Command::Table(_)
            | Command::PairTable(_)
            | Command::ChannelTable(_)
            | Command::Softmax(_)
            | Command::Norm(_)
    );
    let map_of = |access: &Access| maps.iter().find(|map| map.field == access.field);
    for write in accesses.iter().filter(|access| access.write) {
        for read in accesses.iter().filter(|access| !access.write && access.overlaps(write)) {
            let in_place = match (map_of(write), map_of(read)) {
                (Some(result), Some(input)) if may_alias => {
                    result.operand == input.operand && result.strides == input.strides
                }
                _ => false,
            };
            if !in_place {
                let found = format!(
                    "it overlaps input `{}` at {:?}+{:#x}, {} bytes",
                    read.field, read.slot, read.start, read.len
                );
                return Err(Refusal::new(Rule::InputOverlap, write.field, found).of(*write));
            }
        }
    }
    Ok(())
}

/// Multiply-accumulates of CONV, MATMUL and PRODUCT, taps of POOL, zero otherwise.
fn bounded_work(command: &Command, limits: &Limits) -> Result<u64, Refusal> {
    let operations = command.operations();
    match operations {
        Some(operations) if operations <= limits.command_macs => Ok(operations),
        _ => Err(Refusal::new(
            Rule::CommandWork,
            "work",
            match operations {
                Some(found) => format!("{found} operations, bound {}", limits.command_macs),
                None => format!("2^64 operations or more, bound {}", limits.command_macs),
            },
        )),
    }
}

impl Command {
    /// Multiply-accumulates of CONV, MATMUL and PRODUCT, padding included; taps of POOL; zero for the rest.
    /// `None` when the count does not fit 64 bits.
    pub fn operations(&self) -> Option<u64> {
        let product = |factors: &[u32]| {
            factors.iter().try_fold(1u64, |product, &factor| product.checked_mul(factor.into()))
        };
        match self {
            Self::Conv(c) => {
                let inputs = c.ifm_dims.c.checked_div(c.groups)?;
                let (kh, kw) = (c.window.kernel_h.into(), c.window.kernel_w.into());
                product(&[c.ifm_dims.n, c.ofm_h, c.ofm_w, c.ofm_c, kh, kw, inputs])
            }
            Self::MatMul(c) => product(&[c.m, c.n, c.k]),
            Self::Product(c) => product(&[c.outer, c.batch, c.m, c.n, c.k]),
            Self::Pool(c) if pool_kind::is_global(c.kind) => {
                product(&[c.ifm_dims.n, c.ifm_dims.h, c.ifm_dims.w, c.ifm_dims.c])
            }
            Self::Pool(c) => {
                let (kh, kw) = (c.window.kernel_h.into(), c.window.kernel_w.into());
                product(&[c.ifm_dims.n, c.ofm_h, c.ofm_w, c.ifm_dims.c, kh, kw])
            }
            _ => Some(0),
        }
    }
}

/// Bytes that a command moves, each element of each operand once. A broadcast input counts as often as
/// it is read, so a program cannot hide work behind a zero stride.
fn moved_bytes(command: &Command, accesses: &Accesses) -> Result<u64, Refusal> {
    let maps = extent::feature_maps(command);
    let mut total = 0u64;
    for access in accesses {
        let elements = match (maps.iter().find(|map| map.field == access.field), command) {
            (Some(map), _) => volume(&map.dims, map.lanes().into()),
            (None, Command::Layout(c)) if matches!(access.field, "src" | "dst") => {
                layout_bytes(c, access.write)
            }
            (None, Command::Product(c)) => match access.field {
                "a" => c.matrices_a().bytes(),
                "b" => c.matrices_b().bytes(),
                "out" => c.matrices_out().bytes(),
                _ => Some(access.len),
            },
            _ => Some(access.len),
        };
        let bytes = elements.and_then(|bytes| total.checked_add(bytes));
        total = bytes.ok_or_else(|| {
            let found = "more than 2^64 bytes".into();
            Refusal::new(Rule::ProgramTraffic, access.field, found).of(*access)
        })?;
    }
    Ok(total)
}

fn volume(dims: &Dims, pixel_bytes: u64) -> Option<u64> {
    let pixels = u64::from(dims.n).checked_mul(dims.h.into())?.checked_mul(dims.w.into())?;
    pixels.checked_mul(pixel_bytes)
}

fn layout_bytes(c: &Layout, write: bool) -> Option<u64> {
    let element = element::bytes(if write { c.dst_element } else { c.src_element })?;
    volume(&c.dims, u64::from(c.dims.c).checked_mul(element)?)?.checked_mul(c.repeats().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Operand, SlotId};
    use crate::command::{self, End, Fill, Header, MatMul, Stage, Table, opcode};
    use alloc::vec;

    const SCRATCH: SlotId = SlotId(0);
    const CONSTANT: SlotId = SlotId(1);

    fn end() -> Command {
        Command::End(End {
            header: Header::new(opcode::END, 1, Flags::empty(), 9),
            ..End::default()
        })
    }

    fn image(command: Command) -> Image {
        let slots = vec![
            SlotDecl::new(slot_kind::SCRATCH, 1 << 16),
            SlotDecl::new(slot_kind::CONSTANT, 1 << 16),
        ];
        Image { features: 0, slots, commands: vec![command, end()] }
    }

    fn conv() -> Conv {
        Conv {
            header: Header::new(opcode::CONV, 4, Flags::empty(), 7),
            ifm: Operand::new(SCRATCH, 0),
            weights: Operand::new(CONSTANT, 0),
            channels: Operand::new(CONSTANT, 0x8000),
            ofm: Operand::new(SCRATCH, 0x8000),
            ifm_dims: Dims { n: 1, h: 8, w: 8, c: 16 },
            ofm_h: 8,
            ofm_w: 8,
            ofm_c: 16,
            groups: 1,
            ifm_strides: Strides { image: 1024, row: 128, pixel: 16 },
            ofm_strides: Strides { image: 1024, row: 128, pixel: 16 },
            window: Window {
                kernel_h: 3,
                kernel_w: 3,
                stride_h: 1,
                stride_w: 1,
                dilation_h: 1,
                dilation_w: 1,
                pad_top: 1,
                pad_left: 1,
            },
            stage: Stage { clamp_high: 255, ..Stage::default() },
            ..Conv::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut Conv)) -> Refusal {
        let mut conv = conv();
        change(&mut conv);
        verify(&image(Command::Conv(conv)), &Limits::REFERENCE).unwrap_err()
    }

    #[test]
    fn a_plain_convolution_passes_and_is_counted() {
        let program = verify(&image(Command::Conv(conv())), &Limits::REFERENCE).unwrap();
        assert_eq!(program.macs(), 8 * 8 * 16 * 9 * 16);
        assert_eq!(program.used(), [READ | WRITE, READ]);
        assert_eq!(program.traffic(), 1024 * 2 + 16 * 9 * 16 + 256);
    }

    #[test]
    fn each_broken_field_meets_its_rule() {
        let rule = |change: fn(&mut Conv)| refusal(change).rule;
        assert_eq!(rule(|c| c.ifm_dims.h = 0), Rule::Dimension);
        assert_eq!(rule(|c| c.ifm_strides.row = -128), Rule::OperandRange);
        assert_eq!(rule(|c| c.weights.slot = SlotId(2)), Rule::UnknownSlot);
        assert_eq!(rule(|c| c.ofm.offset = 0xfc01), Rule::SlotLength);
        assert_eq!(rule(|c| c.ofm.slot = CONSTANT), Rule::SlotAccess);
        assert_eq!(rule(|c| c.ofm_strides.pixel = 15), Rule::PixelStride);
        assert_eq!(rule(|c| c.ifm_strides.pixel = 18), Rule::InputStride);
        assert_eq!(rule(|c| c.groups = 3), Rule::Groups);
        assert_eq!(rule(|c| c.window.stride_w = 0), Rule::WindowStep);
        assert_eq!(rule(|c| c.window.dilation_h = 0), Rule::WindowStep);
        assert_eq!(rule(|c| c.window.pad_left = 3), Rule::WindowPad);
        assert_eq!(rule(|c| c.ofm_h = 10), Rule::WindowOutput);
        assert_eq!(rule(|c| c.ofm_strides.row = 127), Rule::SelfOverlap);
        assert_eq!(rule(|c| c.ofm.offset = 1023), Rule::InputOverlap);
        assert_eq!(rule(|c| c.header.opcode = opcode::MATMUL), Rule::Malformed);
        assert_eq!(rule(|c| c.stage.zero_point = 256), Rule::Malformed);
        assert_eq!(rule(|c| c.header.flags = Flags::DYNAMIC.bits()), Rule::Features);
    }

    #[test]
    fn a_refusal_names_command_field_slot_and_what_to_do() {
        let text = refusal(|c| c.ofm.offset = 0xfc01).to_string();
        insta::assert_snapshot!(text, @"program refused: command 0 (conv, op 7), `ofm` at s0+0xfc01, 1024 bytes: the slot has 65536 bytes; an operand must lie within the length its slot declares (rule 14)");
        let record = refusal(|c| c.ofm.slot = CONSTANT).fault();
        assert_eq!((record.cause, record.slot, record.access), (15, CONSTANT, 2));
        assert_eq!((record.command, record.op_id, record.offset), (0, 7, 0x8000));
    }

    #[test]
    fn end_is_last_and_only_last() {
        let limits = &Limits::REFERENCE;
        let none = Image::default();
        let twice = Image { commands: vec![end(), end()], ..Image::default() };
        let fill = Fill {
            header: Header::new(opcode::FILL, 1, Flags::empty(), 0),
            len: 1,
            ..Fill::default()
        };
        let mut missing = image(Command::Fill(fill));
        missing.commands.pop();
        for image in [none, twice, missing] {
            assert_eq!(verify(&image, limits).unwrap_err().rule, Rule::End);
        }
    }

    #[test]
    fn an_in_place_table_passes_only_exactly() {
        let table = Table {
            header: Header::new(opcode::TABLE, 2, Flags::empty(), 0),
            table: Operand::new(CONSTANT, 0),
            dims: Dims { n: 1, h: 4, w: 4, c: 16 },
            src_strides: Strides { image: 256, row: 64, pixel: 16 },
            dst_strides: Strides { image: 256, row: 64, pixel: 16 },
            ..Table::default()
        };
        verify(&image(Command::Table(table)), &Limits::REFERENCE).unwrap();
        let shifted = Table { dst: Operand::new(SCRATCH, 16), ..table };
        let refused = verify(&image(Command::Table(shifted)), &Limits::REFERENCE).unwrap_err();
        assert_eq!(refused.rule, Rule::InputOverlap);
    }

    #[test]
    fn work_and_traffic_are_bounded() {
        let limits = Limits { command_macs: 147_455, ..Limits::REFERENCE };
        let image = image(Command::Conv(conv()));
        assert_eq!(verify(&image, &limits).unwrap_err().rule, Rule::CommandWork);
        let limits = Limits { program_macs: 147_455, ..Limits::REFERENCE };
        assert_eq!(verify(&image, &limits).unwrap_err().rule, Rule::ProgramWork);
        let limits = Limits { program_traffic: 4000, ..Limits::REFERENCE };
        assert_eq!(verify(&image, &limits).unwrap_err().rule, Rule::ProgramTraffic);
        let limits = Limits { program_bytes: 255, ..Limits::REFERENCE };
        assert_eq!(verify(&image, &limits).unwrap_err().rule, Rule::ImageSize);
    }

    #[test]
    fn slots_fit_the_device() {
        let mut image = image(Command::Conv(conv()));
        image.slots.push(SlotDecl::new(slot_kind::SRAM, 1 << 21));
        verify(&image, &Limits::REFERENCE).unwrap();
        image.slots.push(SlotDecl::new(slot_kind::SRAM, 1));
        assert_eq!(verify(&image, &Limits::REFERENCE).unwrap_err().rule, Rule::SramSize);
        image.slots[3] = SlotDecl::new(slot_kind::UNUSED, 1);
        assert_eq!(verify(&image, &Limits::REFERENCE).unwrap_err().rule, Rule::SlotDeclaration);
        let limits = Limits { slots: 3, ..Limits::REFERENCE };
        assert_eq!(verify(&image, &limits).unwrap_err().rule, Rule::SlotCount);
    }

    #[test]
    fn a_product_reads_whole_quads_of_its_left_matrix() {
        let product = MatMul {
            header: Header::new(opcode::MATMUL, 3, Flags::empty(), 0),
            weights: Operand::new(CONSTANT, 0),
            channels: Operand::new(CONSTANT, 0x8000),
            out: Operand::new(SCRATCH, 0x8000),
            m: 3,
            n: 5,
            k: 7,
            a_row: 8,
            out_row: 5,
            stage: Stage { clamp_high: 255, ..Stage::default() },
            ..MatMul::default()
        };
        assert_eq!(command::lanes(7, 8), 8);
        verify(&image(Command::MatMul(product)), &Limits::REFERENCE).unwrap();
        let odd = MatMul { a_row: 7, ..product };
        let refused = verify(&image(Command::MatMul(odd)), &Limits::REFERENCE).unwrap_err();
        assert_eq!(refused.rule, Rule::InputStride);
    }
}
