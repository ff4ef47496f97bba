//! A device of another version of the ABI than the driver's, and what stands beside it.

use libnpu::{Caller, Device, Error};
use npu_tests::functions;
use npu_tests::{HANG, works_without_names};
use std::process::Command;

#[test]
fn a_device_without_a_version_in_common_is_refused_at_once_and_others_go_on() {
    let function = functions::take_at(functions::OF_NEWER_ABI);
    let other = Device::open_private(&format!("pci:{}", functions::addresses()[0])).unwrap();
    let context = other.create_context().unwrap();
    // More than once: what is refused is let go.
    for _ in 0..3 {
        let error = Device::open_private(&function.device()).unwrap_err();
        assert!(matches!(error, Error::AbiMismatch { device: (0x200, 0x301), .. }), "{error}");
        assert!(
            error.to_string().contains("no version in common; update the older one"),
            "{error}"
        );
        context.nop().unwrap().wait(&Caller, HANG).unwrap();
    }
    let tested =
        Command::new("/bin/npu").args(["selftest", "--device", &function.device()]).output();
    let tested = tested.expect("it is in the archive");
    let said = [tested.stdout, tested.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!tested.status.success() && said.contains("no version in common"), "{said}");
    functions::tell_host("note", said.lines().last().unwrap_or_default());
    context.nop().unwrap().wait(&Caller, HANG).unwrap();
}

#[test]
fn a_device_of_an_older_minor_version_works_without_what_that_has_not() {
    let function = functions::take_at(functions::OF_OLDER_ABI);
    works_without_names(&Device::open_private(&function.device()).unwrap());
}
