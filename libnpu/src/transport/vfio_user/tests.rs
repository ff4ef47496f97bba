//! A device that lies, in every message: each ends in a typed error in bounded time.

use super::*;
use crate::dma::ARENA_ALIGN;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use npu_uapi::vfio_user::{HEADER_BYTES, Header, PROTOCOL, Version, errno, flags};
use proptest::prelude::*;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::thread::{JoinHandle, spawn};

const SHORT: Duration = Duration::from_millis(60);
const LONG: Duration = Duration::from_secs(60);
const VECTORS: u32 = 3;

/// What goes instead of an honest answer.
enum Answer {
    Bytes(Vec<u8>),
    /// Bytes, with this file beside them.
    WithFile(Vec<u8>, RawFd),
    /// Nothing; the connection stays.
    Silence,
    /// These, and then the end of the connection.
    LastBytes(Vec<u8>),
}

/// The honest body of the answer to a request.
fn honest(head: Header, body: &[u8]) -> Vec<u8> {
    let access = || RegionAccess::read_from_prefix(body).unwrap().0;
    match head.command {
        command::VERSION => {
            let version = Version { major: PROTOCOL.0, minor: 0 };
            [version.as_bytes(), b"{\"capabilities\":{\"max_msg_fds\":1}}\0"].concat()
        }
        command::DEVICE_GET_INFO => {
            let flags = device_flags::PCI | device_flags::RESET;
            DeviceInfo { argsz: 16, flags, regions: 9, irqs: 5 }.as_bytes().to_vec()
        }
        command::DEVICE_GET_REGION_INFO => {
            let asked = RegionInfo::read_from_bytes(body).unwrap();
            let size = [0x1_0000, 0, 4096, 0, 0, 0, 0, 256, 0][asked.index as usize];
            RegionInfo { argsz: 32, flags: 3, size, ..asked }.as_bytes().to_vec()
        }
        command::DEVICE_GET_IRQ_INFO => {
            let flags = irq_flags::EVENTFD;
            IrqInfo { argsz: 16, flags, index: 2, count: VECTORS }.as_bytes().to_vec()
        }
        command::REGION_READ => {
            let access = access();
            // Two capabilities; MSI-X is the second, its table 0x100 bytes into BAR2.
            let value: u32 = match (access.region, access.offset) {
                (region::CONFIG, 0x34) => 0x40,
                (region::CONFIG, 0x40) => 0x6010,
                (region::CONFIG, 0x60) => (VECTORS - 1) << 16 | 0x11,
                (region::CONFIG, 0x64) => 0x102,
                (region::BAR0, offset) => u32::try_from(offset).unwrap() ^ 0x5a5a,
                _ => 0,
            };
            [access.as_bytes(), &value.to_le_bytes()].concat()
        }
        command::REGION_WRITE => access().as_bytes().to_vec(),
        command::DMA_UNMAP => body.to_vec(),
        _ => Vec::new(),
    }
}

fn message(head: Header, body: &[u8]) -> Vec<u8> {
    let head = head.reply(body.len()).unwrap();
    [head.as_bytes(), body].concat()
}

/// Serves one connection; `answer` may replace the message that answers a request.
fn serve(
    mut stream: UnixStream,
    mut answer: impl FnMut(Header, Vec<u8>) -> Answer + Send + 'static,
) -> JoinHandle<()> {
    spawn(move || {
        let mut head = [0; HEADER_BYTES];
        while stream.read_exact(&mut head).is_ok() {
            let head = Header::read_from_bytes(&head).unwrap();
            let mut body = vec![0; head.body_len().expect("the driver does not lie")];
            stream.read_exact(&mut body).unwrap();
            let sent = match answer(head, message(head, &honest(head, &body))) {
                Answer::Bytes(bytes) => stream.write_all(&bytes),
                Answer::WithFile(bytes, file) => {
                    let rights = [file];
                    let rights = [ControlMessage::ScmRights(&rights)];
                    let bytes = [IoSlice::new(&bytes)];
                    let socket = stream.as_raw_fd();
                    sendmsg::<UnixAddr>(socket, &bytes, &rights, MsgFlags::empty(), None).unwrap();
                    nix::unistd::close(file).unwrap();
                    Ok(())
                }
                Answer::Silence => Ok(()),
                Answer::LastBytes(bytes) => {
                    let _ = stream.write_all(&bytes);
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
        }
    })
}

/// Uses every request there is.
fn exercise(stream: UnixStream, patience: Duration) -> Result<(), TransportError> {
    let device = VfioUser::over("vfio-user:test", stream, patience)?;
    device.read32(0x20)?;
    device.write32(0x24, 7)?;
    device.config_read(0)?;
    let (memory, at) = (DmaMemory::shared(ARENA_ALIGN).unwrap(), Iova::new(0x20_0000));
    device.map(Arc::new(memory), at, Access::ReadWrite)?;
    device.unmap(at)?;
    device.reset()
}

/// What the driver ends with when every answer to `command` from the `skip`-th on is what `lie` makes of it.
fn lied_to(
    command: u16,
    skip: usize,
    mut lie: impl FnMut(Header, Vec<u8>) -> Answer + Send + 'static,
) -> Result<(), TransportError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut seen = 0;
    let server = serve(theirs, move |head, bytes| {
        if head.command != command {
            return Answer::Bytes(bytes);
        }
        seen += 1;
        if seen <= skip { Answer::Bytes(bytes) } else { lie(head, bytes) }
    });
    let started = Instant::now();
    let result = exercise(ours, SHORT);
    assert!(started.elapsed() < LONG, "it ends");
    server.join().unwrap();
    result
}

const COMMANDS: [u16; 10] = [
    command::VERSION,
    command::DMA_MAP,
    command::DMA_UNMAP,
    command::DEVICE_GET_INFO,
    command::DEVICE_GET_REGION_INFO,
    command::DEVICE_GET_IRQ_INFO,
    command::DEVICE_SET_IRQS,
    command::REGION_READ,
    command::REGION_WRITE,
    command::DEVICE_RESET,
];

#[test]
fn an_honest_device_is_driven() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = serve(theirs, |_, bytes| Answer::Bytes(bytes));
    let device = VfioUser::over("vfio-user:test", ours, LONG).unwrap();
    assert_eq!(device.read32(0x20).unwrap(), 0x5a7a);
    assert!(!device.is_gone());
    drop(device);
    server.join().unwrap();
    assert_eq!(lied_to(0, 0, |_, _| Answer::Silence), Ok(()));
}

#[test]
fn an_error_reply_names_the_request_and_the_error() {
    for command in COMMANDS {
        let error = lied_to(command, 0, |head, _| {
            Answer::Bytes(head.error_reply(errno::EEXIST).as_bytes().to_vec())
        });
        let error = error.unwrap_err();
        let TransportError::Refused { why, .. } = &error else { panic!("{command}: {error}") };
        assert!(why.contains("exists"), "{error}");
    }
}

#[test]
fn a_device_that_stops_in_the_middle_is_gone_and_one_that_says_nothing_is_silent() {
    for command in COMMANDS {
        for keep in [0, 5, HEADER_BYTES] {
            let error = lied_to(command, 0, move |_, mut bytes| {
                // A whole message only when it is just a head, which then is no lie.
                bytes.truncate(if bytes.len() > keep { keep } else { 3 });
                Answer::LastBytes(bytes)
            });
            let error = error.unwrap_err();
            assert!(matches!(error, TransportError::Gone { .. }), "{command}, {keep}: {error}");
            let error = lied_to(command, 0, move |_, mut bytes| {
                bytes.truncate(if bytes.len() > keep { keep } else { 3 });
                if bytes.is_empty() { Answer::Silence } else { Answer::Bytes(bytes) }
            });
            let error = error.unwrap_err();
            assert!(matches!(error, TransportError::Silent { .. }), "{command}, {keep}: {error}");
        }
    }
}

#[test]
fn answers_of_the_wrong_id_command_kind_or_size_are_told_from_the_right_ones() {
    type Lie = fn(Header, Vec<u8>) -> Vec<u8>;
    fn edit(bytes: &[u8], edit: impl Fn(&mut Header)) -> Vec<u8> {
        let mut head = Header::read_from_prefix(bytes).unwrap().0;
        edit(&mut head);
        [head.as_bytes(), &bytes[HEADER_BYTES..]].concat()
    }
    let lies: [(&str, Lie); 9] = [
        ("id", |_, bytes| edit(&bytes, |head| head.id ^= 1)),
        ("command", |_, bytes| edit(&bytes, |head| head.command ^= 0x80)),
        ("a request of its own", |_, bytes| edit(&bytes, |head| head.flags = flags::COMMAND)),
        ("size 0", |_, bytes| edit(&bytes, |head| head.size = 0)),
        ("size 15", |_, bytes| edit(&bytes, |head| head.size = 15)),
        ("size max", |_, bytes| edit(&bytes, |head| head.size = u32::MAX)),
        ("size 1 MiB", |_, bytes| edit(&bytes, |head| head.size = 1 << 20)),
        ("an error with a body", |head, _| {
            let head = Header { size: 20, ..head.error_reply(errno::EIO) };
            [head.as_bytes(), &[0; 4]].concat()
        }),
        ("more than its size", |_, bytes| [&bytes[..], &[0; 8192]].concat()),
    ];
    for command in COMMANDS {
        for (what, lie) in lies {
            let error = lied_to(command, 0, move |head, bytes| Answer::Bytes(lie(head, bytes)));
            let error = error.expect_err(what);
            assert!(matches!(error, TransportError::Protocol { .. }), "{command}, {what}: {error}");
        }
    }
}

#[test]
fn content_that_no_device_has_is_refused() {
    // Request, how many of it are answered well, byte of the body, value.
    for (command, skip, at, value) in [
        (command::VERSION, 0, 0, 1_u8),
        (command::VERSION, 0, 2, 2),
        (command::VERSION, 0, 10, 0),
        (command::VERSION, 0, 10, 0xff),
        (command::DEVICE_GET_INFO, 0, 4, 1),
        (command::DEVICE_GET_INFO, 0, 8, 7),
        (command::DEVICE_GET_INFO, 0, 12, 2),
        (command::DEVICE_GET_REGION_INFO, 0, 4, 1),
        (command::DEVICE_GET_REGION_INFO, 0, 8, 3),
        (command::DEVICE_GET_REGION_INFO, 0, 18, 0),
        (command::DEVICE_GET_REGION_INFO, 1, 17, 0),
        (command::DEVICE_GET_REGION_INFO, 2, 17, 0),
        (command::DEVICE_GET_IRQ_INFO, 0, 4, 0),
        (command::DEVICE_GET_IRQ_INFO, 0, 8, 1),
        (command::DEVICE_GET_IRQ_INFO, 0, 12, 0),
        (command::DEVICE_GET_IRQ_INFO, 0, 13, 8),
        // The list of capabilities: empty, a circle, a table in no BAR, one that is too short.
        (command::REGION_READ, 0, 16, 0),
        (command::REGION_READ, 1, 17, 0x40),
        (command::REGION_READ, 2, 18, 0),
        (command::REGION_READ, 3, 16, 7),
        (command::REGION_READ, 4, 0, 9),
        (command::REGION_WRITE, 0, 8, 9),
    ] {
        let error = lied_to(command, skip, move |_, mut bytes| {
            bytes[HEADER_BYTES + at] = value;
            Answer::Bytes(bytes)
        });
        let error = error.expect_err("refused");
        assert!(matches!(error, TransportError::Protocol { .. }), "{command}, {at}: {error}");
    }
}

#[test]
fn after_a_lie_nothing_is_asked_any_more_and_the_reason_stays() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = serve(theirs, |head, mut bytes| {
        bytes[0] ^= u8::from(head.command == command::DEVICE_RESET);
        Answer::Bytes(bytes)
    });
    let device = VfioUser::over("vfio-user:test", ours, LONG).unwrap();
    assert!(matches!(device.reset(), Err(TransportError::Protocol { .. })));
    server.join().unwrap();
    assert!(device.is_gone());
    let error = device.read32(0).unwrap_err();
    assert!(matches!(error, TransportError::Gone { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("vfio-user:test") && text.contains("DEVICE_RESET"), "{text}");
    let far = Instant::now() + LONG;
    let error = device.wait(1, 0, far, &npu_uapi::workers::Caller).unwrap_err();
    assert_eq!(error.to_string(), text);
    assert!(Instant::now() < far);
}

#[test]
fn files_beside_answers_are_closed() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut writer = Some(writer);
    let result = lied_to(command::DEVICE_GET_INFO, 0, move |_, bytes| {
        use std::os::fd::IntoRawFd;
        match writer.take() {
            Some(writer) => Answer::WithFile(bytes, writer.into_raw_fd()),
            None => Answer::Bytes(bytes),
        }
    });
    assert_eq!(result, Ok(()));
    let mut byte = [0];
    assert_eq!(nix::unistd::read(&reader, &mut byte), Ok(0), "nobody holds the other end");
}

#[test]
fn memory_that_is_no_file_and_addresses_that_are_not_mapped_are_refused_here() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = serve(theirs, |_, bytes| Answer::Bytes(bytes));
    let device = VfioUser::over("vfio-user:test", ours, LONG).unwrap();
    let memory = Arc::new(DmaMemory::anonymous(ARENA_ALIGN).unwrap());
    let error = device.map(memory, Iova::new(0), Access::Read).unwrap_err();
    assert!(matches!(error, TransportError::Map { .. }), "{error}");
    let error = device.unmap(Iova::new(0)).unwrap_err();
    assert!(matches!(error, TransportError::Map { .. }), "{error}");
    drop(device);
    server.join().unwrap();
}

#[test]
fn nobody_at_the_path_is_said_so() {
    let error = VfioUser::connect("/nowhere/npu.sock".as_ref()).unwrap_err().to_string();
    assert!(error.contains("/nowhere/npu.sock") && error.contains("npu-sim"), "{error}");
    let long = "x".repeat(200);
    assert!(VfioUser::connect(long.as_ref()).is_err(), "longer than an address holds");
}

/// A device of which only the interrupts are used, its eventfds as the other end has them, and its end.
fn interrupting() -> (VfioUser, Vec<OwnedFd>, UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let end = theirs.try_clone().unwrap();
    let server = serve(theirs, |_, bytes| Answer::Bytes(bytes));
    let device = VfioUser::over("vfio-user:test", ours, LONG).unwrap();
    let events = device.vectors.events().map(|event| event.try_clone_to_owned().unwrap());
    let events = events.collect();
    (device, events, end, server)
}

fn raise(event: &OwnedFd) {
    nix::unistd::write(event, &1_u64.to_ne_bytes()).unwrap();
}

#[test]
fn interrupts_are_counted_and_end_every_wait_for_their_vector() {
    use npu_uapi::workers::Caller;
    let (device, events, end, server) = interrupting();
    raise(&events[1]);
    raise(&events[1]);
    assert_eq!([0, 1, 2, 9].map(|vector| device.interrupts(vector)), [0, 2, 0, 0]);
    let far = Instant::now() + LONG;
    assert_eq!(device.wait(1, 1, far, &Caller), Ok(2), "that was already there");
    let soon = Instant::now() + SHORT;
    assert_eq!(device.wait(1, 2, soon, &Caller), Ok(2));
    assert_eq!(device.wait(9, 0, soon, &Caller), Ok(0));
    assert!(Instant::now() >= soon);
    for round in 0..50 {
        let (device, events) = (&device, &events);
        std::thread::scope(|scope| {
            let waits: Vec<_> = (0..3)
                .map(|_| scope.spawn(move || device.wait(1, 2 + round, far, &Caller)))
                .collect();
            if round % 2 == 0 {
                raise(&events[1]);
            } else {
                device.wake(1);
            }
            // Taken by whoever is first, this thread too: nobody sleeps on.
            device.interrupts(1);
            for wait in waits {
                assert_eq!(wait.join().unwrap(), Ok(3 + round));
            }
        });
    }
    std::thread::scope(|scope| {
        let waits: Vec<_> = (0..4)
            .map(|vector| (vector % 3, device.interrupts(vector % 3)))
            .map(|(vector, seen)| {
                let device = &device;
                scope.spawn(move || device.wait(vector, seen, far, &Caller))
            })
            .collect();
        end.shutdown(std::net::Shutdown::Both).unwrap();
        for wait in waits {
            let error = wait.join().unwrap().unwrap_err();
            assert!(error.to_string().contains("vfio-user:test"), "{error}");
        }
    });
    assert!(Instant::now() < far && device.is_gone());
    server.join().unwrap();
}

#[test]
fn a_device_that_makes_reads_of_its_interrupts_sleep_holds_nobody_up() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (device, events, _end, server) = interrupting();
    fcntl(&events[1], FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    assert_eq!(device.interrupts(1), 0);
    let most = u64::MAX - 1;
    nix::unistd::write(&events[1], &most.to_ne_bytes()).unwrap();
    device.wake(1);
    assert_eq!(device.interrupts(1), u64::MAX, "all that the eventfd had, and the wake");
    let soon = Instant::now() + SHORT;
    assert_eq!(device.wait(1, u64::MAX, soon, &npu_uapi::workers::Caller), Ok(u64::MAX));
    drop(device);
    server.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// One byte of one answer is anything: an error or not, but no panic and no hang.
    #[test]
    fn any_byte_of_any_answer_may_lie(answer in 0_usize..40, at in 0_usize..48, value: u8) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut answers = 0;
        let server = serve(theirs, move |_, mut bytes| {
            if answers == answer {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            answers += 1;
            Answer::Bytes(bytes)
        });
        let started = Instant::now();
        let _ = exercise(ours, SHORT);
        prop_assert!(started.elapsed() < LONG);
        server.join().unwrap();
    }
}
