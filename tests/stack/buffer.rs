//! Memory that driver and device share.

use libnpu::{Access, Caller, Device, Error, Memory};
use npu_tests::{HANG, Way, over, over_each_transport};
use npu_uapi::status::Status;

over_each_transport! {
    buffers_of_many_sizes_are_apart_and_zeroed,
    copies_and_fills_of_any_size_and_alignment_move_exactly_their_bytes,
}

fn buffers_of_many_sizes_are_apart_and_zeroed(device: &Device) -> Result<(), Error> {
    for _ in 0..2 {
        let sizes = [0, 1, 63, 64, 65, 4096, 70_000, (2 << 20) + 1, 65 << 20];
        let buffers =
            sizes.iter().map(|&size| device.allocate(size)).collect::<Result<Vec<_>, _>>()?;
        for (buffer, &size) in buffers.iter().zip(&sizes) {
            assert_eq!((buffer.len(), buffer.iova().raw() % 64), (size, 0));
            if size > 0 {
                let mut ends = [9; 2];
                buffer.read(0, &mut ends[..1])?;
                buffer.read(size - 1, &mut ends[1..])?;
                assert_eq!(ends, [0; 2]);
                buffer.write(0, &[0xee])?;
                buffer.write(size - 1, &[0xee])?;
            }
            let outside = buffer.write(size, &[1]).unwrap_err();
            assert!(matches!(outside, Error::OutOfRange { .. }));
        }
    }
    let error = device.allocate(usize::MAX).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    Ok(())
}

fn copies_and_fills_of_any_size_and_alignment_move_exactly_their_bytes(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    let (from, to) = (device.allocate(20_000)?, device.allocate(20_000)?);
    let pattern: Vec<u8> = (0..20_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    from.write(0, &pattern)?;
    for (src, dst, len) in [(0, 0, 1), (1, 3, 63), (64, 64, 64), (5, 0, 4097), (17, 33, 15_000)] {
        context.fill(&Memory::from(&to), 0xc3)?.wait(&Caller, HANG)?;
        let source = Memory::buffer(&from, src, len, Access::Read)?;
        let target = Memory::buffer(&to, dst, len, Access::Write)?;
        context.copy(&source, &target)?.wait(&Caller, HANG)?;
        let [src, dst, len] = [src, dst, len].map(|x| usize::try_from(x).unwrap());
        let mut want = vec![0xc3; 20_000];
        want[dst..dst + len].copy_from_slice(&pattern[src..src + len]);
        assert!(to.to_vec() == want, "{len} bytes from {src} to {dst}");
    }
    Ok(())
}

#[test]
fn foreign_memory_is_used_in_place_and_let_go() {
    over(Way::Sim, |device| {
        let context = device.create_context()?;
        let mut memory = vec![0_u8; 5000];
        let start = memory.as_mut_ptr().wrapping_add(3);
        // SAFETY: the vector outlives the mapping and is not touched meanwhile.
        let foreign = unsafe { device.map_foreign(start, 4990, Access::ReadWrite) }?;
        context.fill(&Memory::from(&foreign), 7)?.wait(&Caller, HANG)?;
        let late = Memory::from(&foreign);
        foreign.unmap()?;
        assert!(memory[3..4993].iter().all(|&byte| byte == 7));
        assert_eq!((memory[2], memory[4993]), (0, 0));
        let error = context.fill(&late, 8)?.wait(&Caller, HANG).unwrap_err();
        assert_eq!(error.fault().map(|fault| fault.status), Some(Status::UNMAPPED_IOVA));
        assert_eq!(memory[3], 7);
        Ok(())
    });
}

#[test]
fn foreign_memory_that_the_device_may_only_read_is_not_written() {
    over(Way::Sim, |device| {
        let context = device.create_context()?;
        let mut memory = vec![1_u8; 100];
        // SAFETY: the vector outlives the mapping and is not touched meanwhile.
        let foreign = unsafe { device.map_foreign(memory.as_mut_ptr(), 100, Access::Read) }?;
        let error = context.fill(&Memory::from(&foreign), 2)?.wait(&Caller, HANG).unwrap_err();
        let fault = *error.fault().expect("a fault");
        assert_eq!(fault.status, Status::ACCESS_DENIED);
        assert_eq!(fault.record.map(|record| record.iova), Some(foreign.iova().raw()));
        Ok(())
    });
}

#[test]
fn memory_of_another_device_is_refused() {
    let (one, other) = (Device::open_private("sim").unwrap(), Device::open_private("sim").unwrap());
    let context = one.create_context().unwrap();
    let buffer = other.allocate(64).unwrap();
    let error = context.fill(&Memory::from(&buffer), 1).unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    let elsewhere = other.create_context().unwrap();
    let program = elsewhere.load(&npu_tests::image(&[], &[])).unwrap();
    let error = context.exec(&program, None, Vec::new()).unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
}
