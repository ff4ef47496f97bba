//! A driver by hand: a client with queues in memory of its own, which also answers for memory without a file.

use super::{Client, DEADLINE, Sim, sealed};
use memmap2::MmapRaw;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use npu_uapi::addr::Iova;
use npu_uapi::queue::{
    Completion, CopyEntry, Counters, CreateContext, CreateQueue, EntryHeader, FillEntry, GetLog,
    opcode,
};
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    AdminBaseLow, AdminSize, Ctrl, IrqMask, IrqStatus, Kick, Status as State, state,
};
use npu_uapi::ring::{Driver, LastLook, RingLayout, Words};
use npu_uapi::status::Status;
use npu_uapi::vfio_user::{
    DmaAccess, DmaMap, Header, IrqSet, RegionAccess, SERVER_ID, command, errno, irq, irq_set,
    region,
};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use zerocopy::{FromBytes, IntoBytes};

/// Where the rings and what the device writes for the driver lie.
pub(super) const RINGS: u64 = 0x1000_0000;
pub(super) const RINGS_BYTES: u64 = 0x1_0000;
pub(super) const LOG: u64 = RINGS + 0xf000;
/// Where memory without a file begins.
pub(super) const ASKED: u64 = 0x50_0000_0000;

/// How memory without a file answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    Properly,
    Refuse,
    Short,
    ForAnother,
    Never,
}

/// Ring words in a mapped file.
pub(super) struct Rings(Arc<MmapRaw>, usize, usize);

impl Rings {
    pub(super) fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.2 && self.1 + self.2 * 4 <= self.0.len());
        let first = self.0.as_mut_ptr().wrapping_add(self.1).cast::<u32>();
        // SAFETY: the word lies in the mapping, which `self` keeps, and is aligned; all access to it
        // is atomic.
        unsafe { AtomicU32::from_ptr(first.wrapping_add(index)) }
    }
}

impl Words for Rings {
    fn word_count(&self) -> usize {
        self.2
    }
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }
    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.word(index).store(value, order);
    }
}

/// A client with an admin queue, an I/O queue, and memory that it is asked for.
pub(super) struct Guest {
    pub(super) client: Client,
    pub(super) rings: Arc<MmapRaw>,
    pub(super) file: File,
    pub(super) event: EventFd,
    pub(super) admin: Driver<Rings>,
    pub(super) queue: Option<(u32, Driver<Rings>)>,
    /// Memory from [`ASKED`] on, for requests of the server.
    pub(super) memory: Vec<u8>,
    pub(super) answer: Answer,
    /// Requests so far.
    pub(super) asked: usize,
    /// Most bytes of one request.
    pub(super) most_bytes: u64,
}

impl Guest {
    pub(super) fn new(sim: &Sim) -> Self {
        let client = sim.connect();
        let version = b"\0\0\x01\0{\"capabilities\":{\"max_data_xfer_size\":8192}}\0";
        client.call(command::VERSION, version, &[]).unwrap();
        let fd = sealed(RINGS_BYTES.try_into().unwrap());
        client.map(RINGS, RINGS_BYTES, &fd).unwrap();
        let rings = Arc::new(memmap2::MmapOptions::new().map_raw(&fd).unwrap());
        let event = EventFd::new().unwrap();
        for vector in 0..2 {
            let flags = irq_set::DATA_EVENTFD | irq_set::TRIGGER;
            let request = IrqSet { argsz: 20, flags, index: irq::MSIX, start: vector, count: 1 };
            let fds = [event.as_fd().as_raw_fd()];
            client.call(command::DEVICE_SET_IRQS, request.as_bytes(), &fds).unwrap();
        }
        let access = RegionAccess { offset: 4, region: region::CONFIG, count: 4 };
        let body = [access.as_bytes(), &6_u32.to_le_bytes()].concat();
        client.call(command::REGION_WRITE, &body, &[]).unwrap();
        client.write(AdminBaseLow::OFFSET, u32::try_from(RINGS).unwrap());
        let size = AdminSize::default().with(AdminSize::SQ_LOG2, 4).with(AdminSize::CQ_LOG2, 4);
        client.write(AdminSize::OFFSET, size.raw());
        client.write(IrqMask::OFFSET, IrqMask::default().with(IrqMask::ADMIN, true).raw());
        client.write(Ctrl::OFFSET, Ctrl::default().with(Ctrl::ENABLE, true).raw());
        let found = State::from_raw(client.read(State::OFFSET));
        assert_eq!(found.get(State::STATE), state::READY);
        let admin = Self::driver(&rings, 0);
        let (memory, answer) = (vec![0; 1 << 20], Answer::Properly);
        let (file, queue) = (File::from(fd), None);
        let most_bytes = 0;
        let mut guest =
            Self { client, rings, file, event, admin, queue, memory, answer, asked: 0, most_bytes };
        let entry = CreateContext {
            header: EntryHeader::new(opcode::CREATE_CONTEXT, 0),
            ..CreateContext::default()
        };
        let context = guest.run_admin(entry.words());
        assert_eq!(context.status, Status::OK);
        let queue = guest.create_queue(context.value, RINGS + 0x4000);
        assert_eq!(queue.status, Status::OK);
        guest.queue = Some((queue.value, Self::driver(&guest.rings, 0x4000)));
        guest
    }

    pub(super) fn driver(rings: &Arc<MmapRaw>, at: usize) -> Driver<Rings> {
        let layout = RingLayout::new(4, 4).unwrap();
        Driver::new(Rings(Arc::clone(rings), at, layout.total_words()), layout).unwrap()
    }

    pub(super) fn create_queue(&mut self, context: u32, base: u64) -> Completion {
        let entry = CreateQueue {
            header: EntryHeader::new(opcode::CREATE_QUEUE, 0),
            base: Iova::new(base),
            context,
            sq_log2: 4,
            cq_log2: 4,
            vector: 1,
            ..CreateQueue::default()
        };
        self.run_admin(entry.words())
    }

    /// A register access whose reply may come behind requests.
    pub(super) fn call(&mut self, command: u16, body: &[u8]) -> Vec<u8> {
        self.client.send(Header::command(1, command, body.len()).unwrap(), body, &[]);
        loop {
            let (header, body) = self.client.reply();
            if header.is_reply() {
                assert_eq!((header.id, header.command, header.failure()), (1, command, None));
                return body;
            }
            self.serve(header, &body);
        }
    }

    pub(super) fn write(&mut self, offset: u32, value: u32) {
        let access = RegionAccess { offset: offset.into(), region: region::BAR0, count: 4 };
        self.call(command::REGION_WRITE, &[access.as_bytes(), value.as_bytes()].concat());
    }

    pub(super) fn read(&mut self, offset: u32) -> u32 {
        let access = RegionAccess { offset: offset.into(), region: region::BAR0, count: 4 };
        let body = self.call(command::REGION_READ, access.as_bytes());
        u32::from_le_bytes(body[16..].try_into().unwrap())
    }

    /// Answers a request of the server.
    pub(super) fn serve(&mut self, header: Header, body: &[u8]) {
        assert!(header.id >= SERVER_ID, "{header:?}");
        self.asked += 1;
        let (access, data) = DmaAccess::read_from_prefix(body).unwrap();
        self.most_bytes = self.most_bytes.max(access.count);
        let start = usize::try_from(access.address.raw() - ASKED).unwrap();
        let range = start..start + usize::try_from(access.count).unwrap();
        let mut reply = access.as_bytes().to_vec();
        match header.command {
            command::DMA_READ => reply.extend(&self.memory[range]),
            command::DMA_WRITE => self.memory[range].copy_from_slice(data),
            other => panic!("the server sent command {other}"),
        }
        let head = header.reply(reply.len()).unwrap();
        match self.answer {
            Answer::Properly => self.client.send(head, &reply, &[]),
            Answer::Refuse => self.client.send(header.error_reply(errno::EIO), &[], &[]),
            Answer::Short => {
                let len = reply.len() - 1;
                self.client.send(header.reply(len).unwrap(), &reply[..len], &[]);
            }
            Answer::ForAnother => {
                // The answer to a request that was not made comes first; it changes nothing.
                let other = Header { id: head.id ^ 0x40, ..head };
                self.client.send(other, &vec![0xee; reply.len()], &[]);
                self.client.send(head, &reply, &[]);
            }
            Answer::Never => {}
        }
    }

    /// Waits for the next interrupt, or for the next request, which is answered; whether it was that.
    pub(super) fn wait(&mut self) -> bool {
        let (is_asked, is_raised) = {
            let mut fds = [
                PollFd::new(self.client.stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
            ];
            let ready = poll(&mut fds, PollTimeout::try_from(DEADLINE).unwrap()).unwrap();
            assert!(ready > 0, "nothing comes");
            (fds[0].any() == Some(true), fds[1].any() == Some(true))
        };
        if is_asked {
            let (header, body) = self.client.reply();
            assert!(!header.is_reply(), "{header:?}");
            self.serve(header, &body);
        } else if is_raised {
            self.event.read().unwrap();
        }
        is_asked
    }

    pub(super) fn run_admin(&mut self, entry: [u32; 16]) -> Completion {
        self.admin.push(&entry).unwrap();
        self.admin.publish();
        if self.admin.needs_kick() {
            self.write(Kick::OFFSET, 0);
        }
        loop {
            // Before the look: what is pending raises nothing again.
            self.write(IrqStatus::OFFSET, IrqStatus::default().with(IrqStatus::ADMIN, true).raw());
            if self.admin.arm_interrupt() == LastLook::Work {
                break;
            }
            self.wait();
        }
        Completion::from_words(self.admin.reap().unwrap().unwrap())
    }

    pub(super) fn submit(&mut self, entry: [u32; 16]) {
        let (id, queue) = self.queue.as_mut().unwrap();
        queue.push(&entry).unwrap();
        queue.publish();
        let id = *id;
        if queue.needs_kick() {
            self.write(Kick::OFFSET, id);
        }
    }

    pub(super) fn finish(&mut self) -> Completion {
        while self.queue.as_mut().unwrap().1.arm_interrupt() == LastLook::Clear {
            self.wait();
        }
        Completion::from_words(self.queue.as_mut().unwrap().1.reap().unwrap().unwrap())
    }

    pub(super) fn copy(&mut self, src: u64, dst: u64, len: u64) -> Status {
        self.submit(copy_entry(src, dst, len));
        self.finish().status
    }

    pub(super) fn fill(&mut self, dst: u64, len: u64, value: u32) -> Status {
        let header = EntryHeader::new(opcode::FILL, 8);
        let dst = Iova::new(dst);
        self.submit(FillEntry { header, dst, len, value, ..FillEntry::default() }.words());
        self.finish().status
    }

    pub(super) fn counters(&mut self) -> Counters {
        let header = EntryHeader::new(opcode::GET_LOG, 1);
        let entry = GetLog { header, out: Iova::new(LOG), ..GetLog::default() };
        assert_eq!(self.run_admin(entry.words()).status, Status::OK);
        let mut bytes = [0; size_of::<Counters>()];
        self.file.read_exact_at(&mut bytes, LOG - RINGS).unwrap();
        Counters::read_from_bytes(&bytes).unwrap()
    }

    pub(super) fn map(
        &self,
        address: u64,
        size: u64,
        file: Option<(&OwnedFd, u64)>,
    ) -> Result<(), u32> {
        let offset = file.map_or(0, |(_, offset)| offset);
        let request = DmaMap { argsz: 32, flags: 3, offset, address: Iova::new(address), size };
        let fds: Vec<_> = file.iter().map(|(file, _)| file.as_raw_fd()).collect();
        self.client.call(command::DMA_MAP, request.as_bytes(), &fds).map(drop)
    }
}

pub(super) fn copy_entry(src: u64, dst: u64, len: u64) -> [u32; 16] {
    let (header, src, dst) = (EntryHeader::new(opcode::COPY, 7), Iova::new(src), Iova::new(dst));
    CopyEntry { header, src, dst, len, ..CopyEntry::default() }.words()
}
