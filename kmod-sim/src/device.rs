//! One PCI function, as seen from its pins: registers, configuration space, mappings, interrupts.
//!
//! ```text
//!   read32 / write32      registers            lock for a moment, never for a command
//!   wait                  interrupts           the thread that waits drives the device meanwhile
//!   map / unmap           memory               unmap ends the jobs that use it, then returns
//! ```
//!
//! The function has no thread. One of the threads that wait, or one that only [serves](Function::serve), executes the job that runs, command by
//! command, with the lock released; all others can still read registers, abort and reset.

use crate::array::{Array, Seat};
use crate::config::Config;
use crate::guest::MapError;
use crate::inject::Injector;
use crate::interrupt::{InterruptSink, Signals, Turn};
use crate::kernel::{Engine, Isa, IsaError};
use crate::mortem::{Left, unix_ms};
use crate::pci::Effect;
use crate::state::State;
use crate::watch::Watch;
use npu_uapi::addr::Iova;
use npu_uapi::event::{Event, kind};
use npu_uapi::limits::Limits;
use npu_uapi::queue::Counters;
use npu_uapi::reg::Register;
use npu_uapi::regs::{self, Abort, Ctrl, HeartbeatHigh, HeartbeatLow, Kick, state};
use npu_uapi::status::Status;
use npu_uapi::telemetry::Snapshot;
use npu_uapi::workers::Workers;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long an unmap waits for a job to notice that it is to end. Kernels look every few milliseconds.
const UNMAP_PATIENCE: Duration = Duration::from_secs(30);

/// Told what a function has done whenever that changes.
pub(crate) trait Telemetry: std::fmt::Debug + Send + Sync {
    /// The function is locked meanwhile: this must neither wait nor call it.
    fn show(&self, snapshot: &Snapshot);
}

/// Given what jobs leave that fault or hang.
pub(crate) trait DumpSink: std::fmt::Debug + Send + Sync {
    /// The function is not locked.
    fn left(&self, left: Left);
}

/// A virtual NPU.
#[derive(Debug)]
pub struct Function {
    config: Config,
    isa: Isa,
    state: Mutex<State>,
    /// A command has ended.
    pub(crate) ended: Condvar,
    signals: Arc<Signals>,
    pub(crate) injector: Arc<Injector>,
    /// The command under way.
    pub(crate) engine: Arc<Engine>,
    /// Where the array is shared with other functions.
    pub(crate) seat: Option<Seat>,
    /// Who is shown what is done, where somebody looks.
    pub(crate) telemetry: OnceLock<Arc<dyn Telemetry>>,
    /// Who is given dumps, where somebody keeps them.
    pub(crate) dumps: OnceLock<Arc<dyn DumpSink>>,
    pub(crate) started_ms: u64,
    pub(crate) epoch: Instant,
    /// Wall time in ns of commands that have ended, and since when one is executed, or zero; where somebody
    /// looks.
    pub(crate) busy: AtomicU64,
    pub(crate) busy_since: AtomicU64,
    /// Whether codes at the ends of their range are counted.
    counts_saturation: AtomicBool,
}

impl Function {
    /// A function after power-on, with the kernels that this processor or `NPU_ISA` asks for.
    ///
    /// # Errors
    /// `NPU_ISA` names kernels that do not exist or cannot run here.
    pub fn new(config: Config) -> Result<Self, IsaError> {
        Self::with_seat(config, |_| None)
    }

    /// A function that is no NPU, but has configuration space and interrupts: for management.
    ///
    /// # Errors
    /// As for [`Function::new`].
    #[cfg(feature = "server")]
    pub(crate) fn manager(config: Config) -> Result<Self, IsaError> {
        let function = Self::new(config)?;
        function.lock().pci.become_manager();
        Ok(function)
    }

    /// A function that shares `array` with others, and computes with its workers only.
    ///
    /// # Errors
    /// As for [`Function::new`].
    pub fn sharing(config: Config, array: Arc<Array>) -> Result<Self, IsaError> {
        Self::with_seat(config, |engine| Some(Seat::new(array, Arc::clone(engine))))
    }

    fn with_seat(
        config: Config,
        seat: impl FnOnce(&Arc<Engine>) -> Option<Seat>,
    ) -> Result<Self, IsaError> {
        let isa = Isa::detect()?;
        let vectors = usize::try_from(config.limits.vectors).unwrap_or(0);
        let signals = Arc::new(Signals::new(vectors));
        let injector = Arc::new(Injector::new(&config.inject));
        let engine: Arc<Engine> = Arc::default();
        let origin = format!("kmod-sim {}, {} kernels", env!("CARGO_PKG_VERSION"), isa.name());
        let seat = seat(&engine);
        Ok(Self {
            config,
            isa,
            state: Mutex::new(State::new(
                config,
                Arc::clone(&signals),
                Arc::clone(&injector),
                (Arc::clone(&engine), origin),
            )),
            ended: Condvar::new(),
            signals,
            injector,
            engine,
            seat,
            telemetry: OnceLock::new(),
            dumps: OnceLock::new(),
            started_ms: unix_ms(),
            epoch: Instant::now(),
            busy: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            counts_saturation: AtomicBool::new(config.counts_saturation),
        })
    }

    /// What the device reports of itself.
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// The options it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes the device misbehave.
    pub fn injector(&self) -> &Arc<Injector> {
        &self.injector
    }

    /// Jobs and admin entries that were submitted and not yet answered.
    pub fn in_flight(&self) -> u32 {
        self.lock().in_flight()
    }

    /// What it has done since its last reset, and its `Status` register.
    pub fn counters(&self) -> (Counters, regs::Status) {
        let state = self.lock();
        (state.counters, state.regs.get())
    }

    /// Whether to count output codes at the ends of their range from the next command on. Off unless the
    /// configuration says otherwise: what is written is read once more for it.
    pub fn count_saturation(&self, is_on: bool) {
        self.counts_saturation.store(is_on, Relaxed);
        // Who looks at its page sees it at once.
        self.show_again();
    }

    /// Whether they are counted.
    pub fn counts_saturation(&self) -> bool {
        // Relaxed: it changes no result, and a command more or less may be counted.
        self.counts_saturation.load(Relaxed)
    }

    /// Which kernels it runs.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Shows `telemetry` what is done from now on; only the first is shown anything.
    #[cfg(feature = "server")]
    pub(crate) fn connect_telemetry(&self, telemetry: Arc<dyn Telemetry>) {
        // Each client has a function of its own, and one page.
        let _ = self.telemetry.set(telemetry);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Kernels run outside the lock; what is inside is consistent between any two method calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Tells the thread that executes a command, or waits for the array, to end it. Under the lock, so
    /// that it is the command that was found active.
    fn end_command(&self) {
        self.engine.abort();
        if let Some(seat) = &self.seat {
            seat.wake();
        }
    }

    /// Reads the register at byte `offset` of BAR0; zero where there is none.
    pub fn read32(&self, offset: u32) -> u32 {
        let beats = self.engine.heartbeat().to_le_bytes();
        let [a, b, c, d, e, f, g, h] = beats;
        match offset {
            HeartbeatLow::OFFSET => u32::from_le_bytes([a, b, c, d]),
            HeartbeatHigh::OFFSET => u32::from_le_bytes([e, f, g, h]),
            _ => self.lock().regs.read(offset),
        }
    }

    /// Writes it. What the access rules forbid is dropped and recorded as a fault.
    pub fn write32(&self, offset: u32, value: u32) {
        let mut state = self.lock();
        let was_enabled = state.is_enabled();
        if let Err(refused) = state.regs.write(offset, value) {
            let problem = crate::fault::Problem::new(refused.0).at(offset.into(), 4);
            state.report(problem, crate::fault::Victim::default());
            return;
        }
        match offset {
            Ctrl::OFFSET => self.control(&mut state, was_enabled, Ctrl::from_raw(value)),
            Kick::OFFSET => {
                state.counters.kicks = state.counters.kicks.saturating_add(1);
                let cycles = state.counters.cycles;
                state.recorder.record_traced(|| Event { cycles, ..Event::new(kind::KICK) });
                self.signals.kick();
            }
            Abort::OFFSET => {
                let queue = Abort::from_raw(value).get(Abort::QUEUE);
                if u16::try_from(queue).is_ok_and(|queue| state.abort_queue(queue)) {
                    self.end_command();
                }
            }
            _ => {}
        }
    }

    fn control(&self, state: &mut State, was_enabled: bool, value: Ctrl) {
        let is_enabled = value.get(Ctrl::ENABLE);
        state.regs.set(Ctrl::default().with(Ctrl::ENABLE, is_enabled));
        // A driver that takes ENABLE back asks for silence, which is what a reset gives.
        if value.get(Ctrl::RESET) || was_enabled && !is_enabled {
            self.begin_reset(state);
        } else if is_enabled && !was_enabled && state.state() == state::RESET {
            state.enable();
        }
    }

    /// Resets at once, or as soon as the command that executes has stopped.
    fn begin_reset(&self, state: &mut State) {
        if state.is_active() {
            state.set_state(state::QUIESCING);
            self.end_command();
        } else {
            state.reset();
        }
        self.show(state, false);
    }

    /// Reads the dword at `offset` of configuration space.
    pub fn config_read(&self, offset: u32) -> u32 {
        self.lock().pci.read(offset)
    }

    /// Writes it. A function-level reset also forgets what configuration space holds.
    pub fn config_write(&self, offset: u32, value: u32) {
        let mut state = self.lock();
        match state.pci.write(offset, value) {
            Effect::Nothing => {}
            Effect::Unmasked => state.deliver_pending(),
            Effect::Reset => {
                state.pci.reset();
                self.begin_reset(&mut state);
            }
        }
    }

    /// Reads the dword at `offset` of BAR2: the MSI-X table and pending bits.
    pub fn msix_read(&self, offset: u32) -> u32 {
        self.lock().pci.read_bar2(offset)
    }

    /// Writes it.
    pub fn msix_write(&self, offset: u32, value: u32) {
        let mut state = self.lock();
        if state.pci.write_bar2(offset, value) == Effect::Unmasked {
            state.deliver_pending();
        }
    }

    /// Lets the device reach `len` bytes at `host` as `iova`, with `access` bits of
    /// [`npu_uapi::queue::access`].
    ///
    /// # Safety
    ///
    /// The bytes stay valid for reads, and for writes where `access` says so, until [`Function::unmap`]
    /// succeeds or the function is dropped; meanwhile the process holds no Rust references to them
    /// while the device may access them.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps another mapping.
    pub unsafe fn map(
        &self,
        iova: Iova,
        host: *mut u8,
        len: usize,
        access: u8,
    ) -> Result<(), MapError> {
        // SAFETY: the caller's promise is the one that `Guest::map` asks for.
        unsafe { self.lock().guest.map(iova, (host, None), len, access) }
    }

    /// As [`Function::map`], for memory that also lies at `window`, where neighbours in IOVA space are
    /// adjacent.
    ///
    /// # Safety
    ///
    /// As there, for either address.
    #[cfg(feature = "server")]
    pub(crate) unsafe fn map_with_window(
        &self,
        iova: Iova,
        hosts: (*mut u8, Option<std::ptr::NonNull<u8>>),
        len: usize,
        access: u8,
    ) -> Result<(), MapError> {
        // SAFETY: the caller's promise is the one that `Guest::map` asks for.
        unsafe { self.lock().guest.map(iova, hosts, len, access) }
    }

    /// Lets the device reach `len` bytes from `offset` on in `memory` as `iova`, by copies.
    #[cfg(feature = "server")]
    pub(crate) fn map_remote(
        &self,
        iova: Iova,
        memory: (Arc<dyn crate::remote::Remote>, u64),
        len: u64,
        access: u8,
    ) -> Result<(), MapError> {
        self.lock().guest.map_remote(iova, memory, len, access)
    }

    /// Ends the mapping of `len` bytes at `iova`: jobs that use it are ended, queues in it stopped.
    ///
    /// # Errors
    /// There is no such mapping; or a job did not end, and the memory must not be freed.
    pub fn unmap(&self, iova: Iova, len: u64) -> Result<(), MapError> {
        let deadline = Instant::now() + UNMAP_PATIENCE;
        let range = (iova.raw(), len);
        let mut state = self.lock();
        // First, so that nothing new begins to use it, however fast the driver submits.
        let mapping = state.guest.take(iova, len)?;
        while state.end_users_of(range, Status::ABORTED) {
            self.end_command();
            let now = Instant::now();
            if now >= deadline {
                state.guest.put_back(iova, mapping);
                return Err(MapError::Busy { iova });
            }
            state.await_end(true);
            let waited = self.ended.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.await_end(false);
        }
        state.stop_queues_in(range);
        if state.running.iter().flatten().any(|running| running.end.is_some()) {
            self.end_command();
        }
        Ok(())
    }

    /// How often interrupt `vector` was raised, free-running.
    pub fn interrupts(&self, vector: u16) -> u64 {
        self.signals.count(vector)
    }

    /// Ends the waits for `vector` as an interrupt would, for a driver that has its own reason.
    pub fn wake(&self, vector: u16) {
        self.signals.raise(vector);
    }

    /// Waits until `vector` was raised since it was seen at `seen`, or `deadline`; returns the count.
    ///
    /// Meanwhile this thread drives the device with `workers`, unless another already does. It looks
    /// at the deadline between commands.
    pub fn wait(&self, vector: u16, seen: u64, deadline: Instant, workers: &dyn Workers) -> u64 {
        loop {
            match self.signals.wait(vector, seen, deadline) {
                Turn::Raised(count) => return count,
                Turn::TimedOut => return seen,
                Turn::Drive(mut driving) => {
                    let mut held = None;
                    while driving.goes_on(vector, seen) && Instant::now() < deadline {
                        driving.looks();
                        if !self.step(workers, &mut held) && self.may_sleep() {
                            driving.found_nothing();
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Drives the device until it has nothing to do; whether this thread got to.
    pub fn drive(&self, workers: &dyn Workers) -> bool {
        let Some(mut driving) = self.signals.try_drive() else { return false };
        let mut held = None;
        loop {
            driving.looks();
            if !self.step(workers, &mut held) && self.may_sleep() {
                driving.found_nothing();
                return true;
            }
        }
    }

    /// Passes raised vectors to `sink` from now on, besides counting them; whether there was none before.
    pub fn connect_interrupts(&self, sink: Arc<dyn InterruptSink>) -> bool {
        self.signals.connect(sink)
    }

    /// Drives the device until [`Function::stop`]: for a function that has a thread of its own, since
    /// its driver lives elsewhere. Without work it looks for at most `patience` longer, then it sleeps.
    pub fn serve(&self, workers: &dyn Workers, patience: Duration) {
        let mut watch = Watch::new(patience);
        while let Some(mut driving) = self.signals.wait_to_drive() {
            let mut held = None;
            while !driving.is_stopped() {
                driving.looks();
                if watch.sees(|| self.look(workers, &mut held)) || self.step(workers, &mut held) {
                    continue;
                }
                if self.may_sleep() {
                    driving.found_nothing();
                    break;
                }
            }
        }
    }

    /// Asks for kicks; whether the device may sleep until one comes.
    fn may_sleep(&self) -> bool {
        self.lock().may_sleep()
    }

    /// Ends [`Function::serve`] for ever, after the command that executes. Reset the function first to
    /// end that command soon. A job that waits for the array rests for ever.
    pub fn stop(&self) {
        self.signals.stop();
        if let Some(seat) = &self.seat {
            seat.stop();
        }
    }
}
