//! An archive in the form that the kernel unpacks as its first file system: cpio, "newc", not compressed,
//! since the emulated processor would take longer to unpack it than the emulator to copy it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

/// An archive in the making.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    entries: u32,
}

impl Archive {
    /// With the console, without which the first program could say nothing.
    pub(crate) fn new() -> Self {
        let mut archive = Self::default();
        archive.folder("dev");
        archive.entry("dev/console", DEVICE, &[], (5, 1));
        archive
    }

    /// The file at `path`, as `name`, which is a path without the first slash.
    pub(crate) fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.bytes(name, &bytes);
        Ok(())
    }

    /// `bytes`, as the file `name`.
    pub(crate) fn bytes(&mut self, name: &str, bytes: &[u8]) {
        for (at, _) in name.match_indices('/') {
            self.folder(&name[..at]);
        }
        self.entry(name, PROGRAM, bytes, (0, 0));
    }

    /// An empty folder, unless there is one of this name.
    pub(crate) fn folder(&mut self, name: &str) {
        if !self.folders.iter().any(|known| known == name) {
            self.folders.push(name.to_owned());
            self.entry(name, FOLDER, &[], (0, 0));
        }
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let name_len = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = 1;
        let fields =
            [self.entries, mode, 0, 0, links, 0, len, 0, 0, device.0, device.1, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(bytes);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_named_and_in_folders_that_come_first() {
        let mut archive = Archive::new();
        archive.bytes("bin/deep/run", b"12345");
        archive.bytes("bin/other", b"");
        let bytes = archive.finish();
        let mut names = Vec::new();
        let mut at = 0;
        loop {
            let head = std::str::from_utf8(&bytes[at..at + 110]).unwrap();
            assert!(head.starts_with("070701") && at % 4 == 0);
            let field = |index: usize| {
                usize::from_str_radix(&head[6 + index * 8..14 + index * 8], 16).unwrap()
            };
            let (len, name_len) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_len];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_len - 1].to_vec()).unwrap();
            let data = (at + 110 + name_len).next_multiple_of(4);
            if name == "bin/deep/run" {
                assert_eq!(&bytes[data..data + len], b"12345");
            }
            at = (data + len).next_multiple_of(4);
            names.push(name);
            if names.last().is_some_and(|name| name == "TRAILER!!!") {
                break;
            }
        }
        assert_eq!(at, bytes.len());
        let expected =
            ["dev", "dev/console", "bin", "bin/deep", "bin/deep/run", "bin/other", "TRAILER!!!"];
        assert_eq!(names, expected);
    }
}
