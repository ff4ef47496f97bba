//! Bodies of the fuzz targets, and the generator of programs they and the device's tests share.
//!
//! `cargo test` runs the bodies for a moment each; a fuzzer calls the same functions for longer. The
//! generator builds plausible programs, most of which the verifier takes, since programs that are
//! refused at once test nothing behind it; [`mutated`] then breaks them.

mod commands;

use crate::addr::{Operand, SlotId};
use crate::command::{Command, Dims, End, Flags, Header, Stage, Strides, Window, opcode};
use crate::container::Container;
use crate::extent::{self, FeatureMap};
use crate::image::{Image, SlotDecl, slot_kind};
use crate::limits::Limits;
use crate::text::{assemble, disassemble};
use crate::verify::{Verified, verify};
use crate::{decode, encode};
use alloc::vec::Vec;
use arbitrary::{Result, Unstructured};

/// Seeds of `cases` random inputs for `arbtest`, of 2,000 bytes and more: the same in every run, so that a
/// test that passed passes again. `PROPTEST_RNG_SEED` names other ones, `NPU_FUZZ_CASES` how many.
pub fn seeds(cases: u32) -> impl Iterator<Item = u64> {
    let named = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let first = named("PROPTEST_RNG_SEED").unwrap_or(1).wrapping_mul(1 << 16);
    (0..named("NPU_FUZZ_CASES").unwrap_or(cases)).map(move |case| {
        let size = 2000 << (case % 6);
        u64::from(first.wrapping_add(case)) << 32 | size
    })
}

/// Decoders take any bytes without panic, and what they take encodes to the same bytes, but for a version
/// that is newer than the commands need: the encoder writes the least.
pub fn check_decode(bytes: &[u8]) {
    if let Ok(commands) = decode::commands(bytes) {
        assert_eq!(encode::commands(&commands), bytes);
    }
    if let Ok(image) = Image::from_bytes(bytes) {
        let mut again = image.to_bytes();
        assert_eq!(again[..4], bytes[..4]);
        let word = |at: &[u8]| u32::from_le_bytes([at[4], at[5], at[6], at[7]]);
        assert!(word(&again) <= word(bytes), "an image is older than its commands");
        again[4..8].copy_from_slice(&bytes[4..8]);
        assert_eq!(again, bytes);
        check_round_trip(&image);
    }
    let _ = Container::from_bytes(bytes);
}

/// The reader of core dumps and its text take any bytes without panic, and what is read is written as it was,
/// as far as this version writes it.
pub fn check_dump(bytes: &[u8]) {
    if let Ok(dump) = crate::coredump::Dump::from_bytes(bytes) {
        let again = crate::coredump::Dump::from_bytes(&dump.to_bytes()).expect("what was written");
        assert!(again.text().len() >= again.head_text().len());
        assert!(!dump.text().is_empty());
        assert_eq!(again.to_bytes(), dump.to_bytes());
    }
}

/// The assembler takes any text without panic, and what it takes survives disassembly.
pub fn check_text(text: &str) {
    if let Ok(image) = assemble(text) {
        check_round_trip(&image);
    }
}

/// A random, at times broken, program: the verifier answers without panic, and each access of what it
/// accepts lies in a slot that allows it. Gives the program when it was accepted.
pub fn check_verify(u: &mut Unstructured<'_>) -> Result<Option<Verified>> {
    let mut image = program(u)?;
    if u.ratio(1, 2)? {
        match mutated(u, &image)? {
            Some(broken) => image = broken,
            None => return Ok(None),
        }
    }
    check_round_trip(&image);
    let program = match verify(&image, &Limits::REFERENCE) {
        Ok(program) => program,
        Err(refusal) => {
            assert_eq!(refusal.fault().cause, refusal.rule.number());
            assert!(!alloc::format!("{refusal}").is_empty());
            return Ok(None);
        }
    };
    for command in program.commands() {
        let accesses = extent::accesses(command).expect("the verifier computed them too");
        for access in &accesses {
            let slot = program.slots()[access.slot.index()];
            assert!(access.len > 0 && access.start + access.len <= slot.len);
            assert!(!access.write || slot.access() & crate::queue::access::WRITE != 0);
        }
    }
    Ok(Some(program))
}

fn check_round_trip(image: &Image) {
    let text = disassemble(image);
    let again = assemble(&text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    // By bytes: a NaN does not equal itself.
    assert_eq!(again.to_bytes(), image.to_bytes(), "{text}");
}

/// `image` with a few words of its wire form changed, if that can still be decoded.
pub fn mutated(u: &mut Unstructured<'_>, image: &Image) -> Result<Option<Image>> {
    let mut bytes = image.to_bytes();
    for _ in 0..u.int_in_range(1..=3)? {
        let at = 64 + 4 * u.choose_index((bytes.len() - 64) / 4)?;
        let word = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let new = match u.int_in_range(0..=5)? {
            0 => u.arbitrary()?,
            1 => word ^ (1 << u.int_in_range(0..=31)?),
            2 => word.wrapping_add(1),
            3 => word.wrapping_sub(1),
            4 => word.wrapping_neg(),
            _ => *u.choose(&[0, 1, 4, 15, 16, 255, 256, 0x7fff_ffff, 0x8000_0000, u32::MAX])?,
        };
        bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
    }
    Ok(Image::from_bytes(&bytes).ok())
}

/// A plausible program over one slot of each kind, each as long as its commands need.
pub fn program(u: &mut Unstructured<'_>) -> Result<Image> {
    let mut builder = Builder { u, lens: [0; KINDS.len()], op_id: 0 };
    let mut commands = Vec::new();
    for _ in 0..builder.size(1, 5)? {
        commands.push(builder.command()?);
    }
    let header = builder.header(opcode::END, 1, Flags::empty());
    commands.push(Command::End(End { header, ..End::default() }));
    let slots = KINDS.iter().zip(builder.lens).map(|(&kind, len)| SlotDecl::new(kind, len));
    Ok(Image { features: 0, slots: slots.collect(), commands })
}

const KINDS: [u8; 5] =
    [slot_kind::SRAM, slot_kind::CONSTANT, slot_kind::SCRATCH, slot_kind::INPUT, slot_kind::OUTPUT];

/// Where extents are computed from before an operand has its place.
const FAR: u64 = 1 << 40;

struct Builder<'a, 'b> {
    u: &'a mut Unstructured<'b>,
    lens: [u64; KINDS.len()],
    op_id: u32,
}

impl Builder<'_, '_> {
    fn size(&mut self, low: u32, high: u32) -> Result<u32> {
        self.u.int_in_range(low..=high)
    }

    fn short(&mut self, low: u16, high: u16) -> Result<u16> {
        self.u.int_in_range(low..=high)
    }

    /// Channels: around the widths of kernels more often than elsewhere.
    fn channels(&mut self) -> Result<u32> {
        match self.size(0, 2)? {
            0 => Ok(*self.u.choose(&[1, 3, 4, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65])?),
            _ => self.size(1, 70),
        }
    }

    fn scale(&mut self) -> Result<f32> {
        Ok(match self.size(0, 7)? {
            0 => f32::from_bits(self.u.arbitrary()?),
            _ => f32::from(self.short(1, u16::MAX)?) / 65_536.0,
        })
    }

    fn header(&mut self, opcode: u8, units: u8, flags: Flags) -> Header {
        self.op_id += 1;
        Header::new(opcode, units, flags, self.op_id)
    }

    /// Room for `below` bytes before an operand's offset and `above` from there, in a slot that can be
    /// read or written. Mostly new room, at times room that earlier commands use.
    fn place(&mut self, below: u64, above: u64, write: bool) -> Result<Operand> {
        let slot = *self.u.choose(if write { &[0u16, 2, 4][..] } else { &[0, 1, 2, 3, 4][..] })?;
        let len = &mut self.lens[usize::from(slot)];
        let bytes = below + above;
        let start = if bytes <= *len && self.u.ratio(1, 4)? {
            self.u.int_in_range(0..=*len - bytes)?
        } else {
            let start = *len + self.u.int_in_range(0..=70)?;
            *len = start + bytes;
            start
        };
        Ok(Operand::new(SlotId(slot), start + below))
    }

    fn flat(&mut self, len: Option<u64>) -> Result<Operand> {
        self.place(0, len.unwrap_or(1), false)
    }

    /// A stride of at least `span` bytes, either way.
    fn stride(&mut self, span: u64) -> Result<i64> {
        let extra = if self.u.ratio(1, 2)? { 0 } else { self.u.int_in_range(0..=40)? };
        let stride = i64::try_from(span + extra).unwrap_or(i64::MAX);
        Ok(if self.u.ratio(1, 8)? { -stride } else { stride })
    }

    fn map(&mut self, dims: Dims, quads: bool, write: bool) -> Result<(Operand, Strides)> {
        let narrow = |stride: i64| i32::try_from(stride).unwrap_or(i32::MAX);
        let channels = u64::from(dims.c);
        let span = if self.u.ratio(1, 2)? { channels } else { channels.next_multiple_of(16) };
        let pixel = self.stride(span)?;
        let pixel = narrow(if quads { pixel / 4 * 4 + 4 * pixel.signum() } else { pixel });
        let map = FeatureMap { dims, strides: Strides { pixel, ..Strides::default() }, ..far() };
        let width =
            u64::from(dims.w - 1) * u64::from(pixel.unsigned_abs()) + u64::from(map.lanes());
        let overlapping = !write && self.u.ratio(1, 8)?;
        let row = self.stride(if overlapping { 0 } else { width })?;
        let height = u64::from(dims.h - 1) * row.unsigned_abs() + width;
        let image = self.stride(if overlapping { 0 } else { height })?;
        let strides = Strides { image, row: narrow(row), pixel };
        let operand = match (FeatureMap { dims, strides, ..far() }).access() {
            Ok(access) => self.place(FAR - access.start, access.end() - FAR, write)?,
            Err(_) => Operand::default(),
        };
        Ok((operand, strides))
    }

    /// A matrix: place, and stride from row to row.
    fn matrix(&mut self, m: u32, n: u32, quads: bool, write: bool) -> Result<(Operand, i32)> {
        let (operand, strides) = self.map(Dims { n: 1, h: 1, w: m, c: n }, quads, write)?;
        Ok((operand, strides.pixel))
    }

    fn tables(&mut self, flags: Flags) -> Result<Operand> {
        if !flags.intersects(Flags::TABLE_0 | Flags::TABLE_1) {
            return Ok(Operand::default());
        }
        self.flat(Some(512))
    }

    fn clamp(&mut self) -> Result<(u8, u8)> {
        let (a, b): (u8, u8) = self.u.arbitrary()?;
        Ok(if self.u.ratio(1, 2)? { (0, 255) } else { (a.min(b), a.max(b)) })
    }

    fn zero_point(&mut self) -> Result<i32> {
        self.u.int_in_range(0..=255)
    }

    fn stage_flags(&mut self) -> Result<Flags> {
        let flags = Flags::from_bits_truncate(self.short(0, 15)?);
        let flags = if self.u.ratio(1, 3)? { flags | Flags::FLOAT } else { flags };
        let lonely = flags.contains(Flags::AUX_FIRST) && !flags.contains(Flags::ADD_AUX);
        Ok(if lonely { flags - Flags::AUX_FIRST } else { flags })
    }

    fn stage(&mut self, flags: Flags) -> Result<Stage> {
        let (clamp_low, clamp_high) = self.clamp()?;
        let mut stage = Stage {
            input_zero_point: self.zero_point()?,
            zero_point: self.zero_point()?,
            clamp_low,
            clamp_high,
            ..Stage::default()
        };
        if flags.contains(Flags::ADD_AUX) {
            stage.add_first = self.scale()?;
            stage.add_second = self.scale()?;
            stage.add_offset = self.scale()? * 100.0;
        }
        if flags.contains(Flags::FLOAT) {
            let blocks = self.u.ratio(2, 3)?;
            stage.float_order =
                if blocks { self.u.int_in_range(1..=2)? } else { self.u.int_in_range(3..=5)? };
            stage.float_block_log2 = if blocks { self.u.int_in_range(0..=10)? } else { 0 };
            stage.input_scale = self.scale()?;
            stage.output_scale = self.scale()?;
        }
        Ok(stage)
    }

    /// A window, and the size of the output it makes of `h` by `w`.
    fn window(&mut self, h: u32, w: u32) -> Result<(Window, u32, u32)> {
        let (kernel_h, stride_h, dilation_h, pad_top, ofm_h) = self.axis(h)?;
        let (kernel_w, stride_w, dilation_w, pad_left, ofm_w) = self.axis(w)?;
        let window = Window {
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            dilation_h,
            dilation_w,
            pad_top,
            pad_left,
        };
        Ok((window, ofm_h, ofm_w))
    }

    fn axis(&mut self, input: u32) -> Result<(u16, u16, u16, u16, u32)> {
        let kernel = if self.u.ratio(1, 3)? { 1 } else { self.short(1, 5)? };
        let stride = self.short(1, 3)?;
        let dilation = if self.u.ratio(1, 4)? { self.short(2, 3)? } else { 1 };
        let pad = self.short(0, (kernel - 1) * dilation)?;
        let most = (input + u32::from(pad) - 1) / u32::from(stride) + 1;
        let output = if self.u.ratio(1, 4)? { self.size(1, most)? } else { most };
        Ok((kernel, stride, dilation, pad, output))
    }

    fn dims(&mut self) -> Result<Dims> {
        let n = if self.u.ratio(1, 4)? { 2 } else { 1 };
        Ok(Dims { n, h: self.size(1, 9)?, w: self.size(1, 12)?, c: self.channels()? })
    }

    fn command(&mut self) -> Result<Command> {
        Ok(match self.size(0, 19)? {
            0..=3 => Command::Conv(self.conv()?),
            4 | 5 => Command::MatMul(self.matmul()?),
            6 => Command::Add(self.add()?),
            7 | 8 => Command::Pool(self.pool()?),
            9 => Command::Table(self.table()?),
            10 => Command::Layout(self.layout()?),
            11 => Command::Mul(self.mul()?),
            12 => Command::Product(self.product()?),
            13 => Command::Softmax(self.softmax()?),
            14 => Command::PairTable(self.pair_table()?),
            15 => Command::ChannelTable(self.channel_table()?),
            16 => Command::Reduce(self.reduce()?),
            17 => Command::Norm(self.norm()?),
            18 => Command::Resize(self.resize()?),
            _ => self.bytes()?,
        })
    }
}

fn far() -> FeatureMap {
    FeatureMap { operand: Operand::new(SlotId(0), FAR), ..FeatureMap::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use arbtest::arbtest;

    #[test]
    fn decoders_never_panic_on_bytes() {
        for seed in seeds(2000) {
            arbtest(|u| {
                let bytes: Vec<u8> = u.arbitrary()?;
                check_decode(&bytes);
                Ok(())
            })
            .seed(seed);
        }
    }

    #[test]
    fn decoders_never_panic_on_broken_programs() {
        for seed in seeds(1500) {
            arbtest(|u| {
                let mut bytes = program(u)?.to_bytes();
                for _ in 0..u.int_in_range(0..=3)? {
                    let at = u.choose_index(bytes.len())?;
                    bytes[at] = u.arbitrary()?;
                }
                let keep = if u.ratio(1, 8)? { u.choose_index(bytes.len())? } else { bytes.len() };
                check_decode(&bytes[..keep]);
                Ok(())
            })
            .seed(seed);
        }
    }

    #[test]
    fn the_assembler_never_panics() {
        for seed in seeds(1000) {
            arbtest(|u| {
                let mut text = disassemble(&program(u)?);
                for _ in 0..u.int_in_range(0..=3)? {
                    let at = u.choose_index(text.len())?;
                    let printable: u8 = u.int_in_range(9..=126)?;
                    text.replace_range(at..=at, &String::from(char::from(printable)));
                }
                check_text(&text);
                Ok(())
            })
            .seed(seed);
        }
    }

    #[test]
    fn the_verifier_never_panics_and_accepts_only_bounded_accesses() {
        for seed in seeds(1500) {
            arbtest(|u| check_verify(u).map(|_| ())).seed(seed);
        }
    }

    #[test]
    fn most_generated_programs_are_accepted_and_of_every_kind() {
        let (mut accepted, mut all, mut kinds) = (0u32, 0u32, alloc::collections::BTreeSet::new());
        let mut state = 1u64;
        while all < 500 {
            // A fixed stream of bytes: this test counts, so it must not depend on how fast it runs.
            let bytes: Vec<u8> = core::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                state.to_be_bytes()[0]
            })
            .take(3000)
            .collect();
            let image = program(&mut Unstructured::new(&bytes)).unwrap();
            all += 1;
            if let Ok(program) = verify(&image, &Limits::REFERENCE) {
                accepted += 1;
                kinds.extend(program.commands().iter().map(Command::name));
            }
        }
        assert!(accepted * 2 > all, "{accepted} of {all} accepted");
        assert_eq!(kinds.len(), 17, "{kinds:?}");
    }
}
