//! Constants on the device, uploaded once for each content, whoever asks.

use crate::emit::{CONSTANTS, Emitted};
use crate::program::{CompileError, Compiled};
use bytes::Bytes;
use libnpu::{Access, Buffer, Context, Device, Memory, PerProcess, Table};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Constants bound for the programs of one context.
#[derive(Debug)]
pub(super) struct Bound {
    // First: the table goes before the memory that it names.
    table: Table,
    _uploaded: Arc<Uploaded>,
    source: Source,
}

/// Where constants are from, which is how programs that read the same ones are found.
#[derive(Debug)]
enum Source {
    Compiler(Box<Emitted>),
    Bundle(Bytes),
}

#[derive(Debug)]
struct Uploaded {
    buffer: Buffer,
    // Keeps the device open, so that nothing else gets its address.
    _device: Device,
}

/// What is uploaded, by device and content. Sessions of one model share their weights through it.
static UPLOADED: PerProcess<BTreeMap<Key, Weak<Uploaded>>> = PerProcess::new();

/// Which device, by the address of its transport, and SHA-256 of the content, or of what it is from. A name would not do:
/// when a device has gone, the same name opens another.
type Key = (usize, [u8; 32]);

impl Bound {
    /// Packs, uploads and binds the constants of `compiled`.
    pub(super) fn new(
        device: &Device,
        context: &Context,
        compiled: &Compiled,
    ) -> Result<Self, CompileError> {
        let source = Source::Compiler(Box::new(compiled.emitted.clone()));
        let bytes = compiled.constants();
        let content = Sha256::digest(&bytes).into();
        Self::upload(device, context, &bytes, content, source)
    }

    /// Uploads and binds constants as a bundle has them; `content` tells them from others, if known.
    pub(super) fn of_bundle(
        device: &Device,
        context: &Context,
        constants: &Bytes,
        content: Option<[u8; 32]>,
    ) -> Result<Self, CompileError> {
        let content = content.unwrap_or_else(|| Sha256::digest(constants).into());
        Self::upload(device, context, constants, content, Source::Bundle(constants.clone()))
    }

    fn upload(
        device: &Device,
        context: &Context,
        bytes: &[u8],
        content: [u8; 32],
        source: Source,
    ) -> Result<Self, CompileError> {
        let uploaded = upload(device, bytes, content)?;
        let len = uploaded.buffer.len() as u64;
        let memory = Memory::buffer(&uploaded.buffer, 0, len, Access::Read)?;
        let table = context.bind(&[(CONSTANTS, memory)])?;
        Ok(Self { table, _uploaded: uploaded, source })
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether a program of the same part reads the same constants: what it reads of each operation
    /// lies in the same places.
    pub(super) fn are_those_of(&self, other: &Emitted) -> bool {
        match &self.source {
            Source::Compiler(emitted) => {
                emitted.constants == other.constants
                    && emitted.constant_bytes == other.constant_bytes
            }
            Source::Bundle(_) => false,
        }
    }

    /// Whether these are the constants at this place of a bundle.
    pub(super) fn are_at(&self, constants: &Bytes) -> bool {
        let same = |held: &Bytes| held.as_ptr() == constants.as_ptr();
        matches!(&self.source, Source::Bundle(held) if same(held) && held.len() == constants.len())
    }
}

fn upload(
    device: &Device,
    bytes: &[u8],
    content: [u8; 32],
) -> Result<Arc<Uploaded>, libnpu::Error> {
    let device_address = Arc::as_ptr(device.transport()).cast::<()>().addr();
    let key = (device_address, content);
    // Held over the upload, so that two sessions that start together upload once.
    let mut all = UPLOADED.lock();
    if let Some(uploaded) = all.get(&key).and_then(Weak::upgrade) {
        return Ok(uploaded);
    }
    let buffer = device.allocate(bytes.len())?;
    buffer.write(0, bytes)?;
    let uploaded = Arc::new(Uploaded { buffer, _device: device.clone() });
    all.retain(|_, uploaded| uploaded.strong_count() > 0);
    all.insert(key, Arc::downgrade(&uploaded));
    Ok(uploaded)
}
