//! What emulates the device ends under a job. In a machine of its own: QEMU may not outlive it.

use libnpu::{Caller, Device, Error, Loss, Priority};
use npu_tests::functions;
use npu_tests::{HANG, Work};
use std::time::Instant;

/// The host turns the machine off when it is told that all was right: the kernel takes minutes to let go of
/// a device that does not answer.
#[test]
fn a_device_whose_server_is_killed_is_gone_in_moments_and_others_go_on() {
    let function = functions::take(functions::OF_MATRIX);
    let device = Device::open_private(&function.device()).unwrap();
    let other = Device::open_private(&format!("pci:{}", functions::addresses()[0])).unwrap();
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
    other.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
    functions::tell_host("told", &format!("the device: {error}"));
}
