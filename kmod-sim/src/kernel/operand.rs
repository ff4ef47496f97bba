//! Operands resolved: which memory, and where in it each element lies.

use crate::memory::Extent;
use npu_uapi::addr::Operand;
use npu_uapi::command::{Dims, Strides, lanes};

/// The slots of a command whose operands have been checked.
#[derive(Clone, Copy)]
pub(crate) struct Slots<'a>(&'a [Option<Extent>]);

impl<'a> Slots<'a> {
    pub(crate) fn new(slots: &'a [Option<Extent>]) -> Self {
        Self(slots)
    }

    /// Where a flat operand lies.
    pub(crate) fn region(self, operand: Operand) -> Region {
        let memory = self.0[operand.slot.index()].expect("every operand's slot was checked");
        let start = i64::try_from(operand.offset).expect("the operand lies within its slot");
        Region { memory, start }
    }

    /// Where a feature map lies.
    pub(crate) fn map(self, operand: Operand, dims: &Dims, strides: &Strides) -> Map {
        Map {
            region: self.region(operand),
            image: strides.image,
            row: strides.row.into(),
            pixel: strides.pixel.into(),
            lanes: lanes(dims.c, strides.pixel).into(),
        }
    }

    /// A table of 256 bytes, copied: what is read once cannot change under the kernel.
    pub(crate) fn table(self, operand: Operand, index: i64) -> [u8; 256] {
        let tables = self.region(operand);
        tables.memory.load_bytes(tables.start + 256 * index)
    }
}

/// A flat operand.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) memory: Extent,
    pub(crate) start: i64,
}

/// A feature map: a region and its strides.
#[derive(Clone, Copy)]
pub(crate) struct Map {
    pub(crate) region: Region,
    pub(crate) image: i64,
    pub(crate) row: i64,
    pub(crate) pixel: i64,
    /// Lanes of a pixel, all of them inside the slot.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vector kernels ask"))]
    pub(crate) lanes: i64,
}

impl Map {
    /// Offset of pixel `(n, y, x)` in the slot.
    #[inline]
    pub(crate) fn at(&self, n: i64, y: i64, x: i64) -> i64 {
        self.region.start + n * self.image + y * self.row + x * self.pixel
    }

    #[inline]
    pub(crate) fn load(&self, at: i64) -> u8 {
        self.region.memory.load(at)
    }

    #[inline]
    pub(crate) fn store(&self, at: i64, code: u8) {
        self.region.memory.store(at, code);
    }

    /// The address of the byte at offset `at`; it lies in the slot.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn pointer(&self, at: i64) -> *mut u8 {
        self.region.memory.pointer(at, 1)
    }

    /// Whether the pixels of all rows and images follow each other at one stride.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_linear(&self, n: i64, h: i64, w: i64) -> bool {
        (h == 1 || self.row == w * self.pixel) && (n == 1 || self.image == h * w * self.pixel)
    }
}

/// Dimensions as signed numbers, `[n, h, w, c]`.
pub(crate) fn signed(dims: &Dims) -> [i64; 4] {
    [dims.n.into(), dims.h.into(), dims.w.into(), dims.c.into()]
}

/// A zero point, which decoding has bounded to `0..=255`; saturated if it has not.
pub(crate) fn zero_point(value: i32) -> u8 {
    u8::try_from(value.clamp(0, 255)).expect("clamped on this line")
}
