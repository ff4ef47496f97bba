//! Keeps the plugin mapped: ONNX Runtime unloads it on `unregister_execution_provider_library` even
//! while sessions that it made are alive, and their next call would land in unmapped memory.
//!
//! Also numbers the compiler by its sources, so that what one build compiled and kept on a disk is not
//! taken for what another would.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    let mut hash = DefaultHasher::new();
    for folder in ["src", "../uapi/src"] {
        println!("cargo::rerun-if-changed={folder}");
        hash_folder(Path::new(folder), &mut hash)?;
    }
    println!("cargo::rustc-env=NPU_COMPILER_SOURCES={:016x}", hash.finish());
    Ok(())
}

/// Hashes every file below `folder`, in an order that does not depend on the disk.
fn hash_folder(folder: &Path, hash: &mut DefaultHasher) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            hash_folder(&path, hash)?;
        } else {
            entry.file_name().hash(hash);
            fs::read(&path)?.hash(hash);
        }
    }
    Ok(())
}
