//! A device has one user at a time, and the kernel may want it back.

use libnpu::pci::{self, Found, Obstacle};
use libnpu::{Caller, Device, Error, Loss, Priority, TransportError};
use npu_tests::functions::{self, Function};
use npu_tests::{HANG, Work};
use std::fs;
use std::time::Instant;

fn works(device: &Device) {
    device.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
}

fn found(function: &Function) -> Found {
    let all = pci::list().unwrap();
    all.into_iter().find(|found| found.device_string() == function.device()).unwrap()
}

#[test]
fn a_second_opener_is_told_that_the_group_is_in_use_and_the_first_goes_on() {
    let function = functions::take(0);
    let device = Device::open_private(&function.device()).unwrap();
    let error = Device::open_private(&function.device()).unwrap_err();
    let Error::Transport(TransportError::Pci { obstacle, .. }) = &error else { panic!("{error}") };
    assert!(matches!(obstacle, Obstacle::Busy { .. }), "{error}");
    assert!(error.to_string().contains("one user at a time"), "{error}");
    assert!(matches!(found(&function).obstacle, Some(Obstacle::Busy { .. })));
    works(&device);
    drop(device);
    assert_eq!(found(&function).obstacle, None);
    works(&Device::open_private(&function.device()).unwrap());
}

#[test]
fn a_device_that_is_unbound_in_use_ends_its_jobs_and_is_free_once_it_is_let_go() {
    let function = functions::take(0);
    let address = function.device().trim_start_matches("pci:").to_owned();
    let device = Device::open_private(&function.device()).unwrap();
    // Minutes, unless it is ended.
    let work = Work::new(&device, Priority::Normal, 2000, [1024, 1024, 1024]).unwrap();
    let job = work.submit().unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let unbind = scope.spawn(|| fs::write("/sys/bus/pci/drivers/vfio-pci/unbind", &address));
        let error = job.wait(&Caller, HANG).unwrap_err();
        assert!(matches!(error, Error::Lost { why: Loss::Gone(_), .. }), "{error}");
        assert!(error.to_string().contains("the kernel wants it back"), "{error}");
        let error = device.create_context().map(drop).unwrap_err();
        assert!(error.to_string().contains("the kernel wants it back"), "{error}");
        assert!(started.elapsed() < HANG);
        // The kernel waits for this.
        drop((job, work, device));
        unbind.join().unwrap().unwrap();
    });
    let obstacle = found(&function).obstacle.unwrap();
    assert_eq!(obstacle, Obstacle::NotBound { address: address.clone() });
    let told = Device::open_private(&function.device()).unwrap_err().to_string();
    assert!(told.contains("drivers_probe"), "{told}");
    // What it says to do.
    fs::write(format!("/sys/bus/pci/devices/{address}/driver_override"), "vfio-pci").unwrap();
    fs::write("/sys/bus/pci/drivers_probe", &address).unwrap();
    assert_eq!(found(&function).obstacle, None);
    works(&Device::open_private(&function.device()).unwrap());
}
