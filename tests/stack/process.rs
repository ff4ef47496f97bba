//! A device in a process of its own: what dies with it, what does not, and whose memory it sees.

use libnpu::{Access, Caller, Device, Error, Loss, Memory, TransportError};
use npu_tests::{HANG, Simulator};
use std::time::{Duration, Instant};

#[test]
fn a_server_that_is_killed_ends_every_wait_and_the_same_name_opens_a_new_device() {
    let mut server = Simulator::start("");
    let name = server.device();
    let device = Device::open(&name).unwrap();
    let (one, other) = (device.create_context().unwrap(), device.create_context().unwrap());
    let buffer = device.allocate(64).unwrap();
    // Nobody waits for this one before the end.
    let late = other.nop().unwrap();
    late.wait(&Caller, HANG).unwrap();
    server.kill();
    let deadline = Instant::now() + HANG;
    std::thread::scope(|scope| {
        let waits = [&one, &one, &other, &other].map(|context| {
            scope.spawn(|| match context.nop() {
                Ok(job) => job.wait(&Caller, HANG).map(drop),
                Err(error) => Err(error),
            })
        });
        for wait in waits {
            let error = wait.join().unwrap().unwrap_err();
            assert!(error.to_string().contains(&name), "{error}");
            assert!(error.to_string().contains("open it again"), "{error}");
            let is_typed = match &error {
                Error::Lost { why: Loss::Gone(TransportError::Gone { device, .. }), .. }
                | Error::Transport(TransportError::Gone { device, .. }) => *device == name,
                _ => false,
            };
            assert!(is_typed, "{error:?}");
        }
    });
    assert!(Instant::now() < deadline, "none of them waited to its end");
    assert!(matches!(device.create_context(), Err(Error::Lost { .. } | Error::Transport(_))));
    assert!(matches!(device.reset(), Err(Error::Transport(TransportError::Gone { .. }))));
    buffer.write(0, b"still ours").unwrap();

    assert!(matches!(Device::open(&name), Err(Error::Transport(TransportError::Start { .. }))));
    server.restart();
    let again = Device::open(&name).unwrap();
    let buffer = again.allocate(4096).unwrap();
    let context = again.create_context().unwrap();
    context.fill(&Memory::from(&buffer), 3).unwrap().wait(&Caller, HANG).unwrap();
    assert_eq!(buffer.to_vec(), [3; 4096]);
    let shared = Device::open(&name).unwrap();
    assert_eq!(shared.counters().unwrap().jobs, again.counters().unwrap().jobs);
    drop((one, other, device));
    again.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
}

#[test]
fn a_server_that_is_killed_under_a_wait_that_sleeps_ends_it() {
    let mut server = Simulator::start("");
    let device = Device::open_private(&server.device()).unwrap();
    let transport = device.transport();
    let seen = transport.interrupts(1);
    std::thread::scope(|scope| {
        let far = Instant::now() + HANG;
        let wait = scope.spawn(move || transport.wait(1, seen, far, &Caller));
        let short = Instant::now() + Duration::from_millis(20);
        assert_eq!(transport.wait(1, seen, short, &Caller), Ok(seen), "nothing comes");
        server.kill();
        assert!(matches!(wait.join().unwrap(), Err(TransportError::Gone { .. })));
        assert!(Instant::now() < far && transport.is_gone());
    });
}

#[test]
fn memory_of_this_process_is_out_of_reach_and_that_of_a_buffer_is_found() {
    let server = Simulator::shared("");
    let device = Device::open_private(&server.device()).unwrap();
    let mut memory = [0_u8; 64];
    let start = memory.as_mut_ptr();
    assert!(device.buffer_at(start, 64, Access::Read).is_none());
    // SAFETY: the array outlives the mapping, which is refused.
    let error = unsafe { device.map_foreign(start, 64, Access::Read) }.unwrap_err();
    assert!(matches!(error, Error::NotReachable), "{error}");

    let buffer = device.allocate(1000).unwrap();
    let inside = buffer.as_ptr().wrapping_add(100);
    for (start, len) in [(inside, 901), (inside, usize::MAX), (inside.wrapping_add(900), 1)] {
        assert!(device.buffer_at(start, len, Access::Read).is_none(), "{len} bytes leave it");
    }
    let found = device.buffer_at(inside, 900, Access::ReadWrite).unwrap();
    assert_eq!((found.iova().raw(), found.len()), (buffer.iova().raw() + 100, 900));
    let context = device.create_context().unwrap();
    context.fill(&found, 8).unwrap().wait(&Caller, HANG).unwrap();
    assert_eq!(buffer.to_vec(), [vec![0; 100], vec![8; 900]].concat());
    // What was found keeps the buffer.
    let (iova, start) = (buffer.iova(), buffer.as_ptr());
    drop(buffer);
    let other = device.allocate(1000).unwrap();
    assert_ne!(other.iova(), iova);
    drop(found);
    assert!(device.buffer_at(start, 1000, Access::Read).is_none(), "it is gone");
    assert_eq!(device.allocate(1000).unwrap().iova(), iova);
}
