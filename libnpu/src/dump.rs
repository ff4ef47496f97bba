//! Core dumps as files: each that a device of this process leaves, in the folder that `NPU_DUMP_DIR` names.

use crate::device::Inner;
use crate::error::Error;
use npu_uapi::status::Status;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// In the environment: the folder.
const VARIABLE: &str = "NPU_DUMP_DIR";
/// Dumps that one process writes; what fails further is likely to be the same.
const MOST_FILES: u32 = 64;

static WRITTEN: AtomicU32 = AtomicU32::new(0);

/// Writes what the job has left that ended with `error`, where somebody wants it. What fails of it is told on
/// standard error: the job's own error is what its caller must get.
#[cold]
pub(crate) fn keep(device: &Inner, error: &Error) {
    let Some(fault) = error.fault() else { return };
    if matches!(fault.status, Status::ABORTED | Status::INNOCENT) {
        return;
    }
    let Some(folder) = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) else {
        return;
    };
    // Relaxed: a count.
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    if number >= MOST_FILES {
        WRITTEN.store(MOST_FILES, Ordering::Relaxed);
        return;
    }
    let written = device.last_dump().map_err(|error| error.to_string()).and_then(|dump| {
        let Some(dump) = dump else { return Ok(None) };
        write(Path::new(&folder), number, &dump).map(Some).map_err(|error| error.to_string())
    });
    match written {
        Ok(Some(path)) => eprintln!("npu: a core dump was written to {}", path.display()),
        Ok(None) => {}
        Err(why) => eprintln!("npu: no core dump in {VARIABLE}={}: {why}", folder.display()),
    }
}

fn write(folder: &Path, number: u32, dump: &[u8]) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("npu-{}-{number}.dump", std::process::id()));
    std::fs::write(&path, dump)?;
    Ok(path)
}
