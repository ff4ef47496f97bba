//! vfio-user as others speak it: the `vfio_user` crate's client drives our server, and our client its
//! server, behind which a device of ours sits.

mod foreign_server;

use foreign_server::{Failure, ForeignServer};
use libnpu::{Access, Caller, Device, Error, Memory, TransportError};
use memmap2::MmapRaw;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use npu_tests::{HANG, Simulator, fill, image};
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::image::slot_kind;
use npu_uapi::limits::Limits;
use npu_uapi::queue::{
    Completion, CreateContext, CreateQueue, EntryHeader, FillEntry, Identify, Nop, opcode,
};
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    self, AdminBaseLow, AdminSize, Ctrl, IrqMask, IrqStatus, Kick, MAGIC, Magic, state,
};
use npu_uapi::ring::{Driver, LastLook, RingLayout, Words};
use npu_uapi::status::Status;
use npu_uapi::telemetry;
use npu_uapi::vfio_user::{irq, irq_set, region};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;
use vfio_user::Client;
use zerocopy::FromBytes;

/// What a thread of its own does, since the crate's client waits for replies without a limit.
fn bounded<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(what()));
    receiver.recv_timeout(HANG).expect("it failed, or the other side hangs")
}

/// Memory in a file, as a virtual machine has it.
struct Shared {
    file: OwnedFd,
    bytes: MmapRaw,
}

impl Shared {
    const LEN: usize = 2 << 20;

    fn new() -> Self {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"guest", flags).unwrap();
        nix::unistd::ftruncate(&file, Self::LEN.try_into().unwrap()).unwrap();
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        let bytes = memmap2::MmapOptions::new().map_raw(&file).unwrap();
        Self { file, bytes }
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= Self::LEN);
        let byte = |at| {
            // SAFETY: the byte lies in the mapping, which lives; both sides access it atomically.
            unsafe { AtomicU8::from_ptr(self.bytes.as_mut_ptr().wrapping_add(at)) }
        };
        (at..at + len).map(|at| byte(at).load(Ordering::Relaxed)).collect()
    }
}

/// Ring words from byte `at` on.
struct RingWords {
    memory: Arc<Shared>,
    at: usize,
    count: usize,
}

impl RingWords {
    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.count && self.at + self.count * 4 <= Shared::LEN);
        let first = self.memory.bytes.as_mut_ptr().wrapping_add(self.at).cast::<u32>();
        // SAFETY: the word lies in the mapping, which lives as long as `self`, and is aligned, as
        // `at` is a multiple of 64; both sides access it atomically.
        unsafe { AtomicU32::from_ptr(first.wrapping_add(index)) }
    }
}

impl Words for RingWords {
    fn word_count(&self) -> usize {
        self.count
    }
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }
    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.word(index).store(value, order);
    }
}

/// A page that this side only reads.
struct ReadWords(MmapRaw);

impl Words for ReadWords {
    fn word_count(&self) -> usize {
        self.0.len() / 4
    }
    fn load(&self, index: usize, order: Ordering) -> u32 {
        assert!(index < self.word_count());
        let word = self.0.as_mut_ptr().cast::<u32>().wrapping_add(index);
        // SAFETY: the word lies in the mapping, which lives, and is aligned; it is only loaded.
        unsafe { AtomicU32::from_ptr(word) }.load(order)
    }
    fn store(&self, _: usize, _: u32, _: Ordering) {
        unreachable!("the page is read-only");
    }
}

const BASE: u64 = 0x1_0000_0000;

/// A driver by hand, on the crate's client.
struct Hand {
    client: Client,
    memory: Arc<Shared>,
    events: [EventFd; 2],
}

impl Hand {
    fn connect(path: &Path) -> Self {
        let mut client = Client::new(path).unwrap();
        let info = client.get_irq_info(irq::MSIX).unwrap();
        assert!(info.count >= 2, "{info:?}");
        let memory = Arc::new(Shared::new());
        let fd = memory.file.as_raw_fd();
        client.dma_map(0, BASE, Shared::LEN as u64, fd).unwrap();
        let events = [EventFd::new().unwrap(), EventFd::new().unwrap()];
        let fds = [0, 1].map(|at: usize| events[at].as_fd().as_raw_fd());
        let flags = irq_set::DATA_EVENTFD | irq_set::TRIGGER;
        client.set_irqs(irq::MSIX, flags, 0, 2, &fds).unwrap();
        Self { client, memory, events }
    }

    fn read<R: Register>(&mut self) -> R {
        let mut bytes = [0; 4];
        self.client.region_read(region::BAR0, R::OFFSET.into(), &mut bytes).unwrap();
        R::from_raw(u32::from_le_bytes(bytes))
    }

    fn write<R: Register>(&mut self, value: R) {
        let bytes = value.raw().to_le_bytes();
        self.client.region_write(region::BAR0, R::OFFSET.into(), &bytes).unwrap();
    }

    fn wait_for_state(&mut self, expected: u32) {
        let start = Instant::now();
        loop {
            let found = self.read::<regs::Status>().get(regs::Status::STATE);
            if found == expected {
                return;
            }
            assert!(start.elapsed() < HANG, "state {found}, not {expected}");
            std::thread::yield_now();
        }
    }

    fn rings(&self, at: usize) -> Driver<RingWords> {
        let layout = RingLayout::new(4, 4).unwrap();
        let words = RingWords { memory: Arc::clone(&self.memory), at, count: layout.total_words() };
        (0..words.count).for_each(|index| words.store(index, 0, Ordering::Relaxed));
        Driver::new(words, layout).unwrap()
    }

    /// Runs one entry and waits for its completion as an interrupt.
    fn run(
        &mut self,
        rings: &mut Driver<RingWords>,
        (queue, vector): (u32, usize),
        entry: [u32; 16],
    ) -> Completion {
        // Before the look: what is pending raises nothing again.
        self.write(IrqStatus::default().with(IrqStatus::ADMIN, true));
        rings.push(&entry).unwrap();
        rings.publish();
        let look = rings.arm_interrupt();
        if rings.needs_kick() {
            self.write(Kick::from_raw(queue));
        }
        if look == LastLook::Clear {
            let mut fds = [PollFd::new(self.events[vector].as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(HANG).unwrap();
            assert_eq!(poll(&mut fds, timeout), Ok(1), "no interrupt");
            self.events[vector].read().unwrap();
        }
        Completion::from_words(rings.reap().unwrap().expect("a completion was announced"))
    }

    /// Maps the telemetry page, as the region's capability says.
    fn telemetry(&self) -> MmapRaw {
        let page = self.client.region(region::BAR4).unwrap();
        assert_eq!((page.flags, page.size), (0b1101, 4096), "read, mmap, capabilities");
        let [area] = page.sparse_areas[..] else { panic!("{page:?}") };
        assert_eq!((area.offset, area.size), (0, 4096));
        let file = page.file_offset.as_ref().unwrap();
        let options = memmap2::MmapOptions::new();
        assert!(options.map_raw(file.file()).is_err(), "nobody else may write it");
        nix::unistd::ftruncate(file.file(), 0).unwrap_err();
        options.map_raw_read_only(file.file()).unwrap()
    }

    /// From a function that was reset to jobs that are done.
    fn use_it(&mut self, value: u8) {
        assert_eq!(self.read::<Magic>().raw(), MAGIC);
        self.client.region_write(region::CONFIG, 4, &6_u16.to_le_bytes()).unwrap();
        self.write(AdminBaseLow::from_raw(0));
        self.write(regs::AdminBaseHigh::from_raw(1));
        let size = AdminSize::default().with(AdminSize::SQ_LOG2, 4).with(AdminSize::CQ_LOG2, 4);
        self.write(size);
        self.write(IrqMask::default().with(IrqMask::ADMIN, true));
        let mut admin = self.rings(0);
        self.write(Ctrl::default().with(Ctrl::ENABLE, true));
        self.wait_for_state(state::READY);
        let at = |offset: u64| Iova::new(BASE + offset);
        let header = EntryHeader::new;

        let out = at(0x1_0000);
        let entry = Identify { header: header(opcode::IDENTIFY, 1), out, ..Identify::default() };
        let done = self.run(&mut admin, (0, 0), entry.words());
        assert_eq!((done.job, done.status), (1, Status::OK));
        let limits = Limits::read_from_bytes(&self.memory.read(0x1_0000, 128)).unwrap();
        assert!(limits.queues > 0 && limits.vectors >= 2, "{limits:?}");

        let entry =
            CreateContext { header: header(opcode::CREATE_CONTEXT, 2), ..CreateContext::default() };
        let context = self.run(&mut admin, (0, 0), entry.words());
        assert_eq!(context.status, Status::OK);
        let mut rings = self.rings(0x8000);
        let entry = CreateQueue {
            header: header(opcode::CREATE_QUEUE, 3),
            base: at(0x8000),
            context: context.value,
            sq_log2: 4,
            cq_log2: 4,
            vector: 1,
            ..CreateQueue::default()
        };
        let queue = self.run(&mut admin, (0, 0), entry.words());
        assert_eq!(queue.status, Status::OK);
        let queue = (queue.value, 1);

        // More than a ring holds, one at a time.
        for job in 10..60 {
            let entry = Nop { header: header(opcode::NOP, job), ..Nop::default() };
            let done = self.run(&mut rings, queue, entry.words());
            assert_eq!((done.job, done.status), (job, Status::OK));
        }
        let entry = FillEntry {
            header: header(opcode::FILL, 99),
            dst: at(0x10_0001),
            len: 0x8_0000,
            value: value.into(),
            ..FillEntry::default()
        };
        assert_eq!(self.run(&mut rings, queue, entry.words()).status, Status::OK);
        let bytes = self.memory.read(0x10_0000, 0x8_0002);
        assert!(bytes[1..0x8_0001].iter().all(|&byte| byte == value));
        assert_eq!((bytes[0], bytes[0x8_0001]), (0, 0));
        // What is not mapped ends the job, and nothing else.
        let lost = FillEntry { dst: at(0x20_0000), ..entry };
        assert_eq!(self.run(&mut rings, queue, lost.words()).status, Status::UNMAPPED_IOVA);
    }
}

#[test]
fn the_crates_client_drives_our_server_by_hand() {
    let server = Simulator::start("");
    let path = server.device().split_off("vfio-user:".len());
    bounded(move || {
        let mut hand = Hand::connect(path.as_ref());
        let page = ReadWords(hand.telemetry());
        let counters = telemetry::read(&page).unwrap().counters;
        assert_eq!(counters, npu_uapi::queue::Counters::default());
        hand.use_it(3);
        let start = Instant::now();
        // The page follows the completion that the driver has seen.
        while telemetry::read(&page).unwrap().counters.jobs < 1 {
            assert!(start.elapsed() < HANG, "{:?}", telemetry::read(&page));
        }
        let mut bytes = [0; 4];
        hand.client.region_read(region::BAR4, 0, &mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), telemetry::MAGIC);
        let resets = |hand: &mut Hand| hand.read::<regs::Status>().get(regs::Status::RESETS);
        let before = resets(&mut hand);
        hand.client.reset().unwrap();
        hand.wait_for_state(state::RESET);
        assert_eq!(telemetry::read(&page).unwrap().counters.jobs, 0);
        assert_eq!(resets(&mut hand), before + 1);
        // Memory and eventfds are still there.
        hand.use_it(4);
        hand.client.dma_unmap(BASE, Shared::LEN as u64).unwrap();
        hand.wait_for_state(state::FAILED);
        hand.client.shutdown().unwrap();
    });
}

#[test]
fn our_client_drives_the_crates_server() {
    let server = ForeignServer::start(Failure::Never);
    let device = Device::open_private(&server.device()).unwrap();
    for round in 1..=2 {
        let context = device.create_context().unwrap();
        let buffer = device.allocate(100_000).unwrap();
        context.fill(&Memory::from(&buffer), round).unwrap().wait(&Caller, HANG).unwrap();
        assert_eq!(buffer.to_vec(), vec![round; 100_000]);
        let half = |start, access| Memory::buffer(&buffer, start, 50_000, access).unwrap();
        buffer.write(0, &[7; 50_000]).unwrap();
        let (to, from) = (half(50_000, Access::Write), half(0, Access::Read));
        context.copy(&from, &to).unwrap().wait(&Caller, HANG).unwrap();
        assert_eq!(buffer.to_vec(), vec![7; 100_000]);

        let bytes = image(&[(slot_kind::OUTPUT, 64)], &[fill(0, 0, 64, 9, 0)]);
        let program = context.load(&bytes).unwrap();
        let jobs: Vec<_> = (0..200)
            .map(|_| {
                let output = device.allocate(64).unwrap();
                let overlay = vec![(SlotId(0), Memory::from(&output))];
                let job = context.exec(&program, None, overlay).unwrap();
                job.wait(&Caller, HANG).unwrap();
                output
            })
            .collect();
        assert!(jobs.iter().all(|output| output.to_vec() == [9; 64]));
        assert!(device.counters().unwrap().jobs >= 202);
        if round == 1 {
            device.reset().unwrap();
            let error = context.nop().map(drop).unwrap_err();
            assert!(matches!(error, Error::Lost { .. }), "{error}");
        }
    }
    drop(device);
    server.join().unwrap();
}

/// The crate's server answers most errors with the number zero, which must not pass for success.
#[test]
fn a_foreign_server_that_refuses_or_dies_at_any_point_ends_in_a_typed_error() {
    let use_it = |name: &str| -> Result<(), Error> {
        let device = Device::open_private(name)?;
        let context = device.create_context()?;
        let buffer = device.allocate(64)?;
        context.fill(&Memory::from(&buffer), 1)?.wait(&Caller, HANG).map(drop)
    };
    for number in (0..).step_by(3) {
        let mut done = 0;
        for failure in [Failure::Refuse(number), Failure::Die(number)] {
            let server = ForeignServer::start(failure);
            let start = Instant::now();
            match use_it(&server.device()) {
                Ok(()) => done += 1,
                Err(Error::Transport(error)) => {
                    let is_typed = match failure {
                        Failure::Die(_) => matches!(error, TransportError::Gone { .. }),
                        _ => matches!(error, TransportError::Refused { .. }),
                    };
                    assert!(is_typed, "{failure:?}: {error}");
                }
                Err(Error::Lost { .. }) => {}
                Err(error) => panic!("{failure:?}: {error}"),
            }
            assert!(start.elapsed() < HANG, "{failure:?}");
            if matches!(failure, Failure::Die(_)) {
                // A driver whose UNMAP is refused keeps the connection: its memory is still in use.
                let _ = server.join();
            }
        }
        if done == 2 {
            assert!(number > 10, "there are failures before all is done");
            return;
        }
    }
}
