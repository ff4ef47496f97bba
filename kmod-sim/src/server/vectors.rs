//! Interrupt vectors of a client: the eventfds that it set, and the SET_IRQS command.
//!
//! As with the kernel's VFIO, setting the eventfd of a vector also opens it in the MSI-X table, since a
//! virtual machine monitor keeps the table to itself; taking it away masks the vector, and what is raised
//! meanwhile stays pending.

use super::bell;
use super::message::{Message, Refusal, check_argsz, split};
use crate::device::Function;
use crate::interrupt::InterruptSink;
use crate::pci::{self, offset};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use npu_uapi::vfio_user::{IrqSet, errno, irq, irq_set};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The eventfds of one client, by vector.
#[derive(Debug)]
pub(crate) struct Vectors {
    count: usize,
    fds: Mutex<Vec<Option<OwnedFd>>>,
}

impl InterruptSink for Vectors {
    fn raised(&self, vector: u16) {
        if let Some(slot) = self.lock().get_mut(usize::from(vector))
            && slot.as_ref().is_some_and(|fd| !bell::ring(fd))
        {
            // Its owner would have us wait: it is told no more.
            *slot = None;
        }
    }
}

impl Vectors {
    pub(crate) fn new(count: u32) -> Self {
        let fds: Vec<_> = (0..count).map(|_| None).collect();
        Self { count: fds.len(), fds: Mutex::new(fds) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<OwnedFd>>> {
        self.fds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SET_IRQS.
    pub(crate) fn set(&self, function: &Function, message: Message) -> Result<(), Refusal> {
        let (request, data) = split::<IrqSet>(&message.body)?;
        check_argsz(request.argsz, size_of::<IrqSet>())?;
        let IrqSet { flags, index, start, count, .. } = request;
        let (kind, action) = (flags & irq_set::DATA, flags & irq_set::ACTION);
        let is_clear = flags & !(irq_set::DATA | irq_set::ACTION) == 0
            && kind.is_power_of_two()
            && action.is_power_of_two();
        if !is_clear {
            return Err(Refusal::invalid("one kind of data and one action"));
        }
        if message.has_lost_fds || kind != irq_set::DATA_EVENTFD && !message.fds.is_empty() {
            return Err(Refusal::invalid("file descriptors without a vector"));
        }
        let is_disable = kind == irq_set::DATA_NONE && count == 0;
        if index >= irq::COUNT || index != irq::MSIX && !(is_disable && start == 0) {
            return Err(Refusal::invalid("only MSI-X has vectors"));
        }
        let vectors = self.range(start, count)?;
        if vectors.is_empty() != is_disable {
            return Err(Refusal::invalid("no vectors"));
        }
        if action != irq_set::TRIGGER {
            return Err(Refusal::new(errno::ENOTSUP, "vectors are masked in the MSI-X table"));
        }
        let data_len = if kind == irq_set::DATA_BOOL { vectors.len() } else { 0 };
        if data.len() != data_len {
            return Err(Refusal::invalid("the data have the wrong length"));
        }
        match kind {
            irq_set::DATA_EVENTFD => return self.assign(function, vectors, message.fds),
            irq_set::DATA_NONE if is_disable && index == irq::MSIX => {
                return self.assign(function, 0..self.count, Vec::new());
            }
            _ => {}
        }
        let is_meant =
            |at: usize| kind == irq_set::DATA_NONE || data.get(at).is_some_and(|&b| b != 0);
        for (at, vector) in vectors.enumerate() {
            if is_meant(at) {
                function.wake(u16::try_from(vector).unwrap_or(u16::MAX));
            }
        }
        Ok(())
    }

    fn range(&self, start: u32, count: u32) -> Result<Range<usize>, Refusal> {
        let end = start.checked_add(count).and_then(|end| usize::try_from(end).ok());
        let end = end.filter(|&end| end <= self.count);
        match (usize::try_from(start), end) {
            (Ok(start), Some(end)) => Ok(start..end),
            _ => Err(Refusal::invalid("vectors that do not exist")),
        }
    }

    /// Gives each vector its eventfd, or takes away those of all.
    fn assign(
        &self,
        function: &Function,
        vectors: Range<usize>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let is_set = !fds.is_empty();
        if is_set && fds.len() != vectors.len() {
            return Err(Refusal::invalid("not one eventfd a vector"));
        }
        for fd in &fds {
            check_eventfd(fd)?;
        }
        if !is_set {
            self.mask(function, vectors.clone(), true);
        }
        let mut fds = fds.into_iter();
        for slot in &mut self.lock()[vectors] {
            *slot = fds.next();
        }
        if is_set {
            self.open(function);
        }
        Ok(())
    }

    /// Opens the vectors that have an eventfd; also after a reset, which they survive.
    pub(crate) fn open(&self, function: &Function) {
        // Not under our lock: what was pending is delivered by this.
        let set: Vec<usize> = self
            .lock()
            .iter()
            .enumerate()
            .filter(|(_, fd)| fd.is_some())
            .map(|(at, _)| at)
            .collect();
        if set.is_empty() {
            return;
        }
        for vector in set {
            self.mask(function, vector..vector + 1, false);
        }
        let control = function.config_read(offset::MSIX);
        function.config_write(offset::MSIX, control | pci::MSIX_ENABLE);
    }

    fn mask(&self, function: &Function, vectors: Range<usize>, is_masked: bool) {
        for vector in vectors {
            // The table of at most 128 vectors has 16 bytes for each, the mask in the last dword.
            let at = u32::try_from(vector * 16 + 12).unwrap_or(u32::MAX);
            function.msix_write(at, is_masked.into());
        }
    }
}

/// Refuses what is not an eventfd, since a write to it could wait for ever; [`bell`] will not.
fn check_eventfd(fd: &OwnedFd) -> Result<(), Refusal> {
    let refused = Refusal::new(errno::EBADF, "not an eventfd");
    let link = Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string());
    let target = std::fs::read_link(link).map_err(|_| refused)?;
    if target != Path::new("anon_inode:[eventfd]") {
        return Err(refused);
    }
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|_| refused)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).map_err(|_| refused)?;
    Ok(())
}
