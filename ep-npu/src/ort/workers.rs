//! Who computes during a run: threads that the session lends, or a pool of our own.
//!
//! The session's pool is the default: it honours `intra_op_num_threads` and affinities, and a second
//! pool beside it would compete for the same cores. Measured on two cores with ONNX Runtime 1.31, a
//! call costs 0.6 us while its threads spin, as they do by default, and 5 us when they sleep.

use std::any::Any;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use libnpu::{Caller, Pool, Workers};
use ort_sys::OrtKernelContext;

use super::api::{Api, call};

/// Where the threads of a session's runs come from.
#[derive(Debug)]
pub(crate) enum Threads {
    /// The session's own pool, as wide as the machine; a session of one thread runs the pieces in turn.
    Lent(usize),
    /// The calling thread.
    Caller,
    /// A pool of the provider, for the option `threads`.
    Own(Pool),
}

impl Threads {
    /// As asked for by the option `threads`.
    pub(crate) fn new(asked: Option<NonZeroUsize>) -> Self {
        match asked.map(NonZeroUsize::get) {
            None => match thread::available_parallelism().map_or(1, NonZeroUsize::get) {
                1 => Self::Caller,
                count => Self::Lent(count),
            },
            Some(1) => Self::Caller,
            Some(count) => Self::Own(Pool::new(count)),
        }
    }

    /// Calls `body` with the workers of one run.
    pub(crate) fn with<R>(
        &self,
        api: &Api,
        context: *const OrtKernelContext,
        body: impl FnOnce(&dyn Workers) -> R,
    ) -> R {
        match self {
            Self::Lent(count) => body(&Lent { api, context, count: *count }),
            Self::Caller => body(&Caller),
            Self::Own(pool) => body(pool),
        }
    }
}

/// The pool of the session, lent for one run.
#[derive(Debug)]
struct Lent<'a> {
    api: &'a Api,
    context: *const OrtKernelContext,
    count: usize,
}

// SAFETY: the context is only read, to find the pool, which takes work from any thread.
unsafe impl Sync for Lent<'_> {}

/// One call of `run`, as the threads see it.
struct Work<'a> {
    piece: &'a (dyn Fn(usize) + Sync),
    done: Vec<AtomicBool>,
    /// What the first piece to panic said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Workers for Lent<'_> {
    fn count(&self) -> usize {
        self.count
    }

    fn run(&self, piece: &(dyn Fn(usize) + Sync)) {
        let done = (0..self.count).map(|_| AtomicBool::new(false)).collect();
        let work = Work { piece, done, panic: Mutex::new(None) };
        let data = (&raw const work).cast_mut().cast::<c_void>();
        // The pool returns when every piece has; 0 leaves how they are dealt out to it.
        let lent = call!(
            self.api,
            KernelContext_ParallelFor(self.context, one_piece, self.count, 0, data)
        );
        if lent.is_err() {
            for index in 0..self.count {
                work.one(index);
            }
        }
        let panic = work.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Work<'_> {
    /// Runs the piece unless it has run.
    fn one(&self, index: usize) {
        let Some(done) = self.done.get(index) else { return };
        // Relaxed: the flag only says who runs it; the pool orders the work itself.
        if done.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (self.piece)(index))) {
            let mut panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            panic.get_or_insert(payload);
        }
    }
}

unsafe extern "C" fn one_piece(data: *mut c_void, index: usize) {
    // SAFETY: `run` passes its `Work`, shared, and waits for every piece before it returns.
    let work: &Work<'_> = unsafe { &*data.cast() };
    work.one(index);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_runs_once_however_often_it_is_asked_for() {
        let runs = [AtomicBool::new(false), AtomicBool::new(false)];
        let piece = |index: usize| assert!(!runs[index].swap(true, Ordering::Relaxed));
        let done = (0..2).map(|_| AtomicBool::new(false)).collect();
        let work = Work { piece: &piece, done, panic: Mutex::new(None) };
        for index in [1, 0, 1, 0, 7] {
            work.one(index);
        }
        assert!(work.panic.into_inner().unwrap().is_none());
        assert!(runs.iter().all(|run| run.load(Ordering::Relaxed)));
    }

    #[test]
    fn the_first_panic_of_a_piece_is_kept() {
        let piece = |index: usize| panic!("piece {index}");
        let done = (0..2).map(|_| AtomicBool::new(false)).collect();
        let work = Work { piece: &piece, done, panic: Mutex::new(None) };
        work.one(1);
        work.one(0);
        let payload = work.panic.into_inner().unwrap().unwrap();
        assert_eq!(payload.downcast_ref::<String>().unwrap(), "piece 1");
    }
}
