//! A forked child: its parent's tensors are its own copy, its parent's handles say so, nothing hangs.

use libnpu::{Caller, Device, Error, Memory};
use nix::libc;
use npu_tests::{HANG, functions, over_each_transport};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

over_each_transport! {
    a_child_writes_its_own_copy_and_is_refused_by_every_handle,
    handles_dropped_in_a_child_stay_whole_in_the_parent,
    children_of_a_busy_parent_neither_hang_nor_disturb_it,
}

/// Longer than a child's work takes, in seconds: the system then ends it.
const CHILD_LIMIT_S: u32 = 60;
/// A device on a bus takes a while to be opened and closed.
const FORKS: usize = if cfg!(feature = "guest") { 6 } else { 60 };

/// Forks; the child does `work` and ends with whether it went well. The wait for it.
fn forked(work: impl FnOnce()) -> impl FnOnce() {
    // SAFETY: the child allocates, which the C library allows, and takes no lock of another thread:
    // that it does not is what is tested.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no memory is involved.
        unsafe { libc::alarm(CHILD_LIMIT_S) };
        let failed = catch_unwind(AssertUnwindSafe(work)).is_err();
        // SAFETY: ends the process, without the destructors of its parent's.
        unsafe { libc::_exit(failed.into()) }
    }
    assert!(child > 0, "there is room for a process");
    move || {
        let mut status = 0;
        // SAFETY: a child of ours, and room for its status.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!((ended, status), (child, 0), "the child did as it should");
    }
}

fn a_child_writes_its_own_copy_and_is_refused_by_every_handle(
    device: &Device,
) -> Result<(), Error> {
    let (context, buffer) = (device.create_context()?, device.allocate(8192)?);
    // An arena of its own, beside the usual one.
    let large = device.allocate(65 << 20)?;
    buffer.write(0, &[7; 8192])?;
    large.write(64 << 20, &[8; 4096])?;
    let job = context.nop()?;
    job.wait(&Caller, HANG)?;
    forked(|| {
        let is_refused = |error: Error| assert!(matches!(error, Error::Forked { .. }), "{error}");
        assert_eq!(buffer.to_vec(), [7; 8192]);
        // SAFETY: the buffer is the child's copy; nobody else uses it.
        unsafe { buffer.as_mut_slice() }.fill(1);
        // SAFETY: as above.
        unsafe { large.as_mut_slice() }.fill(2);
        assert_eq!(buffer.to_vec(), [1; 8192]);
        is_refused(buffer.write(0, &[0]).unwrap_err());
        is_refused(device.allocate(64).map(drop).unwrap_err());
        is_refused(device.create_context().map(drop).unwrap_err());
        is_refused(device.counters().map(drop).unwrap_err());
        is_refused(device.faults().map(drop).unwrap_err());
        is_refused(device.reset().unwrap_err());
        is_refused(context.nop().map(drop).unwrap_err());
        is_refused(context.abort().unwrap_err());
        is_refused(context.fill(&Memory::from(&buffer), 0).map(drop).unwrap_err());
        is_refused(job.wait(&Caller, HANG).unwrap_err());
        is_refused(job.poll().unwrap().unwrap_err());
        // A grandchild finds what the child wrote.
        forked(|| assert_eq!(buffer.to_vec(), [1; 8192]))();
        let own = Device::open(&functions::beside(device)).unwrap();
        let (context, fresh) = (own.create_context().unwrap(), own.allocate(4096).unwrap());
        context.fill(&Memory::from(&fresh), 3).unwrap().wait(&Caller, HANG).unwrap();
        assert_eq!(fresh.to_vec(), [3; 4096]);
        // The same again from a child whose memory lies in the same places of the table.
        forked(|| {
            // SAFETY: as above.
            unsafe { fresh.as_mut_slice() }.fill(4);
        })();
        assert_eq!(fresh.to_vec(), [3; 4096]);
    })();
    assert_eq!(buffer.to_vec(), [7; 8192]);
    assert_eq!(large.to_vec()[64 << 20..][..4096], [8; 4096]);
    context.fill(&Memory::from(&buffer), 9)?.wait(&Caller, HANG)?;
    assert_eq!(buffer.to_vec(), [9; 8192]);
    Ok(())
}

fn handles_dropped_in_a_child_stay_whole_in_the_parent(device: &Device) -> Result<(), Error> {
    let parent = Device::open_private(&functions::beside(device))?;
    let (context, buffer) = (parent.create_context()?, parent.allocate(4096)?);
    let mut handles = Some((parent, context, buffer));
    forked(|| {
        let view = handles.as_ref().map(|(_, _, buffer)| buffer.as_ptr()).unwrap();
        drop(handles.take());
        // SAFETY: what is dropped in a child stays mapped, as views of it are not told.
        unsafe { view.write_volatile(5) };
    })();
    let (_, context, buffer) = handles.unwrap();
    assert_eq!(buffer.to_vec(), [0; 4096]);
    context.fill(&Memory::from(&buffer), 6)?.wait(&Caller, HANG)?;
    assert_eq!(buffer.to_vec(), [6; 4096]);
    Ok(())
}

fn children_of_a_busy_parent_neither_hang_nor_disturb_it(device: &Device) -> Result<(), Error> {
    let still = device.allocate(4096)?;
    still.write(0, &[7; 4096])?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = || -> Result<(), Error> {
            let (context, buffer) = (device.create_context()?, device.allocate(1 << 20)?);
            for value in (0..=u8::MAX).cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                context.fill(&Memory::from(&buffer), value)?.wait(&Caller, HANG)?;
                assert!(buffer.to_vec().iter().all(|&byte| byte == value));
                // Arenas come and go meanwhile.
                drop(device.allocate(65 << 20)?);
            }
            Ok(())
        };
        let threads = [scope.spawn(busy), scope.spawn(busy)];
        for _ in 0..FORKS {
            forked(|| {
                assert_eq!(still.to_vec(), [7; 4096]);
                // SAFETY: the child's copy.
                unsafe { still.as_mut_slice() }.fill(1);
                assert!(matches!(device.allocate(64), Err(Error::Forked { .. })));
                assert!(matches!(device.create_context(), Err(Error::Forked { .. })));
                let own = Device::open(&functions::beside(device)).unwrap();
                own.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
            })();
        }
        is_over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    assert_eq!(still.to_vec(), [7; 4096]);
    Ok(())
}
