//! Numbers and names one behind the other, little-endian: written without limit, read without trust.

use super::error::{BundleError, malformed};
use bytes::Bytes;

/// Bytes so far.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn f32(&mut self, value: f32) {
        self.u32(value.to_bits());
    }

    pub(super) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("a model has fewer than 2^32 of anything"));
    }

    pub(super) fn length(&mut self, length: usize) {
        self.u64(length as u64);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }
}

/// What is left to read.
#[derive(Debug)]
pub(super) struct Reader(Bytes);

impl Reader {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<Bytes, BundleError> {
        if len > self.0.len() {
            return Err(malformed("a record passes its section's end"));
        }
        Ok(self.0.split_to(len))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BundleError> {
        let bytes = self.bytes(N)?;
        <[u8; N]>::try_from(&*bytes).map_err(|_| malformed("a record is cut off"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, BundleError> {
        self.array::<1>().map(|[value]| value)
    }

    pub(super) fn u32(&mut self) -> Result<u32, BundleError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, BundleError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, BundleError> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn f32(&mut self) -> Result<f32, BundleError> {
        self.u32().map(f32::from_bits)
    }

    pub(super) fn length(&mut self) -> Result<usize, BundleError> {
        usize::try_from(self.u64()?).map_err(|_| malformed("a length passes this machine's memory"))
    }

    pub(super) fn text(&mut self) -> Result<String, BundleError> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let bytes = self.bytes(len)?;
        match str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(malformed("a name is not UTF-8")),
        }
    }

    /// As many as the count before them says. Nothing is reserved for what may not come.
    pub(super) fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, BundleError>,
    ) -> Result<Vec<T>, BundleError> {
        let count = self.u32()?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(read(self)?);
        }
        Ok(list)
    }

    pub(super) fn finish(self) -> Result<(), BundleError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(malformed("a section is longer than what it holds")),
        }
    }
}
