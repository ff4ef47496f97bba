//! Strides near their limits: rows and images that lie gigabytes apart, backwards or all in one place.
//!
//! Slots are mapped without being reserved, so only what a command touches takes memory. Each command
//! runs on the scalar kernel and on the best one, from the same contents; real lanes must be equal.

use crate::kernel::{Control, Engine, execute};
use crate::memory::Extent;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    Add, Command, Conv, Dims, Flags, Header, Layout, Pool, Stage, Strides, Strides4, Table, Window,
    element, opcode, pool_kind,
};
use npu_uapi::extent::{FeatureMap, accesses, feature_maps};
use npu_uapi::workers::Caller;
use proptest::prelude::*;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// A slot that takes memory only where it is written.
struct Sparse {
    mapping: NonNull<c_void>,
    len: NonZeroUsize,
}

impl Drop for Sparse {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `Sparse::new`, and no extent of it outlives a case.
        unsafe { munmap(self.mapping, self.len.get()) }.unwrap();
    }
}

impl Sparse {
    fn new(len: u64) -> Self {
        let len = NonZeroUsize::new(usize::try_from(len.max(1)).unwrap()).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh private mapping where the kernel likes it.
        let mapping = unsafe { mmap_anonymous(None, len, access, flags) }.unwrap();
        Self { mapping, len }
    }

    fn extent(&self) -> Extent {
        // SAFETY: mapped while `self` lives; bytes are reached only through extents.
        unsafe { Extent::from_raw(self.mapping.as_ptr().cast(), self.len.get(), true) }
    }
}

/// Slot of an input, weights, records, a result, an auxiliary tensor and tables.
const SLOTS: usize = 6;

/// Offsets of the real lanes of `map`.
fn lanes_of(map: &FeatureMap) -> Vec<i64> {
    let (d, s) = (map.dims, map.strides);
    let mut out = Vec::new();
    for n in 0..i64::from(d.n) {
        for y in 0..i64::from(d.h) {
            for x in 0..i64::from(d.w) {
                let at = n * s.image + y * i64::from(s.row) + x * i64::from(s.pixel);
                let first = i64::try_from(map.operand.offset).unwrap() + at;
                out.extend((0..i64::from(d.c)).map(|ch| first + ch));
            }
        }
    }
    out
}

/// Offsets of the elements of a tensor of LAYOUT, each of `bytes` bytes.
fn elements_of(operand: Operand, d: &Dims, s: &Strides4, bytes: i64) -> Vec<i64> {
    let mut out = Vec::new();
    for n in 0..i64::from(d.n) {
        for y in 0..i64::from(d.h) {
            for x in 0..i64::from(d.w) {
                for ch in 0..i64::from(d.c) {
                    let at = n * s.image + y * s.row + x * s.pixel + ch * s.channel;
                    let first = i64::try_from(operand.offset).unwrap() + at;
                    out.extend((0..bytes).map(|byte| first + byte));
                }
            }
        }
    }
    out
}

/// What the result of `command` holds on each kernel.
fn check(command: &Command, mut seed: u64) -> Result<(), TestCaseError> {
    let all = accesses(command).unwrap();
    let mut lens = [0; SLOTS];
    for access in &all {
        let len = &mut lens[access.slot.index()];
        *len = access.end().max(*len);
    }
    let slots: Vec<Sparse> = lens.iter().map(|&len| Sparse::new(len)).collect();
    let extents: Vec<Option<Extent>> = slots.iter().map(|slot| Some(slot.extent())).collect();
    let mut noise = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_be_bytes()[0]
    };
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for map in &feature_maps(command) {
        let at = lanes_of(map).into_iter().map(|at| (map.operand.slot.index(), at));
        if map.write { outputs.extend(at) } else { inputs.extend(at) }
    }
    if let Command::Layout(c) = command {
        let bytes = |code| i64::try_from(element::bytes(code).unwrap()).unwrap();
        let (src, dst) = (bytes(c.src_element), bytes(c.dst_element));
        inputs.extend(elements_of(c.src, &c.dims, &c.src_strides, src).iter().map(|&at| (0, at)));
        outputs.extend(elements_of(c.dst, &c.dims, &c.dst_strides, dst).iter().map(|&at| (3, at)));
    }
    for (slot, at) in inputs {
        slots[slot].extent().store(at, noise());
    }
    let real = |field: &str, at: i64| match (command, field) {
        // Padding of weights is zero; so are weight zero points, which the scalar kernel takes.
        (Command::Conv(c), "weights") if !c.is_depthwise() => {
            let inputs = i64::from(c.ifm_dims.c / c.groups);
            at / 64 % ((inputs + 3) / 4) * 4 + at % 4 < inputs
        }
        (Command::Conv(c), "weights") => {
            let taps = i64::from(c.window.kernel_h) * i64::from(c.window.kernel_w);
            at / 64 % ((taps + 3) / 4) * 4 + at % 4 < taps
        }
        (_, "channels") => at % 16 < 2 || at % 16 == 6,
        _ => true,
    };
    for access in all.iter().filter(|access| [1, 2, 5].contains(&access.slot.0)) {
        for at in 0..i64::try_from(access.len).unwrap() {
            let byte = if real(access.field, at) { noise() } else { 0 };
            let exponent = access.field == "channels" && at % 16 == 7;
            slots[access.slot.index()].extent().store(at, if exponent { 0x3a } else { byte });
        }
    }
    let engine = Engine::default();
    let control = Control::new(&engine);
    let mut results = super::available().into_iter().map(|isa| {
        for &(slot, at) in &outputs {
            slots[slot].extent().store(at, 0x55);
        }
        let done = execute(command, &extents, isa, &Caller, &control);
        let codes: Vec<u8> =
            outputs.iter().map(|&(slot, at)| slots[slot].extent().load(at)).collect();
        (done, codes)
    });
    let scalar = results.next().unwrap();
    prop_assert_eq!(scalar.0, Ok(()));
    for (done, codes) in results {
        prop_assert_eq!(done, Ok(()));
        prop_assert_eq!(&scalar.1, &codes);
    }
    Ok(())
}

/// `(operand, strides)` of a tensor of `dims` in `slot`; elements of a result lie apart.
fn place(slot: u16, dims: Dims, choice: [u8; 3], is_result: bool) -> (Operand, Strides) {
    let lanes = i32::try_from(dims.c.next_multiple_of(4)).unwrap();
    let w = i32::try_from(dims.w).unwrap();
    let pixels = [lanes, lanes, lanes + 4, 1 << 12, 1 << 20, -lanes, -(1 << 20), -(1 << 12) - 4];
    let pixel = pixels[usize::from(choice[0]) % 8];
    let tight = w * pixel.abs();
    let mut rows = [tight, -tight, 1 << 30, -(1 << 30), i32::MAX, i32::MIN, tight, 0];
    let mut images = [1 << 34, -(1 << 34), 1 << 40, -(1 << 40), (1 << 41) + 3, 1 << 34, 5, 0];
    if is_result {
        (rows[7], images[6], images[7]) = (tight, 1 << 35, 1 << 36);
    }
    let row = rows[usize::from(choice[1]) % 8];
    let image = images[usize::from(choice[2]) % 8];
    let below = |count: u32, stride: i64| i64::from(count - 1) * stride.min(0);
    let low = below(dims.n, image) + below(dims.h, row.into()) + below(dims.w, pixel.into());
    let offset = u64::try_from(-low).unwrap();
    (Operand::new(SlotId(slot), offset), Strides { image, row, pixel })
}

fn choice() -> impl Strategy<Value = [u8; 3]> {
    [0u8..8, 0u8..8, 0u8..8]
}

fn dims(channels: u32) -> impl Strategy<Value = Dims> {
    (1u32..4, 1u32..6, 1u32..20, 1..channels).prop_map(|(n, h, w, c)| Dims { n, h, w, c })
}

fn window() -> impl Strategy<Value = Window> {
    ((1u16..6, 1u16..6), (1u16..4, 1u16..4), (1u16..4, 1u16..4), (0u16..16, 0u16..16)).prop_map(
        |(kernel, stride, dilation, pads)| Window {
            kernel_h: kernel.0,
            kernel_w: kernel.1,
            stride_h: stride.0,
            stride_w: stride.1,
            dilation_h: dilation.0,
            dilation_w: dilation.1,
            pad_top: pads.0.min((kernel.0 - 1) * dilation.0),
            pad_left: pads.1.min((kernel.1 - 1) * dilation.1),
        },
    )
}

/// A size of the output along one axis that the verifier takes.
fn output(input: u32, pad: u16, stride: u16, wish: u32) -> u32 {
    wish.min((input + u32::from(pad) - 1) / u32::from(stride) + 1)
}

proptest! {
    #[test]
    fn convolutions_at_far_strides_equal_on_every_kernel(
        dims in dims(40), groups in prop_oneof![Just(1u32), Just(4), Just(0)], blocks in 1u32..40,
        window in window(), wish in (1u32..8, 1u32..24), choices in [choice(), choice(), choice()],
        flags in 0u16..16, immediates: [u8; 4], seed: u64,
    ) {
        let (c, groups, ofm_c) = match groups {
            0 if dims.c > 1 => (dims.c, dims.c, dims.c),
            4 => (dims.c * 4, 4, blocks.div_ceil(8) * 16 * 4),
            _ => (dims.c, 1, blocks),
        };
        let dims = Dims { c, ..dims };
        let ofm_h = output(dims.h, window.pad_top, window.stride_h, wish.0);
        let ofm_w = output(dims.w, window.pad_left, window.stride_w, wish.1);
        let mut flags = Flags::from_bits_truncate(flags);
        if !flags.contains(Flags::ADD_AUX) {
            flags.remove(Flags::AUX_FIRST);
        }
        let ofm_dims = Dims { h: ofm_h, w: ofm_w, c: ofm_c, n: dims.n };
        let (ifm, ifm_strides) = place(0, dims, choices[0], false);
        let (ofm, ofm_strides) = place(3, ofm_dims, choices[1], true);
        let (aux, aux_strides) = place(4, ofm_dims, choices[2], false);
        let [x, z, one, other] = immediates;
        let stage = Stage {
            input_zero_point: x.into(), zero_point: z.into(),
            clamp_low: one.min(other), clamp_high: one.max(other),
            add_first: 0.6, add_second: -0.3, add_offset: 20.5, ..Stage::default()
        };
        let conv = Conv {
            header: Header::new(opcode::CONV, 4, flags, 0),
            ifm, ofm, aux, ifm_strides, ofm_strides, aux_strides,
            weights: Operand::new(SlotId(1), 0), channels: Operand::new(SlotId(2), 0),
            tables: Operand::new(SlotId(5), 0), ifm_dims: dims, ofm_h, ofm_w, ofm_c, groups, window,
            stage, ..Conv::default()
        };
        check(&Command::Conv(conv), seed)?;
    }

    #[test]
    fn pools_at_far_strides_equal_on_every_kernel(
        dims in dims(140), window in window(), wish in (1u32..8, 1u32..24), kind in 1u8..5,
        choices in [choice(), choice()], count_padding in 0u8..2, pads in (0u16..5, 0u16..5),
        immediates: [u8; 4], table in 0u16..2, seed: u64,
    ) {
        let global = pool_kind::is_global(kind);
        let ofm_h = if global { 1 } else { output(dims.h, window.pad_top, window.stride_h, wish.0) };
        let ofm_w = if global { 1 } else { output(dims.w, window.pad_left, window.stride_w, wish.1) };
        let (ifm, ifm_strides) = place(0, dims, choices[0], false);
        let (ofm, ofm_strides) = place(3, Dims { h: ofm_h, w: ofm_w, ..dims }, choices[1], true);
        let [x, z, one, other] = immediates;
        let pool = Pool {
            header: Header::new(opcode::POOL, 3, Flags::from_bits_truncate(table), 0),
            ifm, ofm, ifm_strides, ofm_strides, ifm_dims: dims, ofm_h, ofm_w, kind, count_padding,
            pad_bottom: pads.0, pad_right: pads.1, tables: Operand::new(SlotId(5), 0),
            window: if global { Window::default() } else { window },
            input_zero_point: x.into(), zero_point: z.into(),
            clamp_low: one.min(other), clamp_high: one.max(other),
            input_scale: 0.03, output_scale: 0.017, multiplier: 0.02, ..Pool::default()
        };
        check(&Command::Pool(pool), seed)?;
    }

    #[test]
    fn element_wise_commands_at_far_strides_equal_on_every_kernel(
        dims in dims(300), choices in [choice(), choice(), choice()], immediates: [u8; 2],
        table in 0u16..2, in_place in 0u8..3, seed: u64,
    ) {
        let (a, a_strides) = place(0, dims, choices[0], false);
        let (b, b_strides) = place(4, dims, choices[1], false);
        let (out, out_strides) = place(3, dims, choices[2], true);
        let (a, a_strides) = if in_place == 1 { (out, out_strides) } else { (a, a_strides) };
        let (b, b_strides) = if in_place == 2 { (out, out_strides) } else { (b, b_strides) };
        let [one, other] = immediates;
        let add = Add {
            header: Header::new(opcode::ADD, 3, Flags::from_bits_truncate(table), 0),
            a, b, out, a_strides, b_strides, out_strides, dims, tables: Operand::new(SlotId(5), 0),
            first: 0.7, second: -0.4, offset: 31.25, clamp_low: one.min(other),
            clamp_high: one.max(other), ..Add::default()
        };
        check(&Command::Add(add), seed)?;
        let lookup = Table {
            header: Header::new(opcode::TABLE, 2, Flags::empty(), 0), src: a, dst: out,
            table: Operand::new(SlotId(5), 0), dims, src_strides: a_strides,
            dst_strides: out_strides, ..Table::default()
        };
        check(&Command::Table(lookup), seed)?;
    }

    #[test]
    fn layouts_at_far_strides_equal_on_every_kernel(
        dims in dims(40), elements in (1u8..3, 1u8..3), orders in (0usize..6, 0usize..6),
        far in [-3i64..3, -3i64..3, -3i64..3, -3i64..3], zero_point: u8, seed: u64,
    ) {
        let tensor = |slot, code, order: usize, far: [i64; 2]| {
            let bytes = i64::try_from(element::bytes(code).unwrap()).unwrap();
            // The order of pixels and channels; rows and images lie far apart or close by.
            let (w, c) = (i64::from(dims.w), i64::from(dims.c));
            let (pixel, channel) = match order {
                0 | 1 => (c * bytes, bytes),
                2 => (bytes, w * bytes),
                3 => (-c * bytes, bytes),
                4 => (4.max(c) * bytes, bytes),
                _ => (1 << 13, -(1 << 22)),
            };
            let row = if far[0] == 0 { 1 << 34 } else { (1 << 35) * far[0] };
            let image = if far[1] == 0 { 1 << 38 } else { (1 << 40) * far[1] };
            let strides = Strides4 { image, row, pixel, channel };
            let reach = [(dims.n, image), (dims.h, row), (dims.w, pixel), (dims.c, channel)];
            let low: i64 = reach.iter().map(|&(n, s)| i64::from(n - 1) * s.min(0)).sum();
            (Operand::new(SlotId(slot), u64::try_from(-low).unwrap()), strides)
        };
        let (src, src_strides) = tensor(0, elements.0, orders.0, [far[0], far[1]]);
        let (dst, dst_strides) = tensor(3, elements.1, orders.1, [far[2], far[3]]);
        let plain = elements.0 == elements.1;
        let layout = Layout {
            header: Header::new(opcode::LAYOUT, 3, Flags::empty(), 0),
            src, dst, src_strides, dst_strides, dims, src_element: elements.0,
            dst_element: elements.1, zero_point: if plain { 0 } else { zero_point.into() },
            scale: if plain { 0.0 } else { 0.11 }, ..Layout::default()
        };
        check(&Command::Layout(layout), seed)?;
    }
}
