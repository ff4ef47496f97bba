//! `npu-sim` as a process: clients that behave, clients that do not, and what is left of either.
#![expect(clippy::unwrap_used, reason = "tests: the helpers below are not marked as such")]

#[path = "npu_sim/dma.rs"]
mod dma;
#[path = "npu_sim/fuzz.rs"]
mod fuzz;
#[path = "npu_sim/guest.rs"]
mod guest;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use npu_uapi::addr::Iova;
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    FaultBaseLow, FaultHead, FaultLost, FaultTail, IrqMask, IrqStatus, MAGIC, Magic, Scratch,
};
use npu_uapi::status::{FaultRecord, Status};
use npu_uapi::vfio_user::{
    DmaMap, DmaUnmap, HEADER_BYTES, Header, IrqSet, RegionAccess, command, errno, flags, irq,
    irq_set, region,
};
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// Far above what anything here takes: only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(60);

/// A server process, ended with the test.
struct Sim {
    child: Child,
    socket: PathBuf,
}

impl Sim {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let socket = directory.join(format!("{name}-{}.sock", std::process::id()));
        let sim = Self { child: spawn(&socket, arguments), socket };
        Self::wait_until_ready(sim)
    }

    fn wait_until_ready(mut sim: Self) -> Self {
        let mut line = String::new();
        let out = sim.child.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert_eq!(line, format!("listening on {}\n", sim.socket.display()));
        sim
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Client { stream }
    }

    /// A client that has agreed on the version.
    fn client(&self) -> Client {
        let client = self.connect();
        assert_eq!(client.call(command::VERSION, &[0, 0, 1, 0], &[]).unwrap()[..4], [0, 0, 1, 0]);
        client
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Descriptors, threads and mappings of memfds that the process has.
    fn holdings(&self) -> (usize, usize, usize) {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let count = |what: &str| fs::read_dir(proc.join(what)).unwrap().count();
        let maps = fs::read_to_string(proc.join("maps")).unwrap();
        (count("fd"), count("task"), maps.matches("/memfd:").count())
    }

    fn wait_for_holdings(&self, expected: (usize, usize, usize)) {
        let deadline = Instant::now() + DEADLINE;
        while self.holdings() != expected {
            assert!(Instant::now() < deadline, "{:?} are not {expected:?}", self.holdings());
            std::thread::yield_now();
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Both fail only when the test has ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

fn spawn(socket: &PathBuf, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_npu-sim"));
    command.arg("--socket").arg(socket).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

struct Client {
    stream: UnixStream,
}

impl Client {
    fn send(&self, header: Header, body: &[u8], fds: &[RawFd]) {
        let bytes = [header.as_bytes(), body].concat();
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let (fd, flags) = (self.stream.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        let sent = sendmsg::<()>(fd, &[IoSlice::new(&bytes)], rights, flags, None).unwrap();
        (&self.stream).write_all(&bytes[sent..]).unwrap();
    }

    fn reply(&self) -> (Header, Vec<u8>) {
        let mut head = [0; HEADER_BYTES];
        (&self.stream).read_exact(&mut head).unwrap();
        let header = Header::read_from_bytes(&head).unwrap();
        let mut body = vec![0; header.body_len().unwrap()];
        (&self.stream).read_exact(&mut body).unwrap();
        (header, body)
    }

    fn call(&self, command: u16, body: &[u8], fds: &[RawFd]) -> Result<Vec<u8>, u32> {
        let header = Header::command(command, command, body.len()).unwrap();
        self.send(header, body, fds);
        let (reply, body) = self.reply();
        assert_eq!((reply.id, reply.command, reply.is_reply()), (command, command, true));
        match reply.failure() {
            None => Ok(body),
            Some(error) => {
                assert_ne!(reply.error, 0, "zero would say success");
                Err(error)
            }
        }
    }

    fn read(&self, offset: u32) -> u32 {
        let access = RegionAccess { offset: offset.into(), region: region::BAR0, count: 4 };
        let body = self.call(command::REGION_READ, access.as_bytes(), &[]).unwrap();
        u32::from_le_bytes(body[16..].try_into().unwrap())
    }

    fn write(&self, offset: u32, value: u32) {
        let access = RegionAccess { offset: offset.into(), region: region::BAR0, count: 4 };
        let body = [access.as_bytes(), value.as_bytes()].concat();
        self.call(command::REGION_WRITE, &body, &[]).unwrap();
    }

    fn map(&self, at: u64, size: u64, file: &OwnedFd) -> Result<(), u32> {
        let request = DmaMap { argsz: 32, flags: 3, offset: 0, address: Iova::new(at), size };
        self.call(command::DMA_MAP, request.as_bytes(), &[file.as_raw_fd()]).map(|_| ())
    }

    /// Connects vector 0 to an eventfd.
    fn interrupt(&self) -> EventFd {
        let event = EventFd::new().unwrap();
        let flags = irq_set::DATA_EVENTFD | irq_set::TRIGGER;
        let request = IrqSet { argsz: 20, flags, index: irq::MSIX, start: 0, count: 1 };
        let fd = event.as_fd().as_raw_fd();
        self.call(command::DEVICE_SET_IRQS, request.as_bytes(), &[fd]).unwrap();
        event
    }

    /// Whether the server has closed the connection.
    fn is_closed(&self) -> bool {
        matches!((&self.stream).read(&mut [0]), Ok(0) | Err(_))
    }
}

fn sealed(bytes: i64) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create(c"client", flags).unwrap();
    nix::unistd::ftruncate(&file, bytes).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    file
}

/// Has the device write a fault record to its memory and raise vector 0, and looks at both.
fn check_good(client: &Client) {
    assert_eq!(client.read(Magic::OFFSET), MAGIC);
    let file = sealed(8192);
    client.map(0x40_0000, 8192, &file).unwrap();
    let event = client.interrupt();
    client.write(FaultBaseLow::OFFSET, 0x40_0000);
    client.write(FaultTail::OFFSET, client.read(FaultHead::OFFSET));
    let head = client.read(FaultHead::OFFSET);
    let fault = IrqMask::default().with(IrqMask::FAULT, true).raw();
    client.write(IrqStatus::OFFSET, fault);
    client.write(IrqMask::OFFSET, fault);
    client.write(Magic::OFFSET, 1);
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(client.read(FaultHead::OFFSET), head.wrapping_add(1));
    let mut record = [0; 64];
    let memory = fs::File::from(file);
    memory.read_exact_at(&mut record, u64::from(head % 64) * 64).unwrap();
    let record = FaultRecord::read_from_bytes(&record).unwrap();
    assert_eq!((record.status, record.offset), (Status::ACCESS_DENIED, 0));
    // Unmapped, the memory is left alone.
    let request = DmaUnmap { argsz: 24, flags: 0, address: Iova::new(0x40_0000), size: 8192 };
    client.call(command::DMA_UNMAP, request.as_bytes(), &[]).unwrap();
    memory.write_all_at(&[7; 8192], 0).unwrap();
    let lost = client.read(FaultLost::OFFSET);
    client.write(Magic::OFFSET, 1);
    assert_eq!(client.read(FaultLost::OFFSET), lost + 1);
    let mut bytes = [0; 8192];
    memory.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [7; 8192]);
}

#[test]
fn each_client_has_a_device_of_its_own() {
    let sim = Sim::start("own", &["--device", "sram=512K"]);
    let (one, other) = (sim.client(), sim.client());
    one.write(Scratch::OFFSET, 1);
    other.write(Scratch::OFFSET, 2);
    check_good(&one);
    check_good(&other);
    assert_eq!((one.read(Scratch::OFFSET), other.read(Scratch::OFFSET)), (1, 2));
    one.call(command::DEVICE_RESET, &[], &[]).unwrap();
    assert_eq!((one.read(Scratch::OFFSET), other.read(Scratch::OFFSET)), (0, 2));
    check_good(&one);
}

/// What it is, command, body, descriptors, and the error number that it gets.
type Case = (&'static str, u16, Vec<u8>, Vec<RawFd>, u32);

#[test]
fn malformed_messages_are_refused_by_number_and_the_client_goes_on() {
    let sim = Sim::start("malformed", &[]);
    let good = sim.client();
    let access = |region, offset, count| RegionAccess { offset, region, count }.as_bytes().to_vec();
    let map = |address, size| {
        let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: Iova::new(address), size };
        map.as_bytes().to_vec()
    };
    let unmap = |address, size| {
        let unmap = DmaUnmap { argsz: 24, flags: 0, address: Iova::new(address), size };
        unmap.as_bytes().to_vec()
    };
    let file = sealed(8192);
    let fd = file.as_raw_fd();
    let zero = fs::File::open("/dev/zero").unwrap();
    let zero = zero.as_raw_fd();
    let client = sim.client();
    client.map(0x10_0000, 8192, &file).unwrap();
    client.map(u64::MAX - 8191, 8192, &file).unwrap();
    let long = [access(region::BAR0, 0, 4), vec![0; 5]].concat();
    let telemetry = [access(region::BAR4, 0, 4), vec![0; 4]].concat();
    let cases: Vec<Case> = vec![
        ("version twice", command::VERSION, vec![0; 4], vec![], errno::EINVAL),
        ("unknown command", 77, vec![1; 300], vec![], errno::ENOTSUP),
        ("command zero", 0, vec![], vec![], errno::ENOTSUP),
        ("feature", command::DEVICE_FEATURE, vec![0; 16], vec![], errno::ENOTSUP),
        ("server's command", command::DMA_READ, vec![0; 16], vec![], errno::ENOTSUP),
        ("short body", command::DEVICE_GET_INFO, vec![0; 15], vec![], errno::EINVAL),
        ("no body", command::REGION_READ, vec![], vec![], errno::EINVAL),
        ("argsz of zero", command::DEVICE_GET_INFO, vec![0; 16], vec![], errno::EINVAL),
        ("huge count", command::REGION_READ, access(0, 0, u32::MAX), vec![], errno::E2BIG),
        ("beyond", command::REGION_READ, access(0, 0xfffc, 8), vec![], errno::EINVAL),
        ("wraps", command::REGION_READ, access(0, u64::MAX, 4), vec![], errno::EINVAL),
        ("odd", command::REGION_READ, access(0, 2, 4), vec![], errno::EINVAL),
        ("no region", command::REGION_READ, access(9, 0, 4), vec![], errno::EINVAL),
        ("unused region", command::REGION_READ, access(1, 0, 4), vec![], errno::EINVAL),
        ("tail", command::REGION_WRITE, long, vec![], errno::EINVAL),
        ("telemetry", command::REGION_WRITE, telemetry, vec![], errno::EACCES),
        ("stray descriptor", command::DEVICE_RESET, vec![], vec![fd], errno::EINVAL),
        ("17 descriptors", command::DMA_MAP, map(0x20_0000, 4096), vec![fd; 17], errno::EINVAL),
        ("two files", command::DMA_MAP, map(0x20_0000, 4096), vec![fd; 2], errno::EINVAL),
        ("overlap", command::DMA_MAP, map(0x10_1000, 4096), vec![fd], errno::EEXIST),
        ("overlap at 2^64", command::DMA_MAP, map(u64::MAX - 4095, 4096), vec![fd], errno::EEXIST),
        ("beyond 2^64", command::DMA_MAP, map(u64::MAX - 4095, 8192), vec![fd], errno::EINVAL),
        ("beyond the file", command::DMA_MAP, map(0x20_0000, 12288), vec![fd], errno::EINVAL),
        ("no file", command::DMA_MAP, map(0x20_0000, 4096), vec![zero], errno::EBADF),
        ("cut in two", command::DMA_UNMAP, unmap(0x10_0000, 4096), vec![], errno::EINVAL),
        ("empty", command::DMA_UNMAP, unmap(0x10_0000, 0), vec![], errno::EINVAL),
        ("writes without end", command::REGION_WRITE_MULTI, vec![0xff; 8], vec![], errno::EINVAL),
    ];
    for (name, command, body, fds, expected) in cases {
        assert_eq!(client.call(command, &body, &fds), Err(expected), "{name}");
        assert_eq!(client.read(Magic::OFFSET), MAGIC, "after {name}");
    }
    let header = Header { flags: 2, ..Header::command(1, command::DEVICE_RESET, 0).unwrap() };
    client.send(header, &[], &[]);
    assert_eq!(client.reply().0.failure(), Some(errno::EINVAL));
    // Replies to nothing, and posted commands, whether they make sense or not, get no answer.
    for flags in [flags::REPLY, flags::NO_REPLY] {
        let header = Header::command(9, command::DMA_UNMAP, 3).unwrap();
        client.send(Header { flags, ..header }, &[0; 3], &[]);
    }
    assert_eq!(client.read(Magic::OFFSET), MAGIC);
    check_good(&client);
    check_good(&good);
}

#[test]
fn a_broken_stream_ends_its_connection_and_no_other() {
    let sim = Sim::start("broken", &[]);
    let good = sim.client();
    let version = Header::command(1, command::VERSION, 64).unwrap();
    let whole = [version.as_bytes(), &[0; 63]].concat();
    let size = |size| Header { size, ..version }.as_bytes().to_vec();
    let streams = [whole.clone(), whole[..9].to_vec(), size(0), size(15), size(u32::MAX)];
    for bytes in streams {
        let client = sim.connect();
        (&client.stream).write_all(&bytes).unwrap();
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.is_closed(), "{bytes:?}");
    }
    for body in [&[0, 0][..], b"\0\0\x01\0{}", b"\0\0\x01\0{\0", b"\x01\0\0\0"] {
        let client = sim.connect();
        assert_eq!(client.call(command::VERSION, body, &[]), Err(errno::EINVAL), "{body:?}");
        client.call(command::VERSION, &[0; 4], &[]).unwrap();
    }
    let early = sim.connect();
    assert_eq!(early.call(command::DEVICE_RESET, &[], &[]), Err(errno::EPERM));
    check_good(&good);
}

#[test]
fn a_client_that_is_gone_leaves_nothing_behind() {
    let sim = Sim::start("gone", &[]);
    // Nothing starts or ends now, so that one look tells.
    let before = sim.holdings();
    for _ in 0..20 {
        let clients: Vec<Client> = (0..4).map(|_| sim.client()).collect();
        for client in &clients {
            let file = sealed(1 << 20);
            client.map(0x10_0000, 1 << 20, &file).unwrap();
            client.interrupt();
        }
        // While threads come and go a look at all of them may miss one.
        // Each has a stream, an eventfd and a telemetry page; two threads; the page and its memory.
        sim.wait_for_holdings((before.0 + 12, before.1 + 8, 8));
        // The last is in the middle of a message.
        let header = Header::command(1, command::DMA_MAP, 32).unwrap();
        (&clients[3].stream).write_all(header.as_bytes()).unwrap();
        drop(clients);
        sim.wait_for_holdings(before);
    }
}

#[test]
fn more_clients_than_allowed_are_refused_and_there_is_room_again_when_one_leaves() {
    let sim = Sim::start("limit", &["--max-clients", "2"]);
    let empty = sim.holdings().1;
    let (one, two) = (sim.client(), sim.client());
    let refused = sim.connect();
    assert_eq!(refused.call(command::VERSION, &[0; 4], &[]), Err(errno::EUSERS));
    assert!(refused.is_closed());
    check_good(&one);
    drop(two);
    let deadline = Instant::now() + DEADLINE;
    while sim.holdings().1 > empty + 2 {
        assert!(Instant::now() < deadline, "threads: {:?}", sim.holdings());
        std::thread::yield_now();
    }
    check_good(&sim.client());
}

#[test]
fn a_signal_ends_it_with_clients_connected_and_removes_the_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut sim = Sim::start("signal", &[]);
        let client = sim.client();
        check_good(&client);
        sim.signal(signal);
        assert!(sim.child.wait().unwrap().success());
        assert!(client.is_closed());
        assert!(!sim.socket.exists());
    }
}

#[test]
fn what_cannot_be_served_is_refused_and_only_the_socket_of_a_dead_server_is_replaced() {
    let mut sim = Sim::start("stale", &[]);
    let second = spawn(&sim.socket, &[]).wait_with_output().unwrap();
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && message.contains("listens on"), "{message}");
    check_good(&sim.client());
    sim.signal(Signal::SIGKILL);
    sim.child.wait().unwrap();
    assert!(sim.socket.exists());
    sim.child = spawn(&sim.socket, &[]);
    let sim = Sim::wait_until_ready(sim);
    check_good(&sim.client());
    let refused = spawn(&sim.socket.with_extension("new"), &["--device", "hang_ms=1"]);
    let refused = refused.wait_with_output().unwrap();
    assert!(!refused.status.success(), "an option out of range is refused");
    let file = sim.socket.with_extension("file");
    fs::write(&file, "kept").unwrap();
    let other = spawn(&file, &[]).wait_with_output().unwrap();
    assert!(!other.status.success());
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    fs::remove_file(&file).unwrap();
}
