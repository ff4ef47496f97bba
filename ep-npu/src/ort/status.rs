//! Errors on their way to ONNX Runtime: every callback runs inside a guard, so nothing unwinds into C++.

use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use ort_sys::{OrtErrorCode, OrtStatusPtr};

use super::api::Api;

/// What kind of error the caller is told of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// The caller gave a wrong option, shape or type.
    InvalidArgument,
    /// What is asked for does not exist here.
    NotImplemented,
    /// The graph cannot be read.
    InvalidGraph,
    /// The caller asked for the end of the run.
    Stopped,
    /// Everything else: the device, the driver, the compiler, or ONNX Runtime itself.
    Provider,
}

/// An error with the code that ONNX Runtime shows for it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn invalid_argument(message: impl Into<String>) -> Self {
        Self { kind: Kind::InvalidArgument, message: message.into() }
    }

    pub(crate) fn not_implemented(message: impl Into<String>) -> Self {
        Self { kind: Kind::NotImplemented, message: message.into() }
    }

    pub(crate) fn invalid_graph(message: impl Into<String>) -> Self {
        Self { kind: Kind::InvalidGraph, message: message.into() }
    }

    pub(crate) fn provider(message: impl Into<String>) -> Self {
        Self { kind: Kind::Provider, message: message.into() }
    }

    /// The same failure, told with where it happened.
    pub(crate) fn within(self, place: &str) -> Self {
        Self { kind: self.kind, message: format!("{place}: {}", self.message) }
    }

    /// The message of `error` and of all its sources.
    pub(crate) fn from_error(kind: Kind, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Self { kind, message }
    }
}

/// Runs the body of a callback that returns a status; a panic becomes an error.
pub(crate) fn guard(api: &Api, body: impl FnOnce() -> Result<(), Failure>) -> OrtStatusPtr {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OrtStatusPtr(ptr::null_mut()),
        Ok(Err(failure)) => failure,
        Err(payload) => {
            Failure::provider(format!("panic in the NPU provider: {}", panic_text(&*payload)))
        }
    };
    let code = match failure.kind {
        Kind::InvalidArgument => OrtErrorCode::ORT_INVALID_ARGUMENT,
        Kind::NotImplemented => OrtErrorCode::ORT_NOT_IMPLEMENTED,
        Kind::InvalidGraph => OrtErrorCode::ORT_INVALID_GRAPH,
        Kind::Stopped => OrtErrorCode::ORT_FAIL,
        Kind::Provider => OrtErrorCode::ORT_EP_FAIL,
    };
    api.status(code, &c_text(&failure.message))
}

/// Runs the body of a callback that cannot report an error; a panic becomes `fallback`.
pub(crate) fn guard_or<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

/// `text` up to its first NUL, for C.
pub(crate) fn c_text(text: &str) -> CString {
    let until_nul = text.split('\0').next().unwrap_or_default();
    CString::new(until_nul).unwrap_or_default()
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    let as_str = payload.downcast_ref::<&str>().copied();
    as_str.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer failed")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn a_failure_tells_the_cause_behind_an_error() {
        let cause = "x".parse::<u32>().unwrap_err();
        let failure = Failure::from_error(Kind::Provider, &Outer(cause.clone()));
        assert_eq!(failure.message, format!("outer failed: {cause}"));
    }

    #[test]
    fn text_for_c_ends_at_its_first_nul() {
        assert_eq!(c_text("a\0b").as_bytes(), b"a");
        assert_eq!(c_text("plain").as_bytes(), b"plain");
    }

    #[test]
    fn a_panic_in_a_callback_without_status_becomes_the_fallback() {
        assert_eq!(guard_or(7, || panic!("boom")), 7);
        assert_eq!(guard_or(7, || 8), 8);
    }

    #[test]
    fn the_text_of_a_panic_is_kept() {
        let payload = catch_unwind(|| panic!("value {}", 3)).unwrap_err();
        assert_eq!(panic_text(&*payload), "value 3");
    }
}
