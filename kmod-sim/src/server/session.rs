//! What a client may ask of its function, command by command. No sockets: messages in, replies out.

use super::link::Link;
use super::mailbox::Mailbox;
use super::memory::ClientMemory;
use super::message::{Message, Refusal, check_argsz, exact, split};
use super::regions;
use super::telemetry::TelemetryPage;
use super::vectors::Vectors;
use crate::device::{Function, Telemetry};
use crate::interrupt::InterruptSink;
use crate::pci::{FUNCTION_RESET, offset};
use npu_uapi::vfio_user::{
    DeviceInfo, DmaMap, DmaUnmap, IrqInfo, MAX_DMA_MAPS, MAX_FDS, MAX_TRANSFER_BYTES, PAGE_BYTES,
    PROTOCOL, RegionAccess, RegionInfo, RegionWriteEntry, Version, capability, command,
    device_flags, errno, flags, irq, irq_flags, region,
};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// One client and its function.
#[derive(Debug)]
pub(crate) struct Session {
    function: Arc<Function>,
    link: Arc<Link>,
    page: Arc<TelemetryPage>,
    memory: ClientMemory,
    vectors: Arc<Vectors>,
    /// What its registers are, where it is no NPU.
    mailbox: Option<Mailbox>,
    /// Whether the version is agreed on.
    is_open: bool,
}

impl Session {
    /// A session with `function`, whose interrupts it takes. Over `link` the client is asked for memory.
    ///
    /// # Errors
    /// The system has no file left for its telemetry.
    pub(crate) fn new(function: Arc<Function>, link: Arc<Link>) -> io::Result<Self> {
        let page = Arc::new(TelemetryPage::new()?);
        function.connect_telemetry(Arc::<TelemetryPage>::clone(&page) as Arc<dyn Telemetry>);
        let vectors = Arc::new(Vectors::new(function.limits().vectors));
        function.connect_interrupts(Arc::<Vectors>::clone(&vectors) as Arc<dyn InterruptSink>);
        let memory = ClientMemory::new(Arc::clone(&function), Arc::clone(&link));
        Ok(Self { function, link, page, memory, vectors, mailbox: None, is_open: false })
    }

    /// As [`Session::new`], of a management function.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn with_mailbox(
        function: Arc<Function>,
        link: Arc<Link>,
        mailbox: Mailbox,
    ) -> io::Result<Self> {
        Ok(Self { mailbox: Some(mailbox), ..Self::new(function, link)? })
    }

    /// What its function shows of itself.
    pub(crate) fn page(&self) -> &Arc<TelemetryPage> {
        &self.page
    }

    /// The file that goes with the reply `body` to `command`.
    pub(crate) fn file_beside(&self, command: u16, body: &[u8]) -> Option<BorrowedFd<'_>> {
        let has_file = command == command::DEVICE_GET_REGION_INFO && regions::has_file(body);
        has_file.then(|| self.page.file())
    }

    /// Whether the version is agreed on.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Does what a command asks for; the body of its reply.
    ///
    /// # Errors
    /// It is refused and has no effect, but for REGION_WRITE_MULTI, which ends at the refused write.
    pub(crate) fn answer(&mut self, message: Message) -> Result<Vec<u8>, Refusal> {
        let body = &message.body[..];
        if message.header.flags & flags::TYPE != flags::COMMAND {
            return Err(Refusal::invalid("neither a command nor a reply"));
        }
        match message.header.command {
            command::DMA_MAP | command::DEVICE_SET_IRQS => {}
            _ => message.has_no_fds()?,
        }
        if !self.is_open && message.header.command != command::VERSION {
            return Err(Refusal::new(errno::EPERM, "the first command must be VERSION"));
        }
        match message.header.command {
            command::VERSION => self.agree(body),
            command::DMA_MAP => self.map(message),
            command::DMA_UNMAP => {
                let request: DmaUnmap = exact(body)?;
                check_argsz(request.argsz, size_of::<DmaUnmap>())?;
                self.memory.unmap(&request)?;
                Ok(message.body)
            }
            command::DEVICE_GET_INFO => {
                let request: DeviceInfo = exact(body)?;
                check_argsz(request.argsz, size_of::<DeviceInfo>())?;
                let flags = device_flags::RESET | device_flags::PCI;
                let (regions, irqs) = (region::COUNT, irq::COUNT);
                Ok(DeviceInfo { argsz: 16, flags, regions, irqs }.as_bytes().to_vec())
            }
            command::DEVICE_GET_REGION_INFO => {
                let request: RegionInfo = exact(body)?;
                check_argsz(request.argsz, size_of::<RegionInfo>())?;
                match &self.mailbox {
                    Some(_) => regions::manager_info(request.index),
                    None => regions::info(request.index, request.argsz),
                }
            }
            command::DEVICE_GET_IRQ_INFO => {
                let request: IrqInfo = exact(body)?;
                check_argsz(request.argsz, size_of::<IrqInfo>())?;
                Ok(self.irq_info(request.index)?.as_bytes().to_vec())
            }
            command::DEVICE_SET_IRQS => {
                self.vectors.set(&self.function, message)?;
                Ok(Vec::new())
            }
            command::REGION_READ => {
                let access: RegionAccess = exact(body)?;
                let bytes = match &mut self.mailbox {
                    Some(mailbox) if Mailbox::has(&access) => mailbox.read(&access)?,
                    _ => regions::read(&self.function, &self.page, &access)?,
                };
                Ok([access.as_bytes(), &bytes].concat())
            }
            command::REGION_WRITE => {
                let (access, bytes) = split::<RegionAccess>(body)?;
                self.write(&access, bytes)?;
                Ok(access.as_bytes().to_vec())
            }
            command::REGION_WRITE_MULTI => self.write_multi(body),
            command::DEVICE_RESET => {
                exact::<[u8; 0]>(body)?;
                self.reset();
                Ok(Vec::new())
            }
            _ => Err(Refusal::new(errno::ENOTSUP, "the command is not supported")),
        }
    }

    /// Waits where a reply is to be late.
    pub(crate) fn delay_reply(&self) {
        self.function.injector().delay_reply();
    }

    /// VERSION: agrees on what both can do.
    fn agree(&mut self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        if self.is_open {
            return Err(Refusal::invalid("the version is agreed on already"));
        }
        let (version, data) = split::<Version>(body)?;
        if version.major != PROTOCOL.0 {
            return Err(Refusal::invalid("only major version 0 is spoken here"));
        }
        self.link.limit(most_bytes(data)?);
        let capabilities = serde_json::json!({ capability::CAPABILITIES: {
            capability::MAX_MSG_FDS: MAX_FDS,
            capability::MAX_DATA_XFER_SIZE: MAX_TRANSFER_BYTES,
            capability::MAX_DMA_MAPS: MAX_DMA_MAPS,
            capability::PGSIZES: PAGE_BYTES,
            capability::WRITE_MULTIPLE: true,
        }});
        let agreed = Version { major: PROTOCOL.0, minor: version.minor.min(PROTOCOL.1) };
        self.is_open = true;
        Ok([agreed.as_bytes(), capabilities.to_string().as_bytes(), b"\0"].concat())
    }

    fn map(&mut self, mut message: Message) -> Result<Vec<u8>, Refusal> {
        let request: DmaMap = exact(&message.body)?;
        check_argsz(request.argsz, size_of::<DmaMap>())?;
        if message.has_lost_fds || message.fds.len() > 1 {
            return Err(Refusal::invalid("memory has one file at most"));
        }
        self.memory.map(&request, message.fds.pop())?;
        Ok(Vec::new())
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, Refusal> {
        let (flags, count) = match index {
            irq::MSIX => {
                (irq_flags::EVENTFD | irq_flags::NO_RESIZE, self.function.limits().vectors)
            }
            0..irq::COUNT => (0, 0),
            _ => return Err(Refusal::invalid("there is no such kind of interrupt")),
        };
        Ok(IrqInfo { argsz: 16, flags, index, count })
    }

    fn write(&mut self, access: &RegionAccess, bytes: &[u8]) -> Result<(), Refusal> {
        match &mut self.mailbox {
            Some(mailbox) if Mailbox::has(access) => mailbox.write(access, bytes),
            _ => regions::write(&self.function, &self.vectors, access, bytes),
        }
    }

    fn write_multi(&mut self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let (count, mut rest) = split::<u64>(body)?;
        let len = usize::try_from(count).ok();
        let len = len.and_then(|count| count.checked_mul(size_of::<RegionWriteEntry>()));
        if len != Some(rest.len()) {
            return Err(Refusal::invalid("the count is not that of the writes"));
        }
        while !rest.is_empty() {
            let entry: RegionWriteEntry;
            (entry, rest) = split(rest)?;
            let len = usize::try_from(entry.access.count).unwrap_or(usize::MAX);
            let bytes = entry.data.get(..len);
            let bytes = bytes.ok_or(Refusal::invalid("a write of more than 8 bytes"))?;
            self.write(&entry.access, bytes)?;
        }
        Ok(count.as_bytes().to_vec())
    }

    /// Begins a function-level reset; mappings and eventfds stay. The function is quiet once its state
    /// register says so: a reply that waited for a job could come too late for the client.
    fn reset(&mut self) {
        if let Some(mailbox) = &mut self.mailbox {
            mailbox.reset();
        }
        self.function.config_write(offset::DEVICE_CONTROL, FUNCTION_RESET);
        self.vectors.open(&self.function);
    }
}

/// Most bytes of data that the client takes in a message. Refuses data that are not a JSON object behind
/// which a NUL byte ends the message. There may be none.
fn most_bytes(data: &[u8]) -> Result<u32, Refusal> {
    if data.is_empty() {
        return Ok(MAX_TRANSFER_BYTES);
    }
    let [text @ .., 0] = data else { return Err(Refusal::invalid("version data without NUL")) };
    let json: serde_json::Value =
        serde_json::from_slice(text).map_err(|_| Refusal::invalid("version data are not JSON"))?;
    if !json.is_object() {
        return Err(Refusal::invalid("version data are no object"));
    }
    // No request of ours comes with descriptors: the client's other limits do not bind.
    match &json[capability::CAPABILITIES][capability::MAX_DATA_XFER_SIZE] {
        serde_json::Value::Null => Ok(MAX_TRANSFER_BYTES),
        found => match found.as_u64() {
            Some(most @ 1..) => Ok(u32::try_from(most).unwrap_or(u32::MAX)),
            _ => Err(Refusal::invalid("a transfer has a positive number of bytes")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use arbitrary::Unstructured;
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::eventfd::EventFd;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use npu_uapi::addr::Iova;
    use npu_uapi::regs::MAGIC;
    use npu_uapi::vfio_user::{Header, IrqSet, dma_map_flags, dma_unmap_flags, irq_set as set};
    use npu_uapi::workers::Caller;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn new() -> Session {
        let config = Config::parse("sram=0").unwrap();
        let (ours, _) = UnixStream::pair().unwrap();
        let link = Arc::new(Link::new(Arc::new(ours)));
        Session::new(Arc::new(Function::new(config).unwrap()), link).unwrap()
    }

    fn message(command: u16, body: &[u8], fds: Vec<OwnedFd>) -> Message {
        let header = Header::command(1, command, body.len()).unwrap();
        Message { header, body: body.to_vec(), fds, has_lost_fds: false }
    }

    fn open() -> Session {
        let mut session = new();
        session.answer(message(command::VERSION, &[0; 4], Vec::new())).unwrap();
        session
    }

    fn memfd(bytes: i64, is_sealed: bool) -> OwnedFd {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"test", flags).unwrap();
        nix::unistd::ftruncate(&file, bytes).unwrap();
        if is_sealed {
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        }
        file
    }

    fn eventfd() -> (EventFd, OwnedFd) {
        let ours = EventFd::new().unwrap();
        let theirs = std::os::fd::AsFd::as_fd(&ours).try_clone_to_owned().unwrap();
        (ours, theirs)
    }

    fn map(session: &mut Session, at: u64, size: u64, fds: Vec<OwnedFd>) -> Result<(), u32> {
        let flags = dma_map_flags::READ | dma_map_flags::WRITE;
        let request = DmaMap { argsz: 32, flags, offset: 0, address: Iova::new(at), size };
        let answer = session.answer(message(command::DMA_MAP, request.as_bytes(), fds));
        answer.map(|_| ()).map_err(|refusal| refusal.errno)
    }

    fn unmap(session: &mut Session, flags: u32, at: u64, size: u64) -> Result<(), u32> {
        let request = DmaUnmap { argsz: 24, flags, address: Iova::new(at), size };
        let answer = session.answer(message(command::DMA_UNMAP, request.as_bytes(), Vec::new()));
        answer.map(|body| assert_eq!(body, request.as_bytes())).map_err(|refusal| refusal.errno)
    }

    fn set_irqs(session: &mut Session, request: IrqSet, fds: Vec<OwnedFd>) -> Result<(), u32> {
        let answer = session.answer(message(command::DEVICE_SET_IRQS, request.as_bytes(), fds));
        answer.map(|_| ()).map_err(|refusal| refusal.errno)
    }

    fn magic(session: &mut Session) -> Vec<u8> {
        let access = RegionAccess { offset: 0, region: region::BAR0, count: 4 };
        let reply = session.answer(message(command::REGION_READ, access.as_bytes(), Vec::new()));
        reply.unwrap()[16..].to_vec()
    }

    #[test]
    fn the_version_comes_first_and_once_and_its_data_are_json_with_a_nul() {
        let mut session = new();
        let refused = session.answer(message(command::DEVICE_RESET, &[], Vec::new())).unwrap_err();
        assert_eq!(refused.errno, errno::EPERM);
        let bad: [&[u8]; 8] = [
            b"\0\0\x01\0{\"capabilities\":{\"max_data_xfer_size\":0}}\0",
            b"",
            b"\0\0",
            b"\x01\0\0\0{}\0",
            b"\0\0\x01\0{}",
            b"\0\0\x01\0{\0",
            b"\0\0\x01\0[]\0",
            b"\0\0\x01\0{}\0\0",
        ];
        for body in bad {
            let refused = session.answer(message(command::VERSION, body, Vec::new())).unwrap_err();
            assert_eq!(refused.errno, errno::EINVAL, "{body:?}");
        }
        let good = message(command::VERSION, b"\0\0\x09\0{\"capabilities\":{}}\0", Vec::new());
        let reply = session.answer(good).unwrap();
        assert_eq!(&reply[..4], [0, 0, 1, 0], "no newer than ours");
        assert_eq!(reply.last(), Some(&0));
        let again = message(command::VERSION, &[0; 4], Vec::new());
        assert_eq!(session.answer(again).unwrap_err().errno, errno::EINVAL);
        assert_eq!(magic(&mut session), MAGIC.to_le_bytes());
    }

    #[test]
    fn unmapping_ends_whole_mappings_only() {
        let mut session = open();
        let file = || vec![memfd(0x3000, true)];
        map(&mut session, 0x10_0000, 0x3000, file()).unwrap();
        map(&mut session, 0x20_0000, 0x1000, Vec::new()).unwrap();
        for (at, size) in [(0x10_0000, 0x1000), (0xf_f000, 0x2000), (0x10_2000, 0x1000)] {
            assert_eq!(map(&mut session, at, size, file()), Err(errno::EEXIST), "{at:#x}");
            assert_eq!(unmap(&mut session, 0, at, size), Err(errno::EINVAL), "{at:#x}");
        }
        unmap(&mut session, 0, 0x30_0000, 0x1000).unwrap();
        unmap(&mut session, 0, 1 << 63, 1 << 63).unwrap();
        assert_eq!(unmap(&mut session, 0, 1 << 63, (1 << 63) + 1), Err(errno::EINVAL));
        assert_eq!(session.memory.ranges(), 2);
        unmap(&mut session, 0, 0, 1 << 21 | 0x1000).unwrap();
        assert_eq!(session.memory.ranges(), 0);
        let last_page = 0_u64.wrapping_sub(0x1000);
        map(&mut session, last_page, 0x1000, file()).unwrap();
        assert_eq!(map(&mut session, last_page, 0x1000, file()), Err(errno::EEXIST));
        assert_eq!(map(&mut session, last_page, 0x2000, file()), Err(errno::EINVAL));
        unmap(&mut session, 0, last_page, 0x1000).unwrap();
        map(&mut session, last_page, 0x1000, Vec::new()).unwrap();
        assert_eq!(unmap(&mut session, dma_unmap_flags::ALL, 0, 1), Err(errno::EINVAL));
        unmap(&mut session, dma_unmap_flags::ALL, 0, 0).unwrap();
        assert_eq!(session.memory.ranges(), 0);
    }

    #[test]
    fn memory_that_is_not_there_is_refused() {
        let mut session = open();
        let (_ours, eventfd) = eventfd();
        assert_eq!(map(&mut session, 0, 0x2000, vec![memfd(0x1000, true)]), Err(errno::EINVAL));
        assert_eq!(map(&mut session, 0, 0x1000, vec![eventfd]), Err(errno::EBADF));
        let two = vec![memfd(0x1000, true), memfd(0x1000, true)];
        assert_eq!(map(&mut session, 0, 0x1000, two), Err(errno::EINVAL));
        for (at, size) in [(0, 0), (1, 0x1000), (0, 0xfff), (1 << 63, 1 << 63 | 0x1000)] {
            assert_eq!(map(&mut session, at, size, Vec::new()), Err(errno::EINVAL), "{at:#x}");
        }
        let large = vec![memfd(1 << 41, true)];
        assert_eq!(map(&mut session, 0, 1 << 41, large), Err(errno::ENOSPC));
        assert_eq!(session.memory.ranges(), 0);
        map(&mut session, 0, 0x1000, vec![memfd(0x1000, true)]).unwrap();
    }

    #[test]
    fn an_eventfd_is_woken_by_its_vector_until_it_is_taken_away() {
        let mut session = open();
        let msix =
            |flags, start, count| IrqSet { argsz: 20, flags, index: irq::MSIX, start, count };
        let assign = set::DATA_EVENTFD | set::TRIGGER;
        let (event, fd) = eventfd();
        set_irqs(&mut session, msix(assign, 1, 1), vec![fd]).unwrap();
        set_irqs(&mut session, msix(set::DATA_NONE | set::TRIGGER, 0, 2), Vec::new()).unwrap();
        assert_eq!(event.read(), Ok(1));
        // The eventfd of the first vector is set with the cause already pending.
        let write = |session: &mut Session, offset: u64, value: u32| {
            let access = RegionAccess { offset, region: region::BAR0, count: 4 };
            let body = [access.as_bytes(), value.as_bytes()].concat();
            session.answer(message(command::REGION_WRITE, &body, Vec::new())).unwrap();
        };
        write(&mut session, 0x64, 2);
        write(&mut session, 0x0, 1);
        let (first, fd) = eventfd();
        set_irqs(&mut session, msix(assign, 0, 1), vec![fd]).unwrap();
        assert_eq!(first.read(), Ok(1));
        set_irqs(&mut session, msix(set::DATA_NONE | set::TRIGGER, 0, 0), Vec::new()).unwrap();
        set_irqs(&mut session, msix(set::DATA_NONE | set::TRIGGER, 1, 1), Vec::new()).unwrap();
        assert!(event.read().is_err(), "it would wait");
    }

    #[test]
    fn nonsense_about_interrupts_is_refused() {
        let mut session = open();
        let fd = || eventfd().1;
        let request = |flags, index, start, count| IrqSet { argsz: 20, flags, index, start, count };
        let assign = set::DATA_EVENTFD | set::TRIGGER;
        let cases = [
            (request(assign, irq::MSIX, 0, 2), vec![fd()], errno::EINVAL),
            (request(assign, irq::MSIX, 0, 0), vec![], errno::EINVAL),
            (request(assign, irq::MSIX, 0, u32::MAX), vec![fd()], errno::EINVAL),
            (request(assign, irq::MSIX, u32::MAX, 1), vec![fd()], errno::EINVAL),
            (request(assign, irq::MSIX, u32::MAX, 0), vec![], errno::EINVAL),
            (request(assign, 0, 0, 1), vec![fd()], errno::EINVAL),
            (request(assign, irq::COUNT, 0, 1), vec![fd()], errno::EINVAL),
            (request(assign, irq::MSIX, 0, 1), vec![memfd(8, true)], errno::EBADF),
            (request(set::TRIGGER, irq::MSIX, 0, 1), vec![], errno::EINVAL),
            (request(set::DATA_NONE, irq::MSIX, 0, 1), vec![], errno::EINVAL),
            (request(assign | set::DATA_NONE, irq::MSIX, 0, 1), vec![fd()], errno::EINVAL),
            (request(assign | set::MASK, irq::MSIX, 0, 1), vec![fd()], errno::EINVAL),
            (request(assign | 64, irq::MSIX, 0, 1), vec![fd()], errno::EINVAL),
            (request(set::DATA_NONE | set::TRIGGER, irq::MSIX, 0, 1), vec![fd()], errno::EINVAL),
            (request(set::DATA_BOOL | set::TRIGGER, irq::MSIX, 0, 1), vec![], errno::EINVAL),
            (request(set::DATA_NONE | set::MASK, irq::MSIX, 0, 1), vec![], errno::ENOTSUP),
            (IrqSet { argsz: 19, ..request(assign, irq::MSIX, 0, 1) }, vec![fd()], errno::EINVAL),
        ];
        for (request, fds, expected) in cases {
            assert_eq!(set_irqs(&mut session, request, fds), Err(expected), "{request:?}");
        }
        set_irqs(&mut session, request(set::DATA_NONE | set::TRIGGER, 0, 0, 0), vec![]).unwrap();
    }

    /// A body that is near to one that makes sense, so that the checks behind the first are reached.
    fn arbitrary_message(u: &mut Unstructured<'_>) -> arbitrary::Result<Message> {
        let page = |u: &mut Unstructured<'_>| Ok(u64::from(u.int_in_range(0..=7_u8)?) << 12);
        let number = |u: &mut Unstructured<'_>| match u.int_in_range(0..=5)? {
            0 => u.arbitrary::<u32>(),
            _ => u.int_in_range(0..=40),
        };
        let command = u.int_in_range(0..=17)?;
        let mut body = match command {
            command::VERSION => b"\0\0\x01\0{\"capabilities\":{}}\0".to_vec(),
            command::DMA_MAP => {
                let (address, size) = (Iova::new(page(u)?), page(u)?);
                let (flags, offset) = (u.int_in_range(0..=4)?, page(u)?);
                DmaMap { argsz: 32, flags, offset, address, size }.as_bytes().to_vec()
            }
            command::DMA_UNMAP => {
                let (address, size) = (Iova::new(page(u)?), page(u)?);
                DmaUnmap { argsz: 24, flags: u.int_in_range(0..=3)?, address, size }
                    .as_bytes()
                    .to_vec()
            }
            command::DEVICE_SET_IRQS => {
                let (kind, action) = (1 << u.int_in_range(0..=2)?, 1 << u.int_in_range(3..=5)?);
                let (index, start, count) = (u.int_in_range(1..=3)?, number(u)?, number(u)?);
                IrqSet { argsz: 20, flags: kind | action, index, start, count }.as_bytes().to_vec()
            }
            command::REGION_READ | command::REGION_WRITE => {
                let region = *u.choose(&[region::BAR0, region::BAR2, region::CONFIG, 1])?;
                let offset = u64::from(number(u)?) * 4;
                let access = RegionAccess { offset, region, count: number(u)? };
                let mut body = access.as_bytes().to_vec();
                if command == command::REGION_WRITE {
                    let len = usize::try_from(access.count % 256).unwrap();
                    let value =
                        if u.ratio(1, 2)? { u.arbitrary()? } else { 1 << u.int_in_range(0..=7)? };
                    body.extend((0..len).map(|at| if at % 4 == 0 { value } else { 0 }));
                }
                body
            }
            command::DEVICE_RESET => Vec::new(),
            _ => vec![0; u.int_in_range(0..=40)?],
        };
        if u.ratio(1, 8)? {
            body.resize(u.int_in_range(0..=64)?, 0xff);
        }
        if u.ratio(1, 8)? && !body.is_empty() {
            let at = u.choose_index(body.len())?;
            body[at] = u.arbitrary()?;
        }
        let fds = if u.ratio(1, 2)? {
            let count = u.int_in_range(1..=2)?;
            let kind = u.int_in_range(0..=4_u8)?;
            let one = |_| match kind {
                0 => memfd(0x4000, false),
                1 | 2 => memfd(0x4000, true),
                _ => eventfd().1,
            };
            (0..count).map(one).collect()
        } else {
            Vec::new()
        };
        let mut message = message(command, &body, fds);
        message.has_lost_fds = u.ratio(1, 32)?;
        message.header.flags = if u.ratio(1, 16)? { u.arbitrary()? } else { 0 };
        Ok(message)
    }

    #[test]
    fn no_sequence_of_messages_breaks_a_session() {
        for seed in npu_uapi::fuzz::seeds(500) {
            arbtest::arbtest(|u| {
                let mut session = new();
                for _ in 0..u.int_in_range(0..=30)? {
                    if let Err(refusal) = session.answer(arbitrary_message(u)?) {
                        assert_ne!(refusal.errno, 0, "zero would say success");
                    }
                    session.function.drive(&Caller);
                    session.memory.check();
                }
                if !session.is_open {
                    session.answer(message(command::VERSION, &[0; 4], Vec::new())).unwrap();
                }
                assert_eq!(magic(&mut session), MAGIC.to_le_bytes());
                unmap(&mut session, dma_unmap_flags::ALL, 0, 0).unwrap();
                map(&mut session, 0, 0x1000, vec![memfd(0x1000, true)]).unwrap();
                Ok(())
            })
            .seed(seed);
        }
    }
}
