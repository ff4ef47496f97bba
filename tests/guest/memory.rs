//! Memory for a device behind an IOMMU: locked, on huge pages where there are some.

use libnpu::{Caller, Device, Memory};
use npu_tests::{HANG, functions};
use std::fs;

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

fn check(device: &Device, len: usize) {
    let (context, buffer) = (device.create_context().unwrap(), device.allocate(len).unwrap());
    context.fill(&Memory::from(&buffer), 5).unwrap().wait(&Caller, HANG).unwrap();
    assert!(buffer.to_vec().iter().all(|&byte| byte == 5));
}

#[test]
fn without_huge_pages_a_device_works_and_says_what_would_be_faster() {
    let function = functions::take(0);
    let reserved = fs::read_to_string(RESERVED).unwrap();
    fs::write(RESERVED, "0").unwrap();
    let device = Device::open_private(&function.device()).unwrap();
    check(&device, 1 << 20);
    let told = device.describe();
    assert!(told.contains("on small pages") && told.contains("nr_hugepages"), "{told}");
    drop(device);
    fs::write(RESERVED, reserved.trim()).unwrap();
    let device = Device::open_private(&function.device()).unwrap();
    check(&device, 20 << 20);
    let told = device.describe();
    assert!(told.contains("memory on huge pages"), "{told}");
}
