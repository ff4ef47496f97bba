//! What emulates the device ends under a job. In a machine of its own: QEMU may not outlive it.

use libnpu::{Caller, Device, Error, Loss, Priority, TransportError};
use npu_tests::functions;
use npu_tests::{HANG, Work};
use std::time::Instant;

#[test]
fn a_device_whose_server_is_killed_is_gone_in_moments_and_others_go_on() {
    let function = functions::take(functions::OF_MATRIX);
    let device = Device::open_private(&function.device()).unwrap();
    let work = Work::new(&device, Priority::Normal, 2000, [1024, 1024, 1024]).unwrap();
    let job = work.submit().unwrap();
    let started = Instant::now();
    functions::tell_host("kill", &functions::OF_MATRIX.to_string());
    let error = job.wait(&Caller, HANG).unwrap_err();
    assert!(matches!(error, Error::Lost { why: Loss::Gone(_), .. }), "{error}");
    assert!(error.to_string().contains("registers read ones"), "{error}");
    assert!(started.elapsed() < HANG / 2);
    functions::tell_host("note", &format!("the job: {error}"));
    let error = device.create_context().map(drop).unwrap_err();
    assert!(error.to_string().contains("went away"), "{error}");
    drop((job, work, device));
    // It stays gone, since nobody connects anew for the guest.
    let error = Device::open_private(&function.device()).unwrap_err();
    let is_typed =
        matches!(error, Error::Transport(TransportError::Gone { .. } | TransportError::Pci { .. }));
    assert!(is_typed, "{error}");
    functions::tell_host("note", &format!("opened again: {error}"));
    assert!(started.elapsed() < HANG);
    drop(function);
    let other = Device::open_private(&functions::take(0).device()).unwrap();
    other.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
}
