//! Regions of the function: which there are, and reads and writes of any width as the device has them.

use super::message::Refusal;
use super::telemetry::TelemetryPage;
use super::vectors::Vectors;
use crate::device::Function;
use crate::pci::{BAR2_BYTES, CONFIG_BYTES, offset};
use npu_uapi::mailbox::BAR4_BYTES;
use npu_uapi::regs::pci::BAR0_BYTES;
use npu_uapi::telemetry::PAGE_BYTES;
use npu_uapi::vfio_user::{
    MAX_TRANSFER_BYTES, RegionAccess, RegionInfo, SparseArea, SparseAreas, errno, region,
    region_flags,
};
use zerocopy::IntoBytes;

/// DEVICE_GET_REGION_INFO, for a client with room for `argsz` bytes.
pub(crate) fn info(index: u32, argsz: u32) -> Result<Vec<u8>, Refusal> {
    if index >= region::COUNT {
        return Err(Refusal::invalid("there is no such region"));
    }
    let size = u64::from(size(index));
    let flags = match index {
        region::BAR4 => region_flags::READ | region_flags::MMAP | region_flags::CAPS,
        _ if size > 0 => region_flags::READ | region_flags::WRITE,
        _ => 0,
    };
    let info = RegionInfo { argsz: INFO_BYTES, flags, index, cap_offset: 0, size, offset: 0 };
    if flags & region_flags::CAPS == 0 {
        return Ok(info.as_bytes().to_vec());
    }
    let argsz_in_full = INFO_BYTES + CAPABILITY_BYTES;
    let info = RegionInfo { argsz: argsz_in_full, cap_offset: INFO_BYTES, ..info };
    if argsz < info.argsz {
        // It learns how much room it takes, and asks again. Where the capability will be is said already
        // here: QEMU gives a device up that says there is one, and no place.
        return Ok(info.as_bytes().to_vec());
    }
    let areas = SparseAreas { id: SparseAreas::ID, version: 1, next: 0, count: 1, reserved: 0 };
    let area = SparseArea { offset: 0, size };
    Ok([info.as_bytes(), areas.as_bytes(), area.as_bytes()].concat())
}

/// DEVICE_GET_REGION_INFO of a management function: none of its regions is a file.
pub(crate) fn manager_info(index: u32) -> Result<Vec<u8>, Refusal> {
    if index >= region::COUNT {
        return Err(Refusal::invalid("there is no such region"));
    }
    let (size, flags) = match index {
        region::BAR4 => (BAR4_BYTES, region_flags::READ),
        _ if size(index) > 0 => (size(index), region_flags::READ | region_flags::WRITE),
        _ => (0, 0),
    };
    let (argsz, size) = (INFO_BYTES, size.into());
    Ok(RegionInfo { argsz, flags, index, cap_offset: 0, size, offset: 0 }.as_bytes().to_vec())
}

/// Bytes of a reply without capabilities, and of the one capability that there is.
const INFO_BYTES: u32 = 32;
const CAPABILITY_BYTES: u32 = 32;

/// Whether the file of the telemetry page goes with a reply that [`info`] made: it says how to map it.
pub(crate) fn has_file(info: &[u8]) -> bool {
    info.len() > size_of::<RegionInfo>()
}

fn size(index: u32) -> u32 {
    match index {
        region::BAR0 => BAR0_BYTES,
        region::BAR2 => BAR2_BYTES,
        region::BAR4 => PAGE_BYTES,
        region::CONFIG => CONFIG_BYTES,
        _ => 0,
    }
}

/// Where an access begins, once it is known to lie in its region.
fn check(access: &RegionAccess) -> Result<u32, Refusal> {
    if access.region >= region::COUNT {
        return Err(Refusal::invalid("there is no such region"));
    }
    if access.count > MAX_TRANSFER_BYTES {
        return Err(Refusal::new(errno::E2BIG, "more bytes than were negotiated"));
    }
    let end = access.offset.checked_add(access.count.into());
    if end.is_none_or(|end| end > size(access.region).into()) {
        return Err(Refusal::invalid("the access lies beyond the region"));
    }
    let is_dwords = access.offset.is_multiple_of(4) && access.count.is_multiple_of(4);
    if access.region != region::CONFIG && !is_dwords {
        return Err(Refusal::invalid("registers are 32 bits wide"));
    }
    u32::try_from(access.offset).map_err(|_| Refusal::invalid("the access lies beyond the region"))
}

/// REGION_READ: the bytes.
pub(crate) fn read(
    function: &Function,
    page: &TelemetryPage,
    access: &RegionAccess,
) -> Result<Vec<u8>, Refusal> {
    let start = check(access)?;
    if access.region == region::CONFIG {
        // Reading it changes nothing, so each byte may read its dword.
        let bytes = start..start + access.count;
        return Ok(bytes.map(|at| byte(function.config_read(at & !3), at)).collect());
    }
    let dwords = (start..start + access.count).step_by(4);
    if access.region == region::BAR4 {
        // All words are of one moment.
        let words = page.snapshot();
        let word = |at: u32| words.get(usize::try_from(at / 4).ok()?).copied();
        return Ok(dwords.flat_map(|at| word(at).unwrap_or(0).to_le_bytes()).collect());
    }
    let read = |at| match access.region {
        region::BAR0 => function.read32(at),
        _ => function.msix_read(at),
    };
    Ok(dwords.flat_map(|at| read(at).to_le_bytes()).collect())
}

fn byte(dword: u32, at: u32) -> u8 {
    let [a, b, c, d] = dword.to_le_bytes();
    match at & 3 {
        0 => a,
        1 => b,
        2 => c,
        _ => d,
    }
}

/// REGION_WRITE of `bytes`, which are as many as `access` says.
pub(crate) fn write(
    function: &Function,
    vectors: &Vectors,
    access: &RegionAccess,
    bytes: &[u8],
) -> Result<(), Refusal> {
    let start = check(access)?;
    if access.region == region::BAR4 {
        return Err(Refusal::new(errno::EACCES, "telemetry can only be read"));
    }
    if usize::try_from(access.count).ok() != Some(bytes.len()) {
        return Err(Refusal::invalid("the count is not that of the bytes"));
    }
    if access.region == region::CONFIG {
        write_config(function, vectors, start, bytes);
        return Ok(());
    }
    for (at, chunk) in (start..).step_by(4).zip(bytes.chunks_exact(4)) {
        let mut dword = [0; 4];
        dword.copy_from_slice(chunk);
        match access.region {
            region::BAR0 => function.write32(at, u32::from_le_bytes(dword)),
            _ => function.msix_write(at, u32::from_le_bytes(dword)),
        }
    }
    Ok(())
}

/// Configuration space is written in dwords, so the bytes around those that are meant are kept.
fn write_config(function: &Function, vectors: &Vectors, start: u32, bytes: &[u8]) {
    let mut at = start;
    let mut rest = bytes;
    while !rest.is_empty() {
        let within = usize::try_from(at & 3).unwrap_or(0);
        let (now, later) = rest.split_at(rest.len().min(4 - within));
        let mut dword = function.config_read(at & !3).to_le_bytes();
        dword[within..within + now.len()].copy_from_slice(now);
        let value = u32::from_le_bytes(dword);
        function.config_write(at & !3, value);
        if at & !3 == offset::DEVICE_CONTROL && value & crate::pci::FUNCTION_RESET != 0 {
            vectors.open(function);
        }
        at = (at & !3) + 4;
        rest = later;
    }
}
