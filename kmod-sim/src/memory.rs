//! Memory of a bound slot, as kernels see it: raw bytes that others may share, never borrowed.
//!
//! The driver, or a guest behind it, may write the memory while a kernel reads it. So no reference to
//! it is ever made: scalar kernels go through the bounds-checked accessors here, vector kernels through
//! a pointer of checked length ([`Extent::pointer`]) and raw loads. Such a race changes the driver's
//! own results and nothing else, since no byte read here decides what memory is touched.

const _: () = assert!(size_of::<usize>() == 8, "extents are indexed by 64-bit offsets");

/// The memory of a bound slot: where it lies, its length, and whether the device may write it.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    base: *mut u8,
    len: usize,
    writable: bool,
}

// SAFETY: an extent is an address and a length; every access through it is a raw read or write whose
// validity `from_raw` asked for, from whichever thread.
unsafe impl Send for Extent {}
// SAFETY: as above; a shared extent gives no more access than a copy of it.
unsafe impl Sync for Extent {}

impl Extent {
    /// The `len` bytes at `base`.
    ///
    /// # Safety
    /// As long as the value or a copy of it is used, the bytes must stay mapped for reads, and for
    /// writes when `writable`; and nothing in this process may hold a Rust reference to them while a
    /// kernel runs.
    pub const unsafe fn from_raw(base: *mut u8, len: usize, writable: bool) -> Self {
        Self { base, len, writable }
    }

    /// Bytes of the slot.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether the slot has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the device may write the slot.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The address of byte `at`, from which `len` bytes are inside the slot.
    ///
    /// Panics when they are not: operands are checked before a kernel starts.
    #[inline]
    pub fn pointer(&self, at: i64, len: u64) -> *mut u8 {
        let end = u64::try_from(at).ok().and_then(|start| start.checked_add(len));
        assert!(end.is_some_and(|end| end <= self.len()), "operand was checked against its slot");
        self.base.wrapping_offset(isize_of(at))
    }

    /// Byte `at`.
    #[inline]
    pub fn load(&self, at: i64) -> u8 {
        let byte = self.pointer(at, 1);
        // SAFETY: `pointer` checked that the byte lies in the slot, which `from_raw` was promised.
        unsafe { byte.read_volatile() }
    }

    /// Writes byte `at`; panics when the slot is read-only.
    #[inline]
    pub fn store(&self, at: i64, value: u8) {
        assert!(self.writable, "operand was checked to be writable");
        let byte = self.pointer(at, 1);
        // SAFETY: `pointer` checked that the byte lies in the slot, which is writable.
        unsafe { byte.write_volatile(value) }
    }

    /// Bytes `at .. at + N`.
    pub fn load_bytes<const N: usize>(&self, at: i64) -> [u8; N] {
        let first = self.pointer(at, N as u64);
        let mut bytes = [0; N];
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: `pointer` checked that `N` bytes from `first` lie in the slot.
            *byte = unsafe { first.wrapping_add(index).read_volatile() };
        }
        bytes
    }

    /// Writes bytes `at .. at + N`; panics when the slot is read-only.
    pub fn store_bytes<const N: usize>(&self, at: i64, bytes: [u8; N]) {
        assert!(self.writable, "operand was checked to be writable");
        let first = self.pointer(at, N as u64);
        for (index, byte) in bytes.into_iter().enumerate() {
            // SAFETY: `pointer` checked that `N` bytes from `first` lie in the slot, which is writable.
            unsafe { first.wrapping_add(index).write_volatile(byte) }
        }
    }

    /// Writes `value` to bytes `at .. at + len`.
    pub fn fill(&self, at: i64, len: u64, value: u8) {
        assert!(self.writable, "operand was checked to be writable");
        let first = self.pointer(at, len);
        // SAFETY: `pointer` checked that `len` bytes from `first` lie in the slot, which is writable.
        unsafe { first.write_bytes(value, usize_of(len)) }
    }

    /// Copies the bytes from byte `at` on into `into`, as many as it holds.
    pub fn read(&self, at: i64, into: &mut [u8]) {
        let first = self.pointer(at, into.len() as u64);
        // SAFETY: `pointer` checked that as many bytes lie in the slot; `into` is ours alone, and no slot.
        unsafe { first.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
    }

    /// Copies `len` bytes from byte `from` of `source` to byte `at`; the two may overlap.
    pub fn copy(&self, at: i64, source: &Self, from: i64, len: u64) {
        assert!(self.writable, "operand was checked to be writable");
        let (to, from) = (self.pointer(at, len), source.pointer(from, len));
        // SAFETY: `pointer` checked both ranges, and this slot is writable.
        unsafe { to.copy_from(from, usize_of(len)) }
    }
}

/// A 64-bit offset as the pointer-sized integer it is on every supported target.
#[expect(clippy::cast_possible_truncation, reason = "64 bits both, asserted above")]
pub(crate) const fn isize_of(offset: i64) -> isize {
    offset as isize
}

/// A 64-bit length as the pointer-sized integer it is on every supported target.
#[expect(clippy::cast_possible_truncation, reason = "64 bits both, asserted above")]
pub(crate) const fn usize_of(len: u64) -> usize {
    len as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(bytes: &mut [u8], writable: bool) -> Extent {
        // SAFETY: the tests touch `bytes` only through the extent while they use it.
        unsafe { Extent::from_raw(bytes.as_mut_ptr(), bytes.len(), writable) }
    }

    #[test]
    fn bytes_come_back_as_written() {
        let mut bytes = [0; 16];
        let memory = extent(&mut bytes, true);
        memory.store_bytes(3, 1.5f32.to_le_bytes());
        assert_eq!(f32::from_le_bytes(memory.load_bytes(3)), 1.5);
        memory.fill(8, 8, 7);
        memory.copy(0, &memory, 7, 4);
        assert_eq!([memory.load(0), memory.load(1), memory.load(15)], [0, 7, 7]);
    }

    #[test]
    #[should_panic(expected = "checked against its slot")]
    fn a_byte_behind_the_slot_is_not_read() {
        extent(&mut [0; 16], false).load(16);
    }

    #[test]
    #[should_panic(expected = "checked against its slot")]
    fn a_byte_before_the_slot_is_not_read() {
        extent(&mut [0; 16], false).load(-1);
    }

    #[test]
    #[should_panic(expected = "writable")]
    fn a_read_only_slot_is_not_written() {
        extent(&mut [0; 16], false).store(0, 1);
    }
}
