//! What a forked child must not have in common with its parent: memory of devices outside, and locks.
//!
//! Memory that is lent to another process is shared, and a fork would share it with the child too. So
//! each such mapping is in a table, and when the process forks, the child, before anything else of it
//! runs, maps the same file over it once more, privately: it finds its parent's bytes, and what it
//! writes is its own. What it has not written itself goes on to follow the file.
//!
//! A lock that another thread held at the fork stays locked in the child for ever. The child gets its
//! own of what the process has one of ([`PerProcess`]); handles of its parent's are refused by the
//! number of the process before they lock anything.

use nix::libc;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most mappings at a time. Each is of 64 MiB or more.
const MOST: usize = 4096;
/// The start of a slot that somebody fills in.
const TAKEN: usize = 1;

/// A mapping of all of a file, from its first byte on.
struct Slot {
    /// Its address; zero when there is none.
    start: AtomicUsize,
    len: AtomicUsize,
    file: AtomicI32,
}

/// Fixed, and without locks: what runs between fork and return may use neither allocator nor lock.
static MAPPINGS: [Slot; MOST] = [const { Slot::new() }; MOST];
static IS_INSTALLED: AtomicBool = AtomicBool::new(false);

impl Slot {
    const fn new() -> Self {
        Self { start: AtomicUsize::new(0), len: AtomicUsize::new(0), file: AtomicI32::new(-1) }
    }
}

/// A place in the table, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Guarded {
    slot: usize,
    start: usize,
}

impl Guarded {
    /// Sees to it that a child gets its own copy of the `len` bytes at `start`, address space that the
    /// caller has reserved and maps `file` to from here on; until this is dropped, which must be
    /// before the address space or the file goes.
    ///
    /// `None` when there are too many, or the system has no memory to remember them.
    pub(crate) fn new(start: *mut u8, len: usize, file: i32) -> Option<Self> {
        install()?;
        let start = start.addr();
        for (index, slot) in MAPPINGS.iter().enumerate() {
            let claim = slot.start.compare_exchange(0, TAKEN, Ordering::Acquire, Ordering::Relaxed);
            if claim.is_ok() {
                slot.len.store(len, Ordering::Relaxed);
                slot.file.store(file, Ordering::Relaxed);
                // Release pairs with the Acquire in a child: it finds all of a slot or none.
                slot.start.store(start, Ordering::Release);
                return Some(Self { slot: index, start });
            }
        }
        None
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // In a child the table is its own: what it has at this place by now is another mapping.
        let _ = MAPPINGS[self.slot].start.compare_exchange(
            self.start,
            0,
            Ordering::Release,
            Ordering::Relaxed,
        );
    }
}

/// Has the system call [`in_child`] after each fork.
fn install() -> Option<()> {
    if !IS_INSTALLED.load(Ordering::Acquire) {
        // SAFETY: the handler keeps to what may be called there. Two threads that come here at once
        // install it twice, and the second call in a child finds an empty table.
        let failed = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if failed != 0 {
            return None;
        }
        IS_INSTALLED.store(true, Ordering::Release);
    }
    Some(())
}

/// Runs in the child, on its only thread. Calls nothing but the system: no lock, no allocation.
extern "C" fn in_child() {
    for slot in &MAPPINGS {
        let start = slot.start.load(Ordering::Acquire);
        if start == 0 {
            continue;
        }
        // A slot that another thread was filling in is free again: that thread is not here.
        slot.start.store(0, Ordering::Relaxed);
        if start != TAKEN {
            let (len, file) = (slot.len.load(Ordering::Relaxed), slot.file.load(Ordering::Relaxed));
            make_private(ptr::without_provenance_mut(start), len, file);
        }
    }
}

/// Replaces a shared mapping by a private one of the same file. If that cannot be, nothing is mapped
/// there; if not even that can be, the child ends: it would write its parent's tensors.
fn make_private(start: *mut libc::c_void, len: usize, file: i32) {
    let fixed = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the range is reserved for this mapping as long as it is in the table, and the file open.
    let private = unsafe { libc::mmap(start, len, access, fixed, file, 0) };
    if private != libc::MAP_FAILED {
        return;
    }
    let nothing = fixed | libc::MAP_ANONYMOUS;
    // SAFETY: as above; whoever uses it from here on is stopped by the system.
    let closed = unsafe { libc::mmap(start, len, libc::PROT_NONE, nothing, -1, 0) };
    if closed == libc::MAP_FAILED {
        // SAFETY: ends the process.
        unsafe { libc::abort() }
    }
}

/// A value behind a lock, one a process: a forked child begins with a new one. What its parent had is
/// neither locked nor dropped there.
pub struct PerProcess<T> {
    current: AtomicPtr<Owned<T>>,
}

struct Owned<T> {
    process: u32,
    value: Mutex<T>,
}

// SAFETY: it is a mutex, reached through a pointer that only this value frees.
unsafe impl<T: Send> Sync for PerProcess<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for PerProcess<T> {}

impl<T> PerProcess<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { current: AtomicPtr::new(ptr::null_mut()) }
    }
}

impl<T: Default> PerProcess<T> {
    /// Locks this process's value, which is the default until somebody changes it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let process = std::process::id();
        let mut found = self.current.load(Ordering::Acquire);
        loop {
            // SAFETY: null, or a box that was leaked below; freed only with `self`.
            if let Some(owned) = unsafe { found.as_ref() }
                && owned.process == process
            {
                // What these locks guard is whole between any two statements.
                return owned.value.lock().unwrap_or_else(PoisonError::into_inner);
            }
            let new = Box::into_raw(Box::new(Owned { process, value: Mutex::default() }));
            let order = (Ordering::AcqRel, Ordering::Acquire);
            match self.current.compare_exchange(found, new, order.0, order.1) {
                // The parent's, if there was one, stays as it is.
                Ok(_) => found = new,
                Err(other) => {
                    // SAFETY: made above, and nobody else has seen it.
                    drop(unsafe { Box::from_raw(new) });
                    found = other;
                }
            }
        }
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let current = *self.current.get_mut();
        // SAFETY: null or a leaked box, as in `lock`.
        let process = unsafe { current.as_ref() }.map(|owned| owned.process);
        if process == Some(std::process::id()) {
            // SAFETY: as above, and no guard outlives the borrow of `self`.
            drop(unsafe { Box::from_raw(current) });
        }
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PerProcess")
    }
}
