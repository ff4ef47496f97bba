//! Compiled models: what `EPContext` nodes hold, written when a session is asked to, and read back.
//!
//! ```text
//! com.microsoft::EPContext  source "NpuExecutionProvider", main_context 1, partition_name, ep_sdk_version
//!     embed_mode 1: ep_cache_context is a bundle; 0: the name of a file beside the model that is one
//! ```
//!
//! Each node has a bundle of its own, so that nodes can be taken out of a model one by one.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::ptr;

use bytes::Bytes;
use ort_sys::{OrtNode, OrtOpAttr, OrtOpAttrType};

use crate::bundle::Bundle;

use super::api::{Api, call};
use super::factory::EP_NAME;
use super::status::{Failure, Kind, c_text};
use super::view::{Graph, Node};

const OP: &CStr = c"EPContext";
const DOMAIN: &CStr = c"com.microsoft";
/// What a model that was given as bytes is called, in the names of files.
const UNNAMED: &str = "model";

/// What a session is told about compiled models.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ContextOptions {
    /// Whether the compiled model is to be written.
    pub(crate) is_enabled: bool,
    /// Whether bundles go into the model; else into files beside it.
    pub(crate) is_embedded: bool,
    /// Where the compiled model is or will be.
    file: Option<PathBuf>,
    /// What names of its nodes begin with.
    prefix: String,
}

impl ContextOptions {
    /// From the configuration of a session, of which other entries are skipped.
    pub(crate) fn from_session(entries: &[(String, String)]) -> Result<Self, Failure> {
        let mut options = Self::default();
        for (key, value) in entries {
            let switch = || match value.as_str() {
                "0" => Ok(false),
                "1" => Ok(true),
                _ => {
                    Err(Failure::invalid_argument(format!("`{key}` is `{value}`; it takes 0 or 1")))
                }
            };
            match key.as_str() {
                "ep.context_enable" => options.is_enabled = switch()?,
                "ep.context_embed_mode" => options.is_embedded = switch()?,
                "ep.context_file_path" if !value.is_empty() => {
                    options.file = Some(PathBuf::from(value));
                }
                "ep.context_node_name_prefix" => options.prefix.clone_from(value),
                _ => {}
            }
        }
        Ok(options)
    }

    /// The compiled model's path: as the session says, else that of the model, when it has one.
    fn model(&self, graph: Graph<'_>) -> Result<Option<PathBuf>, Failure> {
        match &self.file {
            Some(file) => Ok(Some(file.clone())),
            None => {
                let path = graph.model_path()?;
                Ok((!path.is_empty()).then(|| PathBuf::from(path)))
            }
        }
    }
}

/// Whether `node` holds something that this provider compiled.
pub(crate) fn is_ours(node: Node<'_>) -> Result<bool, Failure> {
    if node.op()? != "EPContext" || node.domain()? != "com.microsoft" {
        return Ok(false);
    }
    Ok(node.bytes_attribute("source")?.is_some_and(|source| source == EP_NAME.as_bytes()))
}

/// The bundle of `node`, an EPContext node of ours in `graph`, and its bytes.
pub(crate) fn read(
    options: &ContextOptions,
    graph: Graph<'_>,
    node: Node<'_>,
) -> Result<(Bundle, Bytes), Failure> {
    let content = node.bytes_attribute("ep_cache_context")?;
    let content = content.ok_or_else(|| invalid("attribute `ep_cache_context` is missing"))?;
    let bytes = match node.int_attribute("embed_mode")?.unwrap_or(1) {
        1 => Bytes::from(content),
        0 => {
            let name = String::from_utf8_lossy(&content).into_owned();
            let model = options.model(graph)?;
            beside(model.as_deref(), &name)
                .map_err(|why| invalid(format!("compiled part `{name}`: {why}")))?
        }
        other => {
            return Err(invalid(format!("attribute `embed_mode` is {other}; it takes 0 or 1")));
        }
    };
    let bundle = Bundle::from_bytes(&bytes)
        .map_err(|error| Failure::from_error(Kind::InvalidGraph, &error))?;
    Ok((bundle, bytes))
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::invalid_graph(message)
}

/// The file `name` beside the model at `model`, or below its folder.
fn beside(model: Option<&Path>, name: &str) -> Result<Bytes, String> {
    let Some(folder) = model.map(folder) else {
        return Err("the model was given as bytes, which have no folder; load it by path, or set \
                    the session's `ep.context_file_path` to where it is"
            .into());
    };
    let relative = Path::new(name);
    let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if name.is_empty() || !relative.components().all(is_plain) {
        return Err("it must be a path below the model's folder, without `..`".into());
    }
    let cannot = |error: std::io::Error| {
        format!("cannot read it: {error}; it belongs beside the model's file")
    };
    // Links are followed before it is decided where the file is.
    let resolved = folder.join(relative).canonicalize().map_err(cannot)?;
    let home = folder.canonicalize().map_err(cannot)?;
    if !resolved.starts_with(&home) {
        return Err("it is a link that leads out of the model's folder".into());
    }
    if !resolved.is_file() {
        return Err("it is not a regular file".into());
    }
    fs::read(&resolved).map(Bytes::from).map_err(cannot)
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// A node that stands for `fused` in the compiled model; part `index` of it is `bundle`.
pub(crate) fn write(
    api: &Api,
    options: &ContextOptions,
    graph: Graph<'_>,
    fused: Node<'_>,
    index: usize,
    bundle: &[u8],
) -> Result<ContextNode, Failure> {
    let name = fused.name()?;
    let file;
    let content = match options.is_embedded {
        true => bundle,
        false => {
            file = write_beside(options.model(graph)?.as_deref(), index, bundle)?;
            file.as_bytes()
        }
    };
    let attributes = vec![
        Attribute::text(api, c"ep_cache_context", content)?,
        Attribute::text(api, c"source", EP_NAME.as_bytes())?,
        Attribute::text(api, c"partition_name", name.as_bytes())?,
        Attribute::text(api, c"ep_sdk_version", env!("CARGO_PKG_VERSION").as_bytes())?,
        Attribute::int(api, c"embed_mode", options.is_embedded.into())?,
        Attribute::int(api, c"main_context", 1)?,
    ];
    let names = |values: Vec<Option<super::view::ValueInfo<'_>>>| {
        let name = |value: super::view::ValueInfo<'_>| value.name().map(|name| c_text(&name));
        values.into_iter().flatten().map(name).collect::<Result<Vec<CString>, _>>()
    };
    let (inputs, outputs) = (names(fused.inputs()?)?, names(fused.outputs()?)?);
    ContextNode::new(
        api,
        &c_text(&format!("{}{name}", options.prefix)),
        &inputs,
        &outputs,
        attributes,
    )
}

/// Writes `bundle` beside the compiled model; gives its name there. The file is there whole or not at all.
fn write_beside(model: Option<&Path>, index: usize, bundle: &[u8]) -> Result<String, Failure> {
    let Some(model) = model else {
        return Err(Failure::invalid_argument(
            "the model was given as bytes, so there is no folder for compiled parts; set the \
             session's `ep.context_file_path`, or `ep.context_embed_mode` to 1",
        ));
    };
    let stem = model.file_stem().and_then(|stem| stem.to_str()).unwrap_or(UNNAMED);
    let name = format!("{stem}.part{index}.npub");
    let path = folder(model).join(&name);
    let unfinished = folder(model).join(format!(".{name}.{}", std::process::id()));
    let written = fs::write(&unfinished, bundle).and_then(|()| fs::rename(&unfinished, &path));
    written.map(|()| name).map_err(|error| {
        // It may never have been made.
        let _ = fs::remove_file(&unfinished);
        Failure::provider(format!("cannot write the compiled part {}: {error}", path.display()))
    })
}

/// An attribute that we own.
struct Attribute<'a> {
    api: &'a Api,
    raw: *mut OrtOpAttr,
}

impl<'a> Attribute<'a> {
    fn text(api: &'a Api, name: &CStr, value: &[u8]) -> Result<Self, Failure> {
        let Ok(len) = i32::try_from(value.len()) else {
            return Err(Failure::invalid_argument(format!(
                "a compiled part of {} bytes does not fit into a model; set the session's \
                 `ep.context_embed_mode` to 0",
                value.len()
            )));
        };
        Self::new(api, name, value.as_ptr(), len, OrtOpAttrType::ORT_OP_ATTR_STRING)
    }

    fn int(api: &'a Api, name: &CStr, value: i64) -> Result<Self, Failure> {
        let start = (&raw const value).cast();
        Self::new(api, name, start, 1, OrtOpAttrType::ORT_OP_ATTR_INT)
    }

    fn new(
        api: &'a Api,
        name: &CStr,
        start: *const u8,
        len: i32,
        kind: OrtOpAttrType,
    ) -> Result<Self, Failure> {
        let mut raw = ptr::null_mut();
        call!(api, CreateOpAttr(name.as_ptr(), start.cast(), len, kind, &raw mut raw))?;
        Ok(Self { api, raw })
    }

    /// The attribute, for the runtime to own.
    fn into_raw(mut self) -> *mut OrtOpAttr {
        std::mem::replace(&mut self.raw, ptr::null_mut())
    }
}

impl Drop for Attribute<'_> {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let table = self.api.ort();
        // SAFETY: the slot is in every version that is negotiated.
        let release = unsafe { (*table).ReleaseOpAttr };
        // SAFETY: ours, and given to nobody.
        unsafe { release(self.raw) };
    }
}

/// A node that we made; released unless it is given away.
pub(crate) struct ContextNode {
    api: Api,
    raw: *mut OrtNode,
}

impl ContextNode {
    fn new(
        api: &Api,
        name: &CStr,
        inputs: &[CString],
        outputs: &[CString],
        attributes: Vec<Attribute<'_>>,
    ) -> Result<Self, Failure> {
        let starts = |names: &[CString]| names.iter().map(|name| name.as_ptr()).collect::<Vec<_>>();
        let (inputs, outputs) = (starts(inputs), starts(outputs));
        let table = api.model_editor()?;
        // The runtime copies attributes into the node and releases them: they are not ours after this.
        let mut attributes: Vec<*mut OrtOpAttr> =
            attributes.into_iter().map(Attribute::into_raw).collect();
        let mut raw = ptr::null_mut();
        // SAFETY: the slot is in version 22 of the table.
        let create = unsafe { (*table).CreateNode };
        // SAFETY: every name is live during the call, which copies it; attributes are given away.
        let status = unsafe {
            create(
                OP.as_ptr(),
                DOMAIN.as_ptr(),
                name.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                outputs.as_ptr(),
                outputs.len(),
                attributes.as_mut_ptr(),
                attributes.len(),
                &raw mut raw,
            )
        };
        api.check(status)?;
        Ok(Self { api: *api, raw })
    }

    /// The node, for the runtime to own.
    pub(crate) fn into_raw(mut self) -> *mut OrtNode {
        std::mem::replace(&mut self.raw, ptr::null_mut())
    }
}

impl Drop for ContextNode {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let table = self.api.ort();
        // SAFETY: the slot is in every version that is negotiated.
        let release = unsafe { (*table).ReleaseNode };
        // SAFETY: ours, and given to nobody.
        unsafe { release(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_below_the_models_folder_is_read() {
        let home = std::env::temp_dir().join(format!("npu-context-{}", std::process::id()));
        let folder = home.join("model");
        fs::create_dir_all(folder.join("inner")).unwrap();
        fs::write(folder.join("inner/part"), b"inside").unwrap();
        fs::write(home.join("outside"), b"outside").unwrap();
        std::os::unix::fs::symlink(home.join("outside"), folder.join("link")).unwrap();
        let model = folder.join("model.onnx");
        let read = |name: &str| beside(Some(&model), name);
        assert_eq!(read("inner/part").unwrap(), &b"inside"[..]);
        for name in ["", "..", "../outside", "inner/../../outside", "link", "inner", "none"] {
            assert!(read(name).is_err(), "{name}");
        }
        assert!(read(home.join("outside").to_str().unwrap()).is_err());
        assert!(beside(None, "part").unwrap_err().contains("ep.context_file_path"));
        fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn options_are_read_and_a_bad_switch_is_refused() {
        let entries = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
            ContextOptions::from_session(&owned.collect::<Vec<_>>())
        };
        let options = entries(&[("ep.context_enable", "1"), ("ep.context_file_path", "a/b.onnx")]);
        let options = options.unwrap();
        assert!(options.is_enabled && !options.is_embedded);
        assert_eq!(options.file.as_deref(), Some(Path::new("a/b.onnx")));
        assert!(entries(&[("ep.context_embed_mode", "yes")]).is_err());
        assert_eq!(entries(&[("other", "2")]).unwrap(), ContextOptions::default());
    }
}
