//! Finding, checking, starting and resetting a device.

use crate::registers::Registers;
use libnpu::transport::inproc::InProcess;
use libnpu::{Caller, Device, Error, Loss, Memory, Transport, TransportExt};
use npu_tests::{HANG, Simulator, over_each_transport, works_without_names};
use npu_uapi::reg::Register;
use npu_uapi::regs::{self, AbiRange, FaultHead, HeartbeatLow, Kick, Magic, Scratch, state};
use std::sync::Arc;
use std::time::{Duration, Instant};

over_each_transport! {
    a_write_that_the_register_map_forbids_is_dropped_and_recorded,
    a_masked_vector_is_held_back_until_it_is_unmasked,
    a_reset_ends_contexts_and_jobs_and_the_device_starts_anew,
    a_function_level_reset_under_the_driver_is_reported_and_recovered_from,
    counters_count_what_was_done,
}

fn open_lying(offset: u32, value: u32) -> Error {
    let read =
        move |device: &InProcess, at| if at == offset { Ok(value) } else { device.read32(at) };
    Device::over("lying", Arc::new(Registers::new(read))).unwrap_err()
}

#[test]
fn what_is_no_npu_is_not_driven() {
    let error = open_lying(Magic::OFFSET, 0xffff_ffff);
    assert!(matches!(error, Error::NotAnNpu { found: 0xffff_ffff, .. }), "{error}");
    let error = open_lying(AbiRange::OFFSET, 0x0300_0200);
    assert!(matches!(error, Error::AbiMismatch { device: (0x200, 0x300), .. }), "{error}");
    let error = open_lying(regs::Status::OFFSET, state::FAILED);
    assert!(matches!(error, Error::State { found: state::FAILED, .. }), "{error}");
}

#[test]
fn a_device_of_another_abi_is_refused_and_one_of_an_older_minor_works() {
    let newer = "abi=2.0-3.1";
    let server = Simulator::start(newer);
    for name in [format!("sim:{newer}"), server.device()] {
        let error = Device::open_private(&name).unwrap_err();
        let is_told = matches!(error, Error::AbiMismatch { device: (0x200, 0x301), .. });
        assert!(is_told && error.to_string().contains("update the older one"), "{error}");
    }
    let older = "abi=1.0-1.0";
    let server = Simulator::start(older);
    for name in [format!("sim:{older}"), server.device()] {
        works_without_names(&Device::open_private(&name).unwrap());
    }
}

#[test]
fn one_name_is_one_device_in_a_process() {
    let name = "sim:mhz=900";
    let (one, other) = (Device::open(name).unwrap(), Device::open(name).unwrap());
    one.transport().write(Scratch::from_raw(77)).unwrap();
    assert_eq!(other.transport().read::<Scratch>().unwrap().raw(), 77);
    assert_eq!(one.limits().clock_khz, 900_000);
    drop((one, other));
    let again = Device::open(name).unwrap();
    assert_eq!(again.transport().read::<Scratch>().unwrap().raw(), 0, "the last closes it");
}

#[test]
fn device_strings_that_cannot_be_opened_say_what_to_write() {
    for (name, hint) in [
        ("npu", "it must begin with"),
        ("sim:macs=0", "16 to 65536"),
        ("sim:speed=9", "the options are macs, sram, mhz, threads, strict"),
        ("vfio-user:/nowhere/npu.sock", "cannot connect to `/nowhere/npu.sock`"),
        ("pci:0000:00:02", "an address reads like `0000:00:02.0`"),
        ("pci:ffff:ff:1f.7", "there is no PCI device at ffff:ff:1f.7"),
    ] {
        let message = Device::open(name).unwrap_err().to_string();
        assert!(message.contains(hint), "{name}: {message}");
    }
}

fn a_write_that_the_register_map_forbids_is_dropped_and_recorded(
    device: &Device,
) -> Result<(), Error> {
    let transport = device.transport();
    let before = device.faults()?.len();
    transport.write32(Magic::OFFSET, 0)?;
    transport.write32(regs::Ctrl::OFFSET, 0xff00)?;
    transport.write32(0x0ffc, 1)?;
    let faults = device.faults()?;
    let offsets: Vec<u64> = faults[before..].iter().map(|fault| fault.offset).collect();
    assert_eq!(offsets, [0, 0x10, 0xffc]);
    assert_eq!(transport.read::<Magic>()?.raw(), regs::MAGIC);
    assert_eq!(transport.read32(Kick::OFFSET)?, 0);
    assert_eq!(transport.read32(0x0ffc)?, 0);
    device.create_context()?.nop()?.wait(&Caller, HANG)?;
    Ok(())
}

fn a_masked_vector_is_held_back_until_it_is_unmasked(device: &Device) -> Result<(), Error> {
    use kmod_sim::pci::{MSIX_ENABLE, MSIX_MASK_ALL, offset};
    let transport = device.transport();
    // Where the interrupt takes a way of its own, it may come later than the write is done.
    let arrives = |seen: u64| {
        let deadline = Instant::now() + HANG;
        transport.wait(0, seen, deadline, &Caller)
    };
    transport.write(regs::IrqMask::default().with(regs::IrqMask::FAULT, true))?;
    transport.write(regs::IrqStatus::from_raw(7))?;
    transport.config_write(offset::MSIX, MSIX_ENABLE | MSIX_MASK_ALL)?;
    let before = transport.interrupts(0);
    transport.write32(0x0ffc, 0)?;
    assert_eq!(transport.interrupts(0), before, "masked");
    transport.config_write(offset::MSIX, MSIX_ENABLE)?;
    assert_eq!(arrives(before)?, before + 1, "delivered late");
    transport.write32(0x0ffc, 0)?;
    assert_eq!(transport.interrupts(0), before + 1, "the cause is still pending");
    transport.write(regs::IrqStatus::from_raw(7))?;
    transport.write32(0x0ffc, 0)?;
    assert_eq!(arrives(before + 1)?, before + 2);
    Ok(())
}

fn a_reset_ends_contexts_and_jobs_and_the_device_starts_anew(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    let job = context.nop()?;
    let resets = device.transport().read::<regs::Status>()?.get(regs::Status::RESETS);
    device.reset()?;
    let after = device.transport().read::<regs::Status>()?;
    assert_eq!(after.get(regs::Status::RESETS), (resets + 1) % 256);
    assert_eq!(after.get(regs::Status::STATE), state::READY);
    let error = job.wait(&Caller, HANG).unwrap_err();
    assert!(matches!(error, Error::Lost { why: Loss::Reset, .. }), "{error}");
    let error = context.nop().unwrap_err();
    assert!(matches!(error, Error::Lost { why: Loss::Reset, .. }), "{error}");
    assert_eq!(device.counters()?.jobs, 0);
    device.create_context()?.nop()?.wait(&Caller, HANG)?;
    Ok(())
}

fn a_function_level_reset_under_the_driver_is_reported_and_recovered_from(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    device.transport().reset()?;
    let state = device.transport().read::<regs::Status>()?;
    assert_eq!(state.get(regs::Status::STATE), state::RESET);
    let error = context.nop()?.wait(&Caller, Duration::from_millis(20)).unwrap_err();
    let Error::Timeout(stall) = &error else { panic!("{error}") };
    assert_eq!((stall.state, stall.has_moved), (Some(state::RESET), false));
    assert!(error.to_string().contains("reset the device"), "{error}");
    device.reset()?;
    device.create_context()?.nop()?.wait(&Caller, HANG)?;
    Ok(())
}

fn counters_count_what_was_done(device: &Device) -> Result<(), Error> {
    let (context, buffer) = (device.create_context()?, device.allocate(4096)?);
    let before = device.counters()?;
    let beat = device.transport().read::<HeartbeatLow>()?.raw();
    context.fill(&Memory::from(&buffer), 3)?.wait(&Caller, HANG)?;
    let stamp = context.timestamp()?.wait(&Caller, HANG)?;
    let after = device.counters()?;
    assert_eq!((after.jobs - before.jobs, after.commands - before.commands), (1, 1));
    assert_eq!(after.dram_written - before.dram_written, 4096);
    assert_eq!(stamp.cycles, after.cycles);
    assert!(after.cycles > before.cycles);
    assert_ne!(device.transport().read::<HeartbeatLow>()?.raw(), beat);
    assert_eq!(device.transport().read::<FaultHead>()?.raw(), 0);
    Ok(())
}
