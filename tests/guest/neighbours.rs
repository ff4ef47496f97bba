//! Two functions of one device in one guest: side by side, and apart.

use libnpu::{Caller, Device, Error, Memory};
use npu_tests::{HANG, functions};
use npu_uapi::queue::{EntryHeader, FillEntry, opcode};
use npu_uapi::status::Status;

#[test]
fn two_functions_work_at_once_and_neither_reaches_the_memory_of_the_other() {
    let function = functions::take(0);
    let one = Device::open_private(&function.device()).unwrap();
    let other = Device::open_private(&functions::beside(&one)).unwrap();
    let work = |device: &Device| -> Result<(), Error> {
        let (context, buffer) = (device.create_context()?, device.allocate(100_000)?);
        for value in 0..40 {
            context.fill(&Memory::from(&buffer), value)?.wait(&Caller, HANG)?;
            assert!(buffer.to_vec().iter().all(|&byte| byte == value));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [&one, &other].map(|device| scope.spawn(move || work(device)));
        threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    });
    // An address that only the first has mapped: its second arena is far above the other's one.
    let far = one.allocate(40 << 20).unwrap();
    let dst = far.iova();
    let context = other.create_context().unwrap();
    let entry = |job| {
        let header = EntryHeader::new(opcode::FILL, job);
        FillEntry { header, dst, len: 64, value: 1, ..FillEntry::default() }.words()
    };
    let error = context.submit_words(entry).unwrap().wait(&Caller, HANG).unwrap_err();
    assert_eq!(error.fault().map(|fault| fault.status), Some(Status::UNMAPPED_IOVA), "{error}");
    assert!(far.to_vec().iter().all(|&byte| byte == 0));
}
