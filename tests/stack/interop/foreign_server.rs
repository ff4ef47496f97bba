//! The `vfio_user` crate's server with a device of ours behind it.

use kmod_sim::{Config, Function, InterruptSink};
use memmap2::{MmapOptions, MmapRaw};
use npu_tests::HANG;
use npu_uapi::addr::Iova;
use npu_uapi::queue::access;
use npu_uapi::vfio_user::{irq, irq_flags, region, region_flags};
use npu_uapi::workers::Caller;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

/// When the backend ceases to do what it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    Never,
    /// Refuses this call, counted from zero, and each one after.
    Refuse(u32),
    /// Panics at this call, which closes the connection.
    Die(u32),
}

/// A server in a thread, for one connection.
pub(super) struct ForeignServer {
    path: PathBuf,
    ended: Receiver<Result<(), String>>,
}

static STARTED: AtomicU32 = AtomicU32::new(0);

impl ForeignServer {
    pub(super) fn start(failure: Failure) -> Self {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("npu-foreign-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let config = Config::parse("sram=64K").unwrap();
        let function = Arc::new(Function::new(config).unwrap());
        let server = Server::new(&path, true, irqs(&function), regions()).unwrap();
        let (sender, ended) = channel();
        thread::spawn(move || {
            let events = Arc::new(Events::default());
            function.connect_interrupts(Arc::<Events>::clone(&events));
            let engine = Arc::clone(&function);
            let engine = thread::spawn(move || engine.serve(&Caller, std::time::Duration::ZERO));
            let serving = Arc::clone(&function);
            let served = thread::spawn(move || {
                let maps = BTreeMap::new();
                let mut backend = Backend { function: serving, events, maps, failure, calls: 0 };
                server.run(&mut backend).map_err(|error| error.to_string())
            });
            let result = served.join().unwrap_or_else(|_| Err("it died".into()));
            function.stop();
            engine.join().unwrap();
            // Nobody listens where the test has failed.
            let _ = sender.send(result);
        });
        Self { path, ended }
    }

    pub(super) fn device(&self) -> String {
        format!("vfio-user:{}", self.path.display())
    }

    /// Waits for its end, which the client's brings about.
    pub(super) fn join(&self) -> Result<(), String> {
        self.ended.recv_timeout(HANG).expect("the connection was closed")
    }
}

fn irqs(function: &Function) -> Vec<IrqInfo> {
    let info = |index| match index {
        irq::MSIX => IrqInfo { index, flags: irq_flags::EVENTFD, count: function.limits().vectors },
        _ => IrqInfo { index, flags: 0, count: 0 },
    };
    (0..irq::COUNT).map(info).collect()
}

fn regions() -> Vec<ServerRegion> {
    let size = |index| match index {
        region::BAR0 => npu_uapi::regs::pci::BAR0_BYTES,
        region::BAR2 => kmod_sim::pci::BAR2_BYTES,
        region::CONFIG => kmod_sim::pci::CONFIG_BYTES,
        _ => 0,
    };
    let flags = |size| if size == 0 { 0 } else { region_flags::READ | region_flags::WRITE };
    (0..region::COUNT)
        .map(|index| {
            let mut region = ServerRegion {
                region_info: Default::default(),
                sparse_areas: vec![],
                mmap_fd: None,
            };
            let info = &mut region.region_info;
            (info.argsz, info.index) = (32, index);
            (info.size, info.flags) = (size(index).into(), flags(size(index)));
            region
        })
        .collect()
}

/// Eventfds by vector.
#[derive(Debug, Default)]
struct Events(Mutex<BTreeMap<u32, File>>);

impl InterruptSink for Events {
    fn raised(&self, vector: u16) {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut event) = events.get(&vector.into()) {
            event.write_all(&1_u64.to_ne_bytes()).unwrap();
        }
    }
}

struct Backend {
    function: Arc<Function>,
    events: Arc<Events>,
    maps: BTreeMap<u64, MmapRaw>,
    failure: Failure,
    calls: u32,
}

impl Backend {
    fn count(&mut self) -> io::Result<()> {
        let number = self.calls;
        self.calls += 1;
        match self.failure {
            Failure::Refuse(at) if number >= at => Err(io::ErrorKind::Unsupported.into()),
            Failure::Die(at) => {
                assert!(number < at, "the test wants its end");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn failed(error: impl ToString) -> io::Error {
    io::Error::other(error.to_string())
}

impl ServerBackend for Backend {
    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.count()?;
        for (at, dword) in (u32::try_from(offset).unwrap()..).step_by(4).zip(data.chunks_mut(4)) {
            let value = match index {
                region::BAR0 => self.function.read32(at),
                region::BAR2 => self.function.msix_read(at),
                _ => self.function.config_read(at),
            };
            dword.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.count()?;
        for (at, dword) in (u32::try_from(offset).unwrap()..).step_by(4).zip(data.chunks(4)) {
            let value = u32::from_le_bytes(dword.try_into().map_err(failed)?);
            match index {
                region::BAR0 => self.function.write32(at, value),
                region::BAR2 => self.function.msix_write(at, value),
                _ => self.function.config_write(at, value),
            }
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        self.count()?;
        let file = file.ok_or_else(|| failed("no file"))?;
        let len = usize::try_from(size).map_err(failed)?;
        let map = MmapOptions::new().offset(offset).len(len).map_raw(&file)?;
        let mut bits = 0;
        for (flag, bit) in [(DmaMapFlags::READ, access::READ), (DmaMapFlags::WRITE, access::WRITE)]
        {
            bits |= if flags.contains(flag) { bit } else { 0 };
        }
        // SAFETY: the mapping is kept until the device has let go of it; the driver's file is sealed.
        unsafe { self.function.map(Iova::new(address), map.as_mut_ptr(), len, bits) }
            .map_err(failed)?;
        self.maps.insert(address, map);
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.count()?;
        self.function.unmap(Iova::new(address), size).map_err(failed)?;
        self.maps.remove(&address);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.count()?;
        let control = kmod_sim::pci::offset::DEVICE_CONTROL;
        self.function.config_write(control, kmod_sim::pci::FUNCTION_RESET);
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, start: u32, _: u32, fds: Vec<File>) -> io::Result<()> {
        self.count()?;
        let mut events = self.events.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.extend((start..).zip(fds));
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Jobs end before their memory goes.
        for (&at, map) in &self.maps {
            self.function.unmap(Iova::new(at), map.len() as u64).unwrap();
        }
    }
}
