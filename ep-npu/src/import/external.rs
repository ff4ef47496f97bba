//! Constants in other files beside the model: found, held to the model's folder, mapped.

use super::error::Fault;
use super::file;
use super::proto;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The files beside one model, each mapped once.
#[derive(Debug)]
pub(super) struct Beside {
    /// The model's folder; `None` when the model came as bytes.
    folder: Option<PathBuf>,
    mapped: BTreeMap<PathBuf, Bytes>,
}

impl Beside {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, mapped: BTreeMap::new() }
    }

    /// The bytes of `tensor`, whose shape asks for `want` of them.
    pub(super) fn bytes(
        &mut self,
        name: &str,
        tensor: &proto::Tensor,
        want: usize,
    ) -> Result<Bytes, Fault> {
        let entry = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key() == key);
            entry.map(|entry| entry.value())
        };
        let location = entry("location").unwrap_or_default();
        let fail = |why: String| Fault::External {
            tensor: name.to_owned(),
            location: location.to_owned(),
            why,
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => match text.parse::<usize>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(fail(format!("{key} is {text:?}; a number of bytes is wanted"))),
            },
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if let Some(length) = length.filter(|&length| length != want) {
            return Err(fail(format!("length is {length} bytes, the shape asks for {want}")));
        }
        let file = self.file(location).map_err(fail)?;
        match offset.checked_add(want) {
            Some(end) if end <= file.len() => Ok(file.slice(offset..end)),
            _ => Err(fail(format!(
                "it has {} bytes; {want} at offset {offset} are asked for",
                file.len()
            ))),
        }
    }

    /// The file, which lies in the model's folder or below it.
    fn file(&mut self, location: &str) -> Result<Bytes, String> {
        let Some(folder) = &self.folder else {
            return Err(
                "the model was given as bytes, which have no folder; load it by path".into()
            );
        };
        let relative = Path::new(location);
        let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !relative.components().all(is_plain) {
            return Err("it must be a path below the model's folder, without `..`".into());
        }
        // Links are followed before it is decided where the file is.
        let resolved = folder.join(relative).canonicalize().map_err(|error| {
            format!("cannot read it: {error}; it belongs beside the model's file")
        })?;
        let home = folder.canonicalize().map_err(|error| error.to_string())?;
        if !resolved.starts_with(&home) {
            return Err("it is a link that leads out of the model's folder".into());
        }
        if let Some(bytes) = self.mapped.get(&resolved) {
            return Ok(bytes.clone());
        }
        let bytes = file::map(&resolved).map_err(|error| format!("cannot read it: {error}"))?;
        self.mapped.insert(resolved, bytes.clone());
        Ok(bytes)
    }
}
