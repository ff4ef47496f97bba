//! Jobs on every kind of memory that a client may lend: files that cannot shrink, files that can, and
//! memory that has no file, each in pieces that lie anywhere.

use super::guest::{ASKED, Answer, Guest, RINGS, copy_entry};
use super::{DEADLINE, Sim, check_good, sealed};
use nix::sys::memfd::{MFdFlags, memfd_create};
use npu_uapi::addr::Iova;
use npu_uapi::queue::{CreateQueue, EntryHeader, opcode};
use npu_uapi::reg::Register;
use npu_uapi::regs::{Abort, Ctrl, FaultLost, Kick, MAGIC, Magic, Scratch, Status as State, state};
use npu_uapi::status::Status;
use npu_uapi::vfio_user::{DmaMap, DmaUnmap, command, dma_unmap_flags, errno};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;
use zerocopy::IntoBytes;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

fn contents(file: &OwnedFd, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::from(file.try_clone().unwrap()).read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn set(file: &OwnedFd, at: u64, bytes: &[u8]) {
    File::from(file.try_clone().unwrap()).write_all_at(bytes, at).unwrap();
}

/// Maps the pages of `file` at `address`, the last page of the file first.
fn map_reversed(guest: &Guest, address: u64, file: &OwnedFd, (pages, page): (u64, u64)) {
    for number in 0..pages {
        guest
            .map(address + number * page, page, Some((file, (pages - 1 - number) * page)))
            .unwrap();
    }
}

#[test]
fn small_pages_in_any_order_go_through_a_buffer_and_are_counted() {
    let sim = Sim::start("small", &["--device", "sram=64K"]);
    let mut guest = Guest::new(&sim);
    let (pages, page) = (32, 4096);
    let straight = sealed(32 * 4096);
    for number in 0..pages {
        let place = Some((&straight, number * page));
        guest.map(0x4000_0000 + number * page, page, place).unwrap();
    }
    let reversed = sealed(32 * 4096);
    map_reversed(&guest, 0x5000_0000, &reversed, (pages, page));
    let bytes = pattern(20 * 4096);
    set(&straight, 100, &bytes);
    assert_eq!(guest.copy(0x4000_0064, 0x4001_4064, 10 * 4096), Status::OK);
    assert_eq!(guest.counters().bounced_bytes, 0, "neighbours in one file are neighbours");
    set(&straight, 100, &bytes);
    let len = bytes.len() as u64;
    assert_eq!(guest.copy(0x4000_0064, 0x5000_0123, len), Status::OK);
    // What lies where the slot does is read first, since a job need not write all of it.
    assert_eq!(guest.counters().bounced_bytes, 2 * len);
    let by_iova: Vec<u8> =
        (0..32).flat_map(|at| contents(&reversed, (31 - at) * 4096, 4096)).collect();
    assert_eq!(by_iova[0x123..0x123 + bytes.len()], bytes);
    assert!(by_iova[..0x123].iter().chain(&by_iova[0x123 + bytes.len()..]).all(|&b| b == 0));
    assert_eq!(guest.copy(0x5000_0123, 0x4000_0000, len), Status::OK);
    assert_eq!(contents(&straight, 0, bytes.len()), bytes);
    // A hole in the middle is a fault of the job.
    let hole = DmaUnmap { argsz: 24, flags: 0, address: Iova::new(0x5000_3000), size: 4096 };
    guest.client.call(command::DMA_UNMAP, hole.as_bytes(), &[]).unwrap();
    assert_eq!(guest.copy(0x5000_0123, 0x4000_0000, len), Status::UNMAPPED_IOVA);
}

#[test]
fn large_pages_in_any_order_are_used_in_place() {
    let sim = Sim::start("large", &["--device", "sram=64K"]);
    let before = sim.holdings();
    let mut guest = Guest::new(&sim);
    let page = 2 << 20;
    let file = sealed(4 * (2 << 20));
    map_reversed(&guest, 0x4000_0000, &file, (4, page));
    // Another file goes on where this one ends.
    let other = sealed(2 << 20);
    guest.map(0x4080_0000, page, Some((&other, 0))).unwrap();
    let bytes = pattern(3 << 20);
    let half = 1 << 20;
    set(&file, 3 * page + half, &bytes[..1 << 20]);
    set(&file, 2 * page, &bytes[1 << 20..]);
    assert_eq!(guest.copy(0x4010_0000, 0x4058_0000, 3 << 20), Status::OK);
    assert_eq!(guest.counters().bounced_bytes, 0);
    let found = [
        contents(&file, page + 0x18_0000, 0x8_0000),
        contents(&file, 0, 2 << 20),
        contents(&other, 0, 0x8_0000),
    ];
    assert!(found.concat() == bytes);
    assert_eq!(guest.fill(0x4070_0000, 2 << 20, 9), Status::OK);
    assert!(contents(&other, 0, 1 << 20) == [9; 1 << 20]);
    assert_eq!(guest.counters().bounced_bytes, 0);
    drop(guest);
    sim.wait_for_holdings(before);
}

#[test]
fn a_file_that_can_shrink_is_read_and_written_until_it_does() {
    let sim = Sim::start("shrink", &["--device", "sram=64K"]);
    let good = sim.client();
    let mut guest = Guest::new(&sim);
    let file = memfd_create(c"unsealed", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&file, 1 << 20).unwrap();
    guest.map(0x4000_0000, 1 << 20, Some((&file, 0))).unwrap();
    let bytes = pattern(300_000);
    set(&file, 0, &bytes);
    assert_eq!(guest.copy(0x4000_0000, 0x4008_0000, 300_000), Status::OK);
    assert_eq!(contents(&file, 0x8_0000, 300_000), bytes);
    nix::unistd::ftruncate(&file, 0x4000).unwrap();
    assert_eq!(guest.copy(0x4000_0000, 0x4000_8000, 0x8000), Status::DMA_ERROR);
    assert_eq!(guest.fill(0x4000_3000, 0x2000, 1), Status::DMA_ERROR);
    assert_eq!(guest.fill(0x4000_3000, 0x1000, 1), Status::OK);
    assert_eq!(fs::File::from(file).metadata().unwrap().len(), 0x4000, "nothing made it longer");
    // No atomics there, so no rings.
    assert_eq!(guest.create_queue(1, 0x4000_0000).status, Status::ACCESS_DENIED);
    check_good(&good);
}

#[test]
fn memory_without_a_file_is_asked_for_and_wrong_answers_end_the_job() {
    let sim = Sim::start("asked", &["--device", "sram=64K"]);
    let good = sim.client();
    let mut guest = Guest::new(&sim);
    guest.map(ASKED, 1 << 30, None).unwrap();
    let bytes = pattern(100_001);
    guest.memory[5..100_006].copy_from_slice(&bytes);
    for answer in [Answer::Properly, Answer::ForAnother] {
        guest.answer = answer;
        assert_eq!(guest.copy(ASKED + 5, ASKED + 0x4_0000, 100_001), Status::OK, "{answer:?}");
        assert_eq!(guest.memory[0x4_0000..0x4_0000 + 100_001], bytes);
        guest.memory[0x4_0000..].fill(0);
    }
    // Both slots are read, and the second is written.
    assert_eq!(guest.counters().bounced_bytes, 6 * 100_001);
    assert_eq!(guest.most_bytes, 8192, "no more than the client takes");
    for answer in [Answer::Refuse, Answer::Short] {
        guest.answer = answer;
        assert_eq!(guest.fill(ASKED, 0x3000, 1), Status::DMA_ERROR, "{answer:?}");
    }
    guest.answer = Answer::Properly;
    assert_eq!(guest.create_queue(1, ASKED).status, Status::ACCESS_DENIED);
    let asked = guest.asked;
    assert_eq!(guest.fill(ASKED, 512 << 20, 1), Status::NO_RESOURCES, "buffers are bounded");
    assert_eq!(guest.asked, asked);
    assert_eq!(guest.fill(ASKED + 1, 2, 3), Status::OK);
    assert_eq!(guest.memory[..4], [bytes_at(&guest, 0), 3, 3, bytes_at(&guest, 3)]);
    check_good(&good);
}

fn bytes_at(guest: &Guest, at: usize) -> u8 {
    guest.memory[at]
}

#[test]
fn a_client_that_owes_an_answer_can_read_registers_abort_unmap_and_go() {
    let sim = Sim::start("owes", &["--device", "sram=64K"]);
    let good = sim.client();
    let before = sim.holdings();
    let mut guest = Guest::new(&sim);
    guest.map(ASKED, 1 << 20, None).unwrap();
    guest.answer = Answer::Never;
    for round in 0..3 {
        let asked = guest.asked;
        guest.submit(copy_entry(ASKED, ASKED + 0x8_0000, 0x1000));
        while guest.asked == asked {
            guest.wait();
        }
        let start = Instant::now();
        assert_eq!(guest.read(Magic::OFFSET), MAGIC);
        match round {
            0 => {
                let id = guest.queue.as_ref().unwrap().0;
                guest.write(Abort::OFFSET, id);
                assert_eq!(guest.finish().status, Status::ABORTED);
            }
            1 => {
                let (flags, address) = (0, Iova::new(ASKED));
                let all = DmaUnmap { argsz: 24, flags, address, size: 1 << 20 };
                guest.call(command::DMA_UNMAP, all.as_bytes());
                assert_eq!(guest.finish().status, Status::ABORTED);
                guest.map(ASKED, 1 << 20, None).unwrap();
            }
            _ => {}
        }
        assert!(start.elapsed() < DEADLINE);
    }
    // The last is killed with the answer still owed.
    drop(guest);
    sim.wait_for_holdings(before);
    check_good(&good);
}

#[test]
fn the_last_page_of_the_address_space_is_memory_like_any_other() {
    let sim = Sim::start("last", &["--device", "sram=64K"]);
    let mut guest = Guest::new(&sim);
    let file = sealed(8192);
    let last_pages = u64::MAX - 8191;
    guest.map(last_pages, 8192, Some((&file, 0))).unwrap();
    assert_eq!(guest.fill(last_pages + 1, 8191, 6), Status::OK);
    assert_eq!(contents(&file, 0, 8192)[..2], [0, 6]);
    assert_eq!(contents(&file, 1, 8191), vec![6; 8191]);
    assert_eq!(guest.fill(last_pages + 1, 8192, 6), Status::UNMAPPED_IOVA);
    // As a virtual IOMMU unmaps everything.
    let half = DmaUnmap { argsz: 24, flags: 0, address: Iova::new(1 << 63), size: 1 << 63 };
    guest.client.call(command::DMA_UNMAP, half.as_bytes(), &[]).unwrap();
    assert_eq!(guest.fill(last_pages, 1, 6), Status::UNMAPPED_IOVA);
}

#[test]
fn a_client_has_65535_mappings_and_a_file_is_mapped_once() {
    let sim = Sim::start("many", &["--device", "sram=64K"]);
    // Of memory files: what the allocator has besides grows as it likes.
    let maps = || {
        let path = format!("/proc/{}/maps", sim.child.id());
        let maps = fs::read_to_string(path).unwrap();
        maps.lines().filter(|line| line.contains("/memfd:")).count()
    };
    let guest = Guest::new(&sim);
    let (fds, mapped) = (sim.holdings().0, maps());
    let file = sealed(17_000 * 4096);
    let start = Instant::now();
    for number in 0..17_000 {
        // Each second page is left out, so that no two are neighbours.
        let place = Some((&file, number * 4096));
        guest.map(0x40_0000_0000 + number * 8192, 4096, place).unwrap();
    }
    println!("17,000 mappings of one file: {:?}, {} more pieces", start.elapsed(), maps() - mapped);
    assert_eq!(maps(), mapped + 1);
    assert_eq!(sim.holdings().0, fds, "descriptors are not kept");
    // The rings are one.
    for number in 17_001..65_535 {
        guest.map(0x40_0000_0000 + number * 8192, 4096, None).unwrap();
    }
    assert_eq!(guest.map(0x1000, 4096, None), Err(errno::ENOSPC));
    let flags = dma_unmap_flags::ALL;
    let all = DmaUnmap { argsz: 24, flags, address: Iova::new(0), size: 0 };
    let start = Instant::now();
    guest.client.call(command::DMA_UNMAP, all.as_bytes(), &[]).unwrap();
    println!("65,535 unmapped: {:?}", start.elapsed());
    guest.map(0x1000, 4096, None).unwrap();
    // The file is gone, and so is that of the rings; the telemetry page is not.
    assert_eq!(maps(), mapped - 1);
    assert_eq!(sim.holdings().2, 1);
}

#[test]
fn files_that_cannot_be_relied_on_are_refused() {
    let sim = Sim::start("files", &[]);
    let guest = Guest::new(&sim);
    let map = |file: OwnedFd| guest.map(0x4000_0000, 4096, Some((&file, 0)));
    let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
    assert_eq!(map(open("/proc/self/maps")), Err(errno::EINVAL), "it has no length");
    assert_eq!(map(open("/dev/zero")), Err(errno::EBADF));
    assert_eq!(map(open("/")), Err(errno::EBADF));
    // Read-only, but to be written.
    let file = memfd_create(c"readable", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&file, 4096).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    assert_eq!(map(open(&path)), Err(errno::EACCES));
    let append = File::options().append(true).read(true).open(&path).unwrap();
    assert_eq!(map(append.into()), Err(errno::EACCES));
    let huge = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_ALLOW_SEALING;
    // Making one takes no huge page, sizing it neither.
    if let Ok(huge) = memfd_create(c"huge", huge) {
        nix::unistd::ftruncate(&huge, 2 << 20).unwrap();
        assert_eq!(map(huge), Err(errno::EACCES));
    }
    let files: Vec<OwnedFd> = (0..256).map(|_| sealed(4096)).collect();
    for (number, file) in (0..).zip(&files) {
        let mapped = guest.map(0x6000_0000 + number * 4096, 4096, Some((file, 0)));
        // The rings are a file too.
        assert_eq!(mapped, if number < 255 { Ok(()) } else { Err(errno::ENOSPC) }, "{number}");
    }
    guest.map(0x7000_0000, 4096, Some((&files[0], 0))).unwrap();
}

#[test]
fn nonsense_in_registers_and_rings_is_recorded_as_faults_and_a_reset_makes_good() {
    let sim = Sim::start("nonsense", &["--device", "sram=64K"]);
    let good = sim.client();
    let mut guest = Guest::new(&sim);
    // There is no fault ring: records are counted as lost.
    let faults = |guest: &mut Guest| guest.read(FaultLost::OFFSET);
    let mut before = faults(&mut guest);
    for (offset, value) in [(Magic::OFFSET, 1), (0x1000, 1), (Scratch::OFFSET + 4, 7), (0xfffc, 7)]
    {
        guest.write(offset, value);
        assert_eq!(faults(&mut guest), before + 1, "{offset:#x}");
        before += 1;
    }
    let base = RINGS + 0x8000;
    for (sq_log2, cq_log2, vector, base) in [
        (3, 4, 1, base),
        (4, 13, 1, base),
        (255, 255, 1, base),
        (4, 4, u16::MAX, base),
        (4, 4, 1, base + 4),
    ] {
        let header = EntryHeader::new(opcode::CREATE_QUEUE, 0);
        let base = Iova::new(base);
        let entry = CreateQueue {
            header,
            base,
            context: 1,
            sq_log2,
            cq_log2,
            vector,
            ..CreateQueue::default()
        };
        assert_eq!(guest.run_admin(entry.words()).status, Status::INVALID_FIELD, "{entry:?}");
    }
    assert_eq!(guest.create_queue(1, 0x7000_0000).status, Status::UNMAPPED_IOVA);
    assert_eq!(guest.create_queue(77, base).status, Status::UNKNOWN_ID);
    assert_eq!(guest.fill(0x7000_0000, 4096, 1), Status::UNMAPPED_IOVA);
    let file = sealed(4096);
    let address = Iova::new(0x7000_0000);
    let request = DmaMap { argsz: 32, flags: 1, offset: 0, address, size: 4096 };
    guest.client.call(command::DMA_MAP, request.as_bytes(), &[file.as_raw_fd()]).unwrap();
    assert_eq!(guest.fill(0x7000_0000, 4096, 1), Status::ACCESS_DENIED);
    assert_eq!(guest.create_queue(1, 0x7000_0000).status, Status::ACCESS_DENIED);
    before = faults(&mut guest);
    // An index that cannot be stops the queue, then the device.
    let id = guest.queue.as_ref().unwrap().0;
    guest.file.write_all_at(&0x7777_u32.to_le_bytes(), 0x4000).unwrap();
    guest.write(Kick::OFFSET, id);
    let start = Instant::now();
    while faults(&mut guest) == before {
        assert!(start.elapsed() < DEADLINE, "no fault was recorded");
    }
    guest.file.write_all_at(&0x7777_u32.to_le_bytes(), 0).unwrap();
    guest.write(Kick::OFFSET, 0);
    let found = |guest: &mut Guest| State::from_raw(guest.read(State::OFFSET)).get(State::STATE);
    while found(&mut guest) != state::FAILED {
        assert!(start.elapsed() < DEADLINE, "it does not fail");
    }
    guest.write(Ctrl::OFFSET, Ctrl::default().with(Ctrl::RESET, true).raw());
    assert_eq!(found(&mut guest), state::RESET);
    check_good(&guest.client);
    check_good(&good);
}
