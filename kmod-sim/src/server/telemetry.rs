//! The telemetry page of a function: in a file of the server's that its client may map, to read.
//!
//! The file is sealed: its size stays, and only the mapping that is made here can ever write it.

use crate::device::Telemetry;
use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use npu_uapi::ring::Words;
use npu_uapi::telemetry::{PAGE_BYTES, Snapshot, Writer};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// The page of one client.
#[derive(Debug)]
pub(crate) struct TelemetryPage {
    file: OwnedFd,
    writer: Mutex<Writer<PageWords>>,
}

impl TelemetryPage {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"npu-telemetry", flags)?;
        ftruncate(&file, PAGE_BYTES.into())?;
        let words = PageWords(MmapOptions::new().map_raw(&file)?);
        // Last, since then nobody can map it writable any more.
        let seals = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_FUTURE_WRITE
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let writer = Writer::new(words).map_err(io::Error::other)?;
        Ok(Self { file, writer: Mutex::new(writer) })
    }

    /// The file, for the client.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// All words, as they were at one moment.
    pub(crate) fn snapshot(&self) -> Vec<u32> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let words = writer.words();
        (0..words.word_count()).map(|index| words.load(index, Ordering::Relaxed)).collect()
    }
}

impl Telemetry for TelemetryPage {
    fn show(&self, snapshot: &Snapshot) {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).show(snapshot);
    }
}

/// The mapped page.
#[derive(Debug)]
struct PageWords(MmapRaw);

impl PageWords {
    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.word_count(), "the layout fits into the page");
        let word = self.0.as_mut_ptr().cast::<u32>().wrapping_add(index);
        // SAFETY: the word lies in the mapping, which lives as long as `self`, is aligned, and cannot
        // go away, since the file's size is sealed. All access to it is atomic.
        unsafe { AtomicU32::from_ptr(word) }
    }
}

impl Words for PageWords {
    fn word_count(&self) -> usize {
        self.0.len() / 4
    }

    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }

    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.word(index).store(value, order);
    }
}
