//! Constants on the device, uploaded once for each content, whoever asks.
//! Unsafe: those of a device in this process are packed, and read again, where they lie.

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
    uploaded: Arc<Uploaded>,
    source: Source,
}

/// Where constants are from, which is how programs that read the same ones are found.
#[derive(Debug)]
enum Source {
    Compiler { emitted: Box<Emitted>, without_weights: [u8; 32] },
    Bundle(Bytes),
}

#[derive(Debug)]
struct Uploaded {
    buffer: Buffer,
    // Keeps the device open, so that nothing else gets its address.
    device: Device,
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
        let source = Source::Compiler {
            emitted: Box::new(compiled.emitted.clone()),
            without_weights: compiled.digest_without_weights(),
        };
        if !device.transport().reaches_process_memory() {
            let bytes = compiled.constants();
            let content = Sha256::digest(&bytes).into();
            return Self::upload(device, context, content, source, || {
                let buffer = device.allocate(bytes.len())?;
                buffer.write(0, &bytes).map(|()| buffer)
            });
        }
        let len = usize::try_from(compiled.emitted.constant_bytes).unwrap_or(usize::MAX);
        let buffer = device.allocate(len)?;
        // SAFETY: the buffer is new: nobody else has it yet, and no job is bound to it.
        let bytes = unsafe { buffer.as_mut_slice() };
        compiled.pack_constants(bytes);
        let content = Sha256::digest(&*bytes).into();
        Self::upload(device, context, content, source, || Ok(buffer))
    }

    /// Uploads and binds constants as a bundle has them; `content` tells them from others, if known.
    pub(super) fn of_bundle(
        device: &Device,
        context: &Context,
        constants: &Bytes,
        content: Option<[u8; 32]>,
    ) -> Result<Self, CompileError> {
        let content = content.unwrap_or_else(|| Sha256::digest(constants).into());
        let source = Source::Bundle(constants.clone());
        Self::upload(device, context, content, source, || {
            let buffer = device.allocate(constants.len())?;
            buffer.write(0, constants).map(|()| buffer)
        })
    }

    fn upload(
        device: &Device,
        context: &Context,
        content: [u8; 32],
        source: Source,
        buffer: impl FnOnce() -> Result<Buffer, libnpu::Error>,
    ) -> Result<Self, CompileError> {
        let uploaded = upload(device, content, buffer)?;
        let len = uploaded.buffer.len() as u64;
        let memory = Memory::buffer(&uploaded.buffer, 0, len, Access::Read)?;
        let table = context.bind(&[(CONSTANTS, memory)])?;
        Ok(Self { table, uploaded, source })
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// The constants, where a device in this process has them.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        let Uploaded { buffer, device } = &*self.uploaded;
        if !device.transport().reaches_process_memory() {
            return None;
        }
        // SAFETY: jobs are bound to uploaded constants for reads only, and nobody here writes them.
        Some(unsafe { buffer.as_slice() })
    }

    /// Whether a program of the same part reads the same constants: what it reads of each operation
    /// lies in the same places, and but for the weights is the same.
    pub(super) fn are_those_of(&self, compiled: &Compiled) -> bool {
        let other = &compiled.emitted;
        match &self.source {
            Source::Compiler { emitted, without_weights } => {
                emitted.constants == other.constants
                    && emitted.constant_bytes == other.constant_bytes
                    && *without_weights == compiled.digest_without_weights()
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
    content: [u8; 32],
    buffer: impl FnOnce() -> Result<Buffer, libnpu::Error>,
) -> Result<Arc<Uploaded>, libnpu::Error> {
    let device_address = Arc::as_ptr(device.transport()).cast::<()>().addr();
    let key = (device_address, content);
    // Held over the upload, so that two sessions that start together upload once.
    let mut all = UPLOADED.lock();
    if let Some(uploaded) = all.get(&key).and_then(Weak::upgrade) {
        return Ok(uploaded);
    }
    let uploaded = Arc::new(Uploaded { buffer: buffer()?, device: device.clone() });
    all.retain(|_, uploaded| uploaded.strong_count() > 0);
    all.insert(key, Arc::downgrade(&uploaded));
    Ok(uploaded)
}
