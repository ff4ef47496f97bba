//! Slots between pages that fault, random contents, and random layouts of feature maps.

use crate::kernel::{Control, Engine, Isa, Stop, execute};
use crate::memory::Extent;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Dims, Strides, lanes};
use npu_uapi::workers::{Caller, Workers};
use proptest::prelude::*;
use std::cell::Cell;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// Slots of given sizes, each between pages that fault; odd slots end at theirs, even slots begin there.
pub(super) struct Machine {
    slots: Vec<Slot>,
    threads: usize,
}

struct Slot {
    mapping: NonNull<c_void>,
    mapped: usize,
    data: *mut u8,
    len: usize,
    writable: Cell<bool>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `Slot::new`, and no extent of it outlives a run.
        unsafe { munmap(self.mapping, self.mapped) }.unwrap();
    }
}

impl Slot {
    fn new(len: usize, at_end: bool) -> Self {
        let pages = len.div_ceil(PAGE) * PAGE;
        let mapped = pages + 2 * PAGE;
        let size = NonZeroUsize::new(mapped).unwrap();
        // SAFETY: a fresh private mapping where the kernel likes it.
        let mapping =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) };
        let mapping = mapping.unwrap();
        let inside = mapping.as_ptr().cast::<u8>().wrapping_add(PAGE);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        if pages > 0 {
            // SAFETY: the pages lie within the mapping made above.
            unsafe { mprotect(NonNull::new(inside.cast()).unwrap(), pages, access) }.unwrap();
        }
        let data = inside.wrapping_add(if at_end { pages - len } else { 0 });
        Self { mapping, mapped, data, len, writable: Cell::new(true) }
    }

    fn extent(&self) -> Extent {
        // SAFETY: the pages are mapped while `self` lives; bytes are reached only through extents.
        unsafe { Extent::from_raw(self.data, self.len, self.writable.get()) }
    }
}

impl Machine {
    /// Slots of `sizes` bytes with random contents; `seed` also chooses where they lie and the threads.
    pub(super) fn new(sizes: &[usize], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let slots: Vec<_> = sizes.iter().map(|&len| Slot::new(len, random.below(4) > 0)).collect();
        let threads = 1 + usize::try_from(random.below(2)).unwrap();
        let machine = Self { slots, threads };
        for (index, &len) in sizes.iter().enumerate() {
            machine.write(index, &random.bytes(len));
        }
        machine
    }

    pub(super) fn make_read_only(&self, slot: usize) {
        self.slots[slot].writable.set(false);
    }

    pub(super) fn write(&self, slot: usize, bytes: &[u8]) {
        let memory = self.slots[slot].extent();
        for (at, &byte) in (0..).zip(bytes) {
            memory.store(at, byte);
        }
    }

    pub(super) fn read(&self, slot: usize) -> Vec<u8> {
        let memory = self.slots[slot].extent();
        (0..).take(self.slots[slot].len).map(|at| memory.load(at)).collect()
    }

    pub(super) fn run(&self, command: &Command, isa: Isa) -> Result<(), Stop> {
        let engine = Engine::default();
        self.run_with(command, isa, &Control::new(&engine))
    }

    pub(super) fn run_with(
        &self,
        command: &Command,
        isa: Isa,
        control: &Control<'_>,
    ) -> Result<(), Stop> {
        self.run_by(self.threads, command, isa, control)
    }

    pub(super) fn run_by(
        &self,
        threads: usize,
        command: &Command,
        isa: Isa,
        control: &Control<'_>,
    ) -> Result<(), Stop> {
        let slots: Vec<_> = self.slots.iter().map(|slot| Some(slot.extent())).collect();
        let threads = Threads(threads);
        let workers: &dyn Workers = if threads.0 == 1 { &Caller } else { &threads };
        execute(command, &slots, isa, workers, control)
    }

    /// What `slot` holds after `command` on each kernel, from the same contents before.
    pub(super) fn run_each(&self, command: &Command, slot: usize) -> Vec<(Isa, Vec<u8>)> {
        let before = self.read(slot);
        let run = |isa| {
            self.write(slot, &before);
            self.run(command, isa).expect("operands lie in their slots");
            (isa, self.read(slot))
        };
        super::available().into_iter().map(run).collect()
    }
}

/// So many threads, started for each command.
struct Threads(usize);

impl Workers for Threads {
    fn count(&self) -> usize {
        self.0
    }

    fn run(&self, piece: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for index in 1..self.0 {
                scope.spawn(move || piece(index));
            }
            piece(0);
        });
    }
}

/// A small generator (splitmix64): contents need a seed that shrinks, not quality.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    /// A number around 1, or now and then any bits.
    pub(super) fn scale(&mut self) -> f32 {
        if self.below(40) == 0 {
            return f32::from_bits(u32::try_from(self.next() >> 32).unwrap());
        }
        f32::from(self.byte()).mul_add(1.0 / 128.0, 0.1)
    }
}

/// Where the pixels of a feature map lie, random but valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) dims: Dims,
    pub(super) strides: Strides,
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// The choices of a layout, which shrink to dense and forward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) padding: u8,
    pub(super) row_gap: u8,
    pub(super) image_gap: u8,
    pub(super) lead: u8,
    pub(super) reversed: u8,
}

pub(super) fn style() -> impl Strategy<Value = Style> {
    let reversed = prop_oneof![6 => Just(0u8), 1 => 1u8..8];
    let gap = || prop_oneof![3 => Just(0u8), 1 => 1u8..9];
    (0u8..5, gap(), gap(), gap(), reversed).prop_map(
        |(padding, row_gap, image_gap, lead, reversed)| Style {
            padding,
            row_gap,
            image_gap,
            lead,
            reversed,
        },
    )
}

/// Layouts without gaps between rows or images.
pub(super) fn dense_style() -> impl Strategy<Value = Style> {
    (0u8..5).prop_map(|padding| Style { padding, row_gap: 0, image_gap: 0, lead: 0, reversed: 0 })
}

impl Style {
    /// Lays out `dims`; pixels lie at multiples of `unit` bytes.
    pub(super) fn shape(self, dims: Dims, unit: u32) -> Shape {
        let pixel = match self.padding {
            0 => dims.c.next_multiple_of(unit),
            1 => dims.c.next_multiple_of(16),
            2 => dims.c.next_multiple_of(16) + 16,
            3 => dims.c.next_multiple_of(4).next_multiple_of(unit),
            _ => dims.c.next_multiple_of(unit) + 4,
        };
        let row = dims.w * pixel + u32::from(self.row_gap) * 4;
        let image = dims.h * row + u32::from(self.image_gap) * 4;
        let sign = |bit: u8, value: u32| {
            let value = i32::try_from(value).unwrap();
            if self.reversed & bit == 0 { value } else { -value }
        };
        let (image, row, pixel) = (sign(1, image), sign(2, row), sign(4, pixel));
        let strides = Strides { image: image.into(), row, pixel };
        let below = |count: u32, stride: i32| i64::from(count - 1) * i64::from(stride).min(0);
        let above = |count: u32, stride: i32| i64::from(count - 1) * i64::from(stride).max(0);
        let reach =
            |f: &dyn Fn(u32, i32) -> i64| f(dims.n, image) + f(dims.h, row) + f(dims.w, pixel);
        let offset = i64::from(self.lead) * 4 - reach(&below);
        let len = offset + reach(&above) + i64::from(lanes(dims.c, pixel));
        let (offset, len) = (u64::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        Shape { dims, strides, offset, len }
    }
}

impl Shape {
    pub(super) fn operand(&self, slot: u16) -> Operand {
        Operand::new(SlotId(slot), self.offset)
    }

    /// Index of channel 0 of a pixel in the slot.
    pub(super) fn at(&self, n: u32, y: u32, x: u32) -> usize {
        let s = self.strides;
        let at = i64::try_from(self.offset).unwrap()
            + i64::from(n) * s.image
            + i64::from(y) * i64::from(s.row)
            + i64::from(x) * i64::from(s.pixel);
        usize::try_from(at).unwrap()
    }

    pub(super) fn pixels(&self) -> impl Iterator<Item = [u32; 3]> {
        let d = self.dims;
        (0..d.n).flat_map(move |n| (0..d.h).flat_map(move |y| (0..d.w).map(move |x| [n, y, x])))
    }

    /// Whether `after` holds `expected` in every channel, and what `before` held outside all lanes.
    pub(super) fn check(
        &self,
        before: &[u8],
        after: &[u8],
        expected: &dyn Fn([u32; 3], u32) -> u8,
    ) -> Result<(), TestCaseError> {
        let mut free = vec![false; after.len()];
        for pixel @ [n, y, x] in self.pixels() {
            let at = self.at(n, y, x);
            let lanes = lanes(self.dims.c, self.strides.pixel);
            for ch in 0..self.dims.c {
                let found = after[at + usize::try_from(ch).unwrap()];
                prop_assert_eq!(found, expected(pixel, ch), "pixel {:?} channel {}", pixel, ch);
            }
            free[at..at + usize::try_from(lanes).unwrap()].fill(true);
        }
        for (at, &free) in free.iter().enumerate() {
            prop_assert!(free || before[at] == after[at], "byte {} is not the command's", at);
        }
        Ok(())
    }
}
