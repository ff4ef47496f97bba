//! Words of a region of a device: read and written through a mapping where the kernel gives one, else
//! through the device's file.

use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{Ordering, fence};

/// A region of a device's file.
#[derive(Debug)]
pub(super) struct Registers {
    file: File,
    /// Where in the file it begins.
    offset: u64,
    /// Bytes that are used of it.
    len: u32,
    mapping: Option<MmapRaw>,
}

impl Registers {
    /// The first `len` bytes of the region that begins at `offset` of `file`; mapped when `is_mapped`.
    ///
    /// # Errors
    /// The system refuses the mapping.
    pub(super) fn new(file: File, offset: u64, len: u32, is_mapped: bool) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.offset(offset).len(usize::try_from(len).map_err(io::Error::other)?);
        let mapping = is_mapped.then(|| options.map_raw(&file)).transpose()?;
        Ok(Self { file, offset, len, mapping })
    }

    /// Whether it is mapped.
    pub(super) fn is_mapped(&self) -> bool {
        self.mapping.is_some()
    }

    /// The word at byte `at`.
    ///
    /// # Errors
    /// It lies outside, or the device cannot be read.
    pub(super) fn read(&self, at: u32) -> io::Result<u32> {
        let place = self.place(at)?;
        let value = match place {
            Place::Mapped(word) => {
                // SAFETY: aligned and inside a mapping that lives as long as `self`. What is there are
                // registers, so the access must happen, once, as it stands here.
                unsafe { word.read_volatile() }
            }
            Place::File(offset) => {
                let mut bytes = [0; 4];
                self.file.read_exact_at(&mut bytes, offset)?;
                u32::from_ne_bytes(bytes)
            }
        };
        // Pairs with the device's stores to memory before it set the register.
        fence(Ordering::Acquire);
        Ok(u32::from_le(value))
    }

    /// Writes the word at byte `at`, after every store to memory before it.
    ///
    /// # Errors
    /// As for [`Registers::read`].
    pub(super) fn write(&self, at: u32, value: u32) -> io::Result<()> {
        let place = self.place(at)?;
        let value = value.to_le();
        // Pairs with the device's loads after it saw the register written. Memory of devices is written
        // in order behind it.
        fence(Ordering::SeqCst);
        match place {
            Place::Mapped(word) => {
                // SAFETY: as in `read`.
                unsafe { word.write_volatile(value) };
                Ok(())
            }
            Place::File(offset) => self.file.write_all_at(&value.to_ne_bytes(), offset),
        }
    }

    fn place(&self, at: u32) -> io::Result<Place> {
        if !at.is_multiple_of(4) || at >= self.len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("there is no word at {at:#x} of {:#x} bytes", self.len),
            ));
        }
        let Some(mapping) = &self.mapping else {
            return Ok(Place::File(self.offset + u64::from(at)));
        };
        let at = usize::try_from(at).map_err(io::Error::other)?;
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page, `at` at a word")]
        let word = mapping.as_mut_ptr().wrapping_add(at).cast::<u32>();
        Ok(Place::Mapped(word))
    }
}

/// Where a word is.
enum Place {
    Mapped(*mut u32),
    /// Offset in the file.
    File(u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsFd;

    #[test]
    fn words_are_the_same_through_a_mapping_and_through_the_file() {
        let file = File::from(memfd_create(c"registers", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(0x3000).unwrap();
        let other = || File::from(file.as_fd().try_clone_to_owned().unwrap());
        let mapped = Registers::new(other(), 0x1000, 0x1000, true).unwrap();
        let plain = Registers::new(other(), 0x1000, 0x1000, false).unwrap();
        assert!(mapped.is_mapped() && !plain.is_mapped());
        mapped.write(0x10, 0x1234_5678).unwrap();
        plain.write(0xffc, 0x8765_4321).unwrap();
        for registers in [&mapped, &plain] {
            assert_eq!(registers.read(0x10).unwrap(), 0x1234_5678);
            assert_eq!(registers.read(0xffc).unwrap(), 0x8765_4321);
            for outside in [0x1000, 2, u32::MAX] {
                assert!(registers.read(outside).is_err());
                assert!(registers.write(outside, 1).is_err());
            }
        }
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0x1010).unwrap();
        assert_eq!(bytes, [0x78, 0x56, 0x34, 0x12]);
    }
}
