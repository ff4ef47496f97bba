//! What a client may ask of its function, command by command. No sockets: messages in, replies out.

use super::memory::{ClientMemory, MAX_MAPS};
use super::message::{Message, Refusal, check_argsz, exact, split};
use super::regions;
use super::vectors::Vectors;
use crate::device::Function;
use crate::interrupt::InterruptSink;
use crate::pci::{FUNCTION_RESET, offset};
use npu_uapi::vfio_user::{
    DeviceInfo, DmaMap, DmaUnmap, IrqInfo, MAX_FDS, MAX_TRANSFER_BYTES, PAGE_BYTES, PROTOCOL,
    RegionAccess, RegionInfo, RegionWriteEntry, Version, capability, command, device_flags, errno,
    flags, irq, irq_flags, region,
};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// One client and its function.
#[derive(Debug)]
pub(crate) struct Session {
    function: Arc<Function>,
    memory: ClientMemory,
    vectors: Arc<Vectors>,
    /// Whether the version is agreed on.
    is_open: bool,
}

impl Session {
    /// A session with `function`, whose interrupts it takes.
    pub(crate) fn new(function: Arc<Function>) -> Self {
        let vectors = Arc::new(Vectors::new(function.limits().vectors));
        function.connect_interrupts(Arc::<Vectors>::clone(&vectors) as Arc<dyn InterruptSink>);
        let memory = ClientMemory::new(Arc::clone(&function));
        Self { function, memory, vectors, is_open: false }
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
                Ok(regions::info(request.index)?.as_bytes().to_vec())
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
                let bytes = regions::read(&self.function, &access)?;
                Ok([access.as_bytes(), &bytes].concat())
            }
            command::REGION_WRITE => {
                let (access, bytes) = split::<RegionAccess>(body)?;
                regions::write(&self.function, &self.vectors, &access, bytes)?;
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

    /// VERSION: agrees on what both can do.
    fn agree(&mut self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        if self.is_open {
            return Err(Refusal::invalid("the version is agreed on already"));
        }
        let (version, data) = split::<Version>(body)?;
        if version.major != PROTOCOL.0 {
            return Err(Refusal::invalid("only major version 0 is spoken here"));
        }
        check_capabilities(data)?;
        let capabilities = serde_json::json!({ capability::CAPABILITIES: {
            capability::MAX_MSG_FDS: MAX_FDS,
            capability::MAX_DATA_XFER_SIZE: MAX_TRANSFER_BYTES,
            capability::MAX_DMA_MAPS: MAX_MAPS,
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

    fn write_multi(&self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
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
            regions::write(&self.function, &self.vectors, &entry.access, bytes)?;
        }
        Ok(count.as_bytes().to_vec())
    }

    /// Begins a function-level reset; mappings and eventfds stay. The function is quiet once its state
    /// register says so: a reply that waited for a job could come too late for the client.
    fn reset(&self) {
        self.function.config_write(offset::DEVICE_CONTROL, FUNCTION_RESET);
        self.vectors.open(&self.function);
    }
}

/// Refuses data that are not a JSON object behind which a NUL byte ends the message. There may be none.
fn check_capabilities(data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() {
        return Ok(());
    }
    let [text @ .., 0] = data else { return Err(Refusal::invalid("version data without NUL")) };
    let json: serde_json::Value =
        serde_json::from_slice(text).map_err(|_| Refusal::invalid("version data are not JSON"))?;
    // The replies here are small, and no command comes with descriptors: limits of the client do not bind.
    if json.is_object() { Ok(()) } else { Err(Refusal::invalid("version data are no object")) }
}
