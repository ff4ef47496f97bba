//! ONNX Runtime plugin: the library's two exported functions, and where each thing is.
//!
//! ```text
//! CreateEpFactories -> factory: devices, allocators, copies
//!     CreateEp -> options -> provider, one a session
//!         GetCapability -> import -> partition -> capability: claims, and what is refused and why
//!         Compile       -> import -> compile: one program a claim; or ep_context: compiled before
//!         Compute       -> compute: tensors in, job, tensors out, on workers that the session lends
//! ```
//!
//! `terminate` sees from inside a run that it is to end, `settings` is what may change while a session lives,
//! `profile` what its runs leave in a profile.
//!
//! `sys` has the C structures, `api` the negotiated tables, `view` borrowed handles, `status` the
//! guard around every callback, `memory` the allocator; `host` is the other way round: ONNX Runtime
//! called by a session of ours. All `unsafe` of this crate is in this folder.

mod api;
mod borrowed;
mod capability;
mod compile;
mod compute;
mod ep_context;
mod factory;
#[cfg(feature = "onnx")]
pub(crate) mod host;
mod import;
mod memory;
mod options;
mod profile;
mod provider;
mod session_context;
mod settings;
mod status;
mod sys;
mod terminate;
mod view;
mod workers;
#[cfg(feature = "onnx")]
pub(crate) use {session_context::SessionContext, status::Failure, workers::Threads};

use std::ffi::c_char;

use ort_sys::{OrtApiBase, OrtLogger, OrtStatusPtr};

use api::{Api, Logger};
use factory::Factory;
use status::guard;
use sys::OrtEpFactory;

/// What ONNX Runtime calls when the library is registered.
///
/// # Safety
/// To be called by ONNX Runtime, with live pointers and room for `room` factories.
#[unsafe(no_mangle)]
unsafe extern "C" fn CreateEpFactories(
    _registered_name: *const c_char,
    base: *const OrtApiBase,
    logger: *const OrtLogger,
    factories: *mut *mut OrtEpFactory,
    room: usize,
    len: *mut usize,
) -> OrtStatusPtr {
    // SAFETY: an out pointer of the runtime.
    unsafe { len.write(0) };
    // SAFETY: the runtime passes its base.
    let api = match unsafe { Api::negotiate(base) } {
        Ok(api) => api,
        Err(refusal) => return refusal.into_status(),
    };
    guard(&api, || {
        if room == 0 {
            return Err(status::Failure::invalid_argument("no room for a factory"));
        }
        // SAFETY: the environment's logger lives as long as the environment.
        let logger = unsafe { Logger::new(&api, logger) };
        let factory = Factory::into_raw(Factory::new(api, logger)?);
        // SAFETY: there is room for one.
        unsafe { factories.write(factory) };
        // SAFETY: an out pointer of the runtime.
        unsafe { len.write(1) };
        Ok(())
    })
}

/// What ONNX Runtime calls when the library is unregistered; sessions may outlive it.
///
/// # Safety
/// To be called by ONNX Runtime, once for each factory.
#[unsafe(no_mangle)]
unsafe extern "C" fn ReleaseEpFactory(factory: *mut OrtEpFactory) -> OrtStatusPtr {
    status::guard_or((), || {
        if !factory.is_null() {
            // SAFETY: the runtime returns a factory of `CreateEpFactories`, once.
            drop(unsafe { Factory::from_raw(factory) });
        }
    });
    OrtStatusPtr::default()
}
