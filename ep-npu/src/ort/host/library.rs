//! `libonnxruntime`, found when it is first needed: nothing links against it and nothing is downloaded.

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use ort_sys::{OrtApiBase, OrtEnv, OrtLoggingLevel};

use crate::ort::api::{Api, call};
use crate::ort::status::c_text;

/// Names the library's file, as the Rust bindings of ONNX Runtime have it too.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// What the dynamic loader is asked for last.
const SYSTEM_NAMES: [&str; 2] = ["libonnxruntime.so.1", "libonnxruntime.so"];

/// Why ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// There is none.
    #[error(
        "no ONNX Runtime library was found ({}); set {VARIABLE} to the path of libonnxruntime.so, \
         which is in the folder `onnxruntime/capi` of the Python package",
        .tried.join("; ")
    )]
    Missing {
        /// Where it was looked for, and why it was not there.
        tried: Vec<String>,
    },
    /// It is there, and cannot be used.
    #[error("ONNX Runtime library `{}`: {why}", .path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It has another version than asked for.
    #[error("ONNX Runtime library `{}` is version {found}, {want} is asked for", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The version asked for.
        want: String,
    },
}

/// ONNX Runtime in this process. Never closed: its threads may outlive the last session.
#[derive(Debug)]
pub(crate) struct Library {
    path: PathBuf,
    version: String,
    api: Api,
    environment: NonNull<OrtEnv>,
}

// SAFETY: the runtime's functions and its environment may be used from any thread.
unsafe impl Send for Library {}
// SAFETY: as for `Send`.
unsafe impl Sync for Library {}

/// Libraries that are open.
static OPEN: Mutex<Vec<&'static Library>> = Mutex::new(Vec::new());

impl Library {
    /// The library at `path`; else the one that the environment names, that of the Python environment
    /// that is active, or that which the dynamic loader finds. Of version `want`, if one is wanted.
    pub(crate) fn find(
        path: Option<&Path>,
        want: Option<&str>,
    ) -> Result<&'static Self, LibraryError> {
        let library = Self::locate(path)?;
        match want {
            Some(want) if want != library.version => Err(LibraryError::Version {
                path: library.path.clone(),
                found: library.version.clone(),
                want: want.to_owned(),
            }),
            _ => Ok(library),
        }
    }

    fn locate(path: Option<&Path>) -> Result<&'static Self, LibraryError> {
        let named = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
        if let Some(path) = path.map(Path::to_owned).or(named) {
            return Self::open(&path);
        }
        let mut tried = vec![format!("{VARIABLE} is not set")];
        match std::env::var_os("VIRTUAL_ENV").map(PathBuf::from) {
            None => tried.push("no Python environment is active".to_owned()),
            Some(environment) => match in_python(&environment) {
                Some(path) => return Self::open(&path),
                None => tried.push(format!("none in `{}`", environment.display())),
            },
        }
        for name in SYSTEM_NAMES {
            match Self::open(Path::new(name)) {
                Err(LibraryError::Load { why, .. }) => tried.push(why),
                other => return other,
            }
        }
        Err(LibraryError::Missing { tried })
    }

    fn open(path: &Path) -> Result<&'static Self, LibraryError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = open.iter().find(|library| library.path == path) {
            return Ok(library);
        }
        let fails = |why: String| LibraryError::Load { path: path.to_owned(), why };
        let base = base(path.as_os_str()).map_err(fails)?;
        // SAFETY: what the library's own entry point returned.
        let api = unsafe { Api::negotiate(base) }.map_err(|refusal| fails(refusal.message()))?;
        // SAFETY: the field is in every version, and the table is static.
        let version = unsafe { (*base).GetVersionString };
        // SAFETY: takes nothing.
        let version = unsafe { version() };
        // SAFETY: a static string.
        let version = unsafe { Api::text(version) };
        let mut environment = ptr::null_mut();
        let level = OrtLoggingLevel::ORT_LOGGING_LEVEL_ERROR;
        call!(&api, CreateEnv(level, c"ep-npu".as_ptr(), &raw mut environment))
            .map_err(|failure| fails(failure.message))?;
        let environment =
            NonNull::new(environment).ok_or_else(|| fails("no environment".to_owned()))?;
        let library: &'static Self =
            Box::leak(Box::new(Self { path: path.to_owned(), version, api, environment }));
        open.push(library);
        Ok(library)
    }

    /// Its file, or the name that the dynamic loader knows it by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, as `1.31.1`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    pub(crate) fn environment(&self) -> *mut OrtEnv {
        self.environment.as_ptr()
    }
}

/// The library that the Python package in `environment` brings.
fn in_python(environment: &Path) -> Option<PathBuf> {
    let entries = |folder: PathBuf| {
        let mut found: Vec<PathBuf> =
            std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
        found.sort();
        Some(found)
    };
    let starts = |path: &PathBuf, with: &str| {
        path.file_name().is_some_and(|name| name.as_bytes().starts_with(with.as_bytes()))
    };
    let pythons = entries(environment.join("lib"))?;
    pythons.into_iter().filter(|path| starts(path, "python")).find_map(|python| {
        let files = entries(python.join("site-packages/onnxruntime/capi"))?;
        files.into_iter().rfind(|path| starts(path, "libonnxruntime.so"))
    })
}

/// Opens the library and asks it for its tables.
fn base(name: &OsStr) -> Result<*const OrtApiBase, String> {
    let name = CString::new(name.as_bytes()).map_err(|_| "its name has a NUL".to_owned())?;
    // SAFETY: a NUL-terminated name; what the library does when it is loaded is what the caller asks for.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(last_error());
    }
    // SAFETY: the handle is open and is never closed.
    let entry = unsafe { libc::dlsym(handle, c"OrtGetApiBase".as_ptr()) };
    if entry.is_null() {
        return Err("it has no `OrtGetApiBase`: it is no ONNX Runtime".to_owned());
    }
    type Entry = unsafe extern "C" fn() -> *const OrtApiBase;
    // SAFETY: the function of that name has this type in every version of ONNX Runtime.
    let entry = unsafe { std::mem::transmute::<*mut c_void, Entry>(entry) };
    // SAFETY: takes nothing; returns a static table.
    let base = unsafe { entry() };
    if base.is_null() { Err("it has no tables".to_owned()) } else { Ok(base) }
}

fn last_error() -> String {
    // SAFETY: takes nothing; the string is copied before another call on this thread.
    let text: *const c_char = unsafe { libc::dlerror() };
    if text.is_null() {
        return "it cannot be opened".to_owned();
    }
    // SAFETY: the loader wrote a NUL-terminated string.
    let text = unsafe { CStr::from_ptr(text) };
    c_text(&text.to_string_lossy()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_told_with_its_path() {
        let error = Library::find(Some(Path::new("/nowhere/libonnxruntime.so")), None).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, LibraryError::Load { .. }), "{text}");
        assert!(text.contains("/nowhere/libonnxruntime.so"), "{text}");
    }

    #[test]
    fn another_library_is_told_to_be_none() {
        let error = Library::find(Some(Path::new("libc.so.6")), None).unwrap_err();
        assert!(error.to_string().contains("no ONNX Runtime"), "{error}");
    }

    #[test]
    fn a_python_environment_without_the_package_has_none() {
        assert_eq!(in_python(Path::new("/nowhere")), None);
    }
}
