//! What jobs of clients left that faulted or hung: the last few in memory, and as files where somebody wants
//! them.

use crate::device::DumpSink;
use crate::mortem::Left;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Dumps in memory.
const KEPT: usize = 8;
/// Dumps in the folder.
const FILES: usize = 64;

/// The dumps of one server.
#[derive(Debug, Default)]
pub(crate) struct Dumps {
    folder: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    kept: VecDeque<Arc<Kept>>,
    files: VecDeque<PathBuf>,
}

/// A dump and whose it is.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) id: u64,
    pub(crate) owner: Owner,
    pub(crate) left: Left,
    /// Where it was written, or why not.
    pub(crate) file: Option<Result<PathBuf, String>>,
}

/// A client, as far as it outlives its connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owner {
    pub(crate) client: u64,
    pub(crate) pid: Option<i32>,
    pub(crate) process: Option<Arc<str>>,
}

impl Dumps {
    /// Dumps that are also written into `folder`, which is made if need be.
    pub(crate) fn into_folder(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: Some(folder.to_owned()), ..Self::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is inside is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, owner: &Owner, left: Left) {
        let mut state = self.lock();
        state.last_id += 1;
        let id = state.last_id;
        drop(state);
        let file = self.folder.as_ref().map(|folder| {
            let path = folder.join(format!("npu-sim-{}-{id}.dump", std::process::id()));
            match std::fs::write(&path, &left.bytes) {
                Ok(()) => Ok(path),
                Err(error) => Err(format!("{}: {error}", path.display())),
            }
        });
        let mut state = self.lock();
        if let Some(Ok(path)) = &file {
            state.files.push_back(path.clone());
        }
        state.kept.push_back(Arc::new(Kept { id, owner: owner.clone(), left, file }));
        if state.kept.len() > KEPT {
            state.kept.pop_front();
        }
        let old = if state.files.len() > FILES { state.files.pop_front() } else { None };
        drop(state);
        if let Some(old) = old {
            // Somebody else may have taken it away.
            let _ = std::fs::remove_file(old);
        }
    }

    /// Oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Kept>> {
        self.lock().kept.iter().cloned().collect()
    }
}

/// Where the function of one client leaves them.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) dumps: Arc<Dumps>,
    pub(crate) owner: Owner,
}

impl DumpSink for Sink {
    fn left(&self, left: Left) {
        self.dumps.keep(&self.owner, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mortem::Logged;
    use npu_uapi::status::FaultRecord;

    fn left(byte: u8) -> Left {
        let record = FaultRecord::default();
        let fault = Logged { record, time_ms: 0, program: 0, entry: 0, node: None };
        Left { fault, bytes: [byte; 10].into() }
    }

    #[test]
    fn the_last_dumps_are_kept_in_memory_and_more_of_them_as_files() {
        let folder = std::env::temp_dir().join(format!("npu-dumps-{}", std::process::id()));
        let dumps = Dumps::into_folder(&folder).unwrap();
        let owner = Owner { client: 7, ..Owner::default() };
        (0..70).for_each(|byte| dumps.keep(&owner, left(byte)));
        let kept = dumps.all();
        let ids: Vec<u64> = kept.iter().map(|kept| kept.id).collect();
        assert_eq!(ids, [63, 64, 65, 66, 67, 68, 69, 70]);
        let path = kept[7].file.clone().unwrap().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), [69; 10]);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), FILES);
        std::fs::remove_dir_all(&folder).unwrap();
        dumps.keep(&owner, left(0));
        let kept = dumps.all();
        assert!(kept[7].file.as_ref().unwrap().is_err(), "told, and kept in memory");
    }
}
