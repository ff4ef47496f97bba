//! The runtime's tables: which version we speak with it, and calls through them.
//!
//! The table of an older runtime is shorter than `OrtApi`, so no reference to it is ever formed: a
//! slot is read through a raw pointer to that field, and only slots of the negotiated version are.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a call through the table is one operation in two steps: read the slot, call it"
)]

use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};

use ort_sys::{
    OrtApi, OrtApiBase, OrtErrorCode, OrtKeyValuePairs, OrtLogger, OrtLoggingLevel, OrtMemoryInfo,
    OrtModelEditorApi, OrtSessionOptions, OrtStatusPtr,
};

use super::status::{Failure, c_text};
use super::sys::{self, OrtEpApi};

/// The tables of one runtime, and the version of them that both sides know.
///
/// The runtime outlives every object that it hands to a provider and that a provider hands to it, so
/// whoever holds an `Api` got it from a live runtime.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api {
    ort: NonNull<OrtApi>,
    ep: NonNull<OrtEpApi>,
    version: u32,
}

// SAFETY: both tables are constant static data of the runtime, and its functions are thread-safe.
unsafe impl Send for Api {}
// SAFETY: as for `Send`.
unsafe impl Sync for Api {}

/// Calls a slot of `OrtApi` that returns a status, as a `Result`.
///
/// For the wrappers of this folder only: every argument is either a handle that a wrapper keeps valid,
/// or a pointer to a local that the callee reads or writes during the call.
macro_rules! call {
    ($api:expr, $slot:ident($($arg:expr),* $(,)?)) => {{
        let api: &$crate::ort::api::Api = $api;
        let table = api.ort();
        // SAFETY: `Api::negotiate` got the table for a version that has the slot; the wrapper that
        // calls holds the handles, and the out pointers are its locals.
        let status = unsafe { ((*table).$slot)($($arg),*) };
        api.check(status)
    }};
    ($api:expr, ep.$slot:ident($($arg:expr),* $(,)?)) => {{
        let api: &$crate::ort::api::Api = $api;
        let table = api.ep();
        // SAFETY: as for the other table; slots of version 24 are called behind a check of it.
        let status = unsafe { ((*table).$slot)($($arg),*) };
        api.check(status)
    }};
}
pub(crate) use call;

impl Api {
    /// The tables of `base`, in the newest version that both sides know.
    ///
    /// # Safety
    /// `base` is what ONNX Runtime passed to `CreateEpFactories`.
    pub(crate) unsafe fn negotiate(base: *const OrtApiBase) -> Result<Self, Refusal> {
        // SAFETY: the caller's promise; both fields exist in every version.
        let (version_string, get_api) = unsafe { ((*base).GetVersionString, (*base).GetApi) };
        // SAFETY: takes nothing, returns a static C string.
        let text = unsafe { CStr::from_ptr(version_string()) }.to_string_lossy();
        let Some(version) = negotiated(&text) else {
            // SAFETY: version 1 is in every runtime; it is asked for to report the error.
            let ort = NonNull::new(unsafe { get_api(1) }.cast_mut());
            let message = format!(
                "ONNX Runtime {text} is too old for this plugin; it needs 1.{} or newer",
                sys::OLDEST
            );
            return Err(Refusal { ort, message });
        };
        // SAFETY: the runtime has this version, as its version string says.
        let Some(ort) = NonNull::new(unsafe { get_api(version) }.cast_mut()) else {
            let message = format!("ONNX Runtime {text} does not give out its API {version}");
            return Err(Refusal { ort: None, message });
        };
        // SAFETY: the slot is in version 23, the oldest that is negotiated.
        let ep = unsafe { ((*ort.as_ptr()).GetEpApi)() };
        let Some(ep) = NonNull::new(ep.cast_mut().cast::<OrtEpApi>()) else {
            let message = format!("ONNX Runtime {text} has no interface for providers");
            return Err(Refusal { ort: Some(ort), message });
        };
        Ok(Self { ort, ep, version })
    }

    /// The version that both sides know; what our structures claim.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// The application table. Do not form a reference to it.
    pub(crate) fn ort(&self) -> *const OrtApi {
        self.ort.as_ptr()
    }

    /// The provider table. Do not form a reference to it.
    pub(crate) fn ep(&self) -> *const OrtEpApi {
        self.ep.as_ptr()
    }

    /// The table with which nodes are made. Do not form a reference to it.
    pub(crate) fn model_editor(&self) -> Result<*const OrtModelEditorApi, Failure> {
        // SAFETY: the slot is in version 22; it takes nothing and returns a static table or null.
        let table = unsafe { ((*self.ort()).GetModelEditorApi)() };
        match table.is_null() {
            true => Err(Failure::not_implemented(
                "this build of ONNX Runtime cannot make nodes, which compiled models need",
            )),
            false => Ok(table),
        }
    }

    /// A new status, which the receiver releases.
    pub(crate) fn status(&self, code: OrtErrorCode, message: &CStr) -> OrtStatusPtr {
        // SAFETY: the slot is in every version and copies the message.
        unsafe { ((*self.ort()).CreateStatus)(code, message.as_ptr()) }
    }

    /// Takes a status that the runtime returned, and releases it.
    pub(crate) fn check(&self, status: OrtStatusPtr) -> Result<(), Failure> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: the status is live until it is released below, and its message with it.
        let message = unsafe {
            CStr::from_ptr(((*self.ort()).GetErrorMessage)(status.0)).to_string_lossy().into_owned()
        };
        // SAFETY: the runtime gave the status to us, and it is not used again.
        unsafe { ((*self.ort()).ReleaseStatus)(status.0) };
        Err(Failure::provider(message))
    }

    /// A copy of a C string of the runtime; empty for null.
    ///
    /// # Safety
    /// `text` is null or a NUL-terminated string that is live now.
    pub(crate) unsafe fn text(text: *const c_char) -> String {
        if text.is_null() {
            return String::new();
        }
        // SAFETY: the caller's promise.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// Every entry of a session's configuration.
    ///
    /// # Safety
    /// `options` is live.
    pub(crate) unsafe fn session_entries(
        &self,
        options: *const OrtSessionOptions,
    ) -> Result<Vec<(String, String)>, Failure> {
        let mut raw = ptr::null_mut();
        call!(self, GetSessionOptionsConfigEntries(options, &raw mut raw))?;
        Ok(KeyValues { api: *self, raw }.entries())
    }

    /// Entries of the environment's configuration; none before version 24.
    pub(crate) fn environment_entries(&self) -> Result<Vec<(String, String)>, Failure> {
        if self.version < 24 {
            return Ok(Vec::new());
        }
        let mut raw = ptr::null_mut();
        call!(self, ep.get_env_config_entries(&raw mut raw))?;
        Ok(KeyValues { api: *self, raw }.entries())
    }

    /// Description of the memory that the provider allocates: plain host memory, of vendor `vendor`.
    pub(crate) fn memory_info(&self, vendor: u32) -> Result<MemoryInfo, Failure> {
        let mut raw = ptr::null_mut();
        call!(
            self,
            CreateMemoryInfo_V2(
                // The Rust bindings of ONNX Runtime re-create a memory info by its name and know few.
                c"Cpu".as_ptr(),
                ort_sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU,
                vendor,
                0,
                ort_sys::OrtDeviceMemoryType::OrtDeviceMemoryType_DEFAULT,
                0,
                ort_sys::OrtAllocatorType::OrtDeviceAllocator,
                &raw mut raw,
            )
        )?;
        Ok(MemoryInfo { api: *self, raw })
    }
}

/// Why there is no [`Api`], and the table to say it with, if any.
#[derive(Debug)]
pub(crate) struct Refusal {
    ort: Option<NonNull<OrtApi>>,
    message: String,
}

impl Refusal {
    /// What it says.
    #[cfg(feature = "onnx")]
    pub(crate) fn message(self) -> String {
        self.message
    }

    /// The refusal as a status; null, which means success with no factory, where not even that exists.
    pub(crate) fn into_status(self) -> OrtStatusPtr {
        let Some(ort) = self.ort else { return OrtStatusPtr(ptr::null_mut()) };
        let message = c_text(&self.message);
        // SAFETY: the slot is in version 1, which this table is at least.
        unsafe {
            ((*ort.as_ptr()).CreateStatus)(OrtErrorCode::ORT_NOT_IMPLEMENTED, message.as_ptr())
        }
    }
}

/// The version to speak with a runtime whose version string is `text`; `None` when it is too old.
fn negotiated(text: &str) -> Option<u32> {
    let minor = text.split('.').nth(1)?.parse::<u32>().ok()?;
    (minor >= sys::OLDEST).then_some(minor.min(sys::NEWEST))
}

/// Pairs of strings, owned.
#[derive(Debug)]
pub(crate) struct KeyValues {
    api: Api,
    raw: *mut OrtKeyValuePairs,
}

impl KeyValues {
    /// A new list.
    pub(crate) fn new(api: &Api, pairs: &[(&CStr, CString)]) -> Self {
        let mut raw = ptr::null_mut();
        // SAFETY: the slot is in version 22; it writes the new list.
        unsafe { ((*api.ort()).CreateKeyValuePairs)(&raw mut raw) };
        for (key, value) in pairs {
            // SAFETY: the list is the one just made; key and value are copied.
            unsafe { ((*api.ort()).AddKeyValuePair)(raw, key.as_ptr(), value.as_ptr()) };
        }
        Self { api: *api, raw }
    }

    /// For calls that read the list.
    pub(crate) fn as_ptr(&self) -> *const OrtKeyValuePairs {
        self.raw
    }

    fn entries(&self) -> Vec<(String, String)> {
        if self.raw.is_null() {
            return Vec::new();
        }
        let (mut keys, mut values, mut count) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list is live; the arrays stay with it.
        unsafe {
            ((*self.api.ort()).GetKeyValuePairs)(
                self.raw,
                &raw mut keys,
                &raw mut values,
                &raw mut count,
            );
        }
        let pair = |index| {
            // SAFETY: both arrays have `count` strings, which live as long as the list.
            let key = unsafe { Api::text(*keys.add(index)) };
            // SAFETY: as above.
            let value = unsafe { Api::text(*values.add(index)) };
            (key, value)
        };
        (0..count).map(pair).collect()
    }
}

impl Drop for KeyValues {
    fn drop(&mut self) {
        // SAFETY: the list is ours and not used again; null is allowed.
        unsafe { ((*self.api.ort()).ReleaseKeyValuePairs)(self.raw) };
    }
}

/// An owned memory description. The runtime keeps pointers to it, so the factory owns it to its end.
#[derive(Debug)]
pub(crate) struct MemoryInfo {
    api: Api,
    raw: *mut OrtMemoryInfo,
}

// SAFETY: a memory info is constant after creation.
unsafe impl Send for MemoryInfo {}
// SAFETY: as for `Send`.
unsafe impl Sync for MemoryInfo {}

impl MemoryInfo {
    /// The description itself.
    pub(crate) fn as_ptr(&self) -> *const OrtMemoryInfo {
        self.raw
    }
}

impl Drop for MemoryInfo {
    fn drop(&mut self) {
        // SAFETY: ours, and the factory that kept it for the runtime is gone.
        unsafe { ((*self.api.ort()).ReleaseMemoryInfo)(self.raw) };
    }
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Severity {
    /// Shown when the user asks for it.
    Info,
    /// Shown by default.
    Warning,
    /// Shown by default; something does not work.
    Error,
}

impl Severity {
    fn level(self) -> OrtLoggingLevel {
        match self {
            Self::Info => OrtLoggingLevel::ORT_LOGGING_LEVEL_INFO,
            Self::Warning => OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING,
            Self::Error => OrtLoggingLevel::ORT_LOGGING_LEVEL_ERROR,
        }
    }
}

/// A logger of the runtime.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Logger {
    api: Api,
    raw: *const OrtLogger,
}

// SAFETY: the runtime's loggers may be used from any thread.
unsafe impl Send for Logger {}
// SAFETY: as for `Send`.
unsafe impl Sync for Logger {}

impl Logger {
    /// # Safety
    /// `raw` is null or a logger that lives longer than the result.
    pub(crate) unsafe fn new(api: &Api, raw: *const OrtLogger) -> Self {
        Self { api: *api, raw }
    }

    /// Whether anybody would see a line of `severity`.
    pub(crate) fn shows(&self, severity: Severity) -> bool {
        if self.raw.is_null() {
            return false;
        }
        let mut least = OrtLoggingLevel::ORT_LOGGING_LEVEL_FATAL;
        let asked = call!(&self.api, Logger_GetLoggingSeverityLevel(self.raw, &raw mut least));
        asked.is_ok() && least as i32 <= severity.level() as i32
    }

    /// Writes one line; errors of the logger itself are nobody's business.
    pub(crate) fn log(&self, severity: Severity, message: &str) {
        if self.raw.is_null() {
            return;
        }
        let level = severity.level();
        let message = c_text(message);
        let (file, function) = (c"ep-npu".as_ptr(), c"npu".as_ptr());
        let logged = call!(
            &self.api,
            Logger_LogMessage(self.raw, level, message.as_ptr(), file, 0, function)
        );
        drop(logged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_newest_that_both_sides_know() {
        assert_eq!(negotiated("1.23.2"), Some(23));
        assert_eq!(negotiated("1.29.0"), Some(29));
        assert_eq!(negotiated("1.31.1"), Some(30));
    }

    #[test]
    fn an_old_or_unreadable_runtime_is_refused() {
        for text in ["1.22.1", "1", "", "1.x.0"] {
            assert_eq!(negotiated(text), None, "{text}");
        }
    }
}
