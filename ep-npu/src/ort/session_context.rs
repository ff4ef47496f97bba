//! A session's context on its device: its own while the device has room, else another session's too.
//!
//! A device has few contexts, and a process may hold more sessions than that. Sessions of one process
//! can share: jobs name programs and memory by handles that only their session has.

use std::sync::{Arc, Weak};

use libnpu::{Context, Device, Error, PerProcess};
use npu_uapi::status::Status;

/// A context, held by one session or by several.
#[derive(Debug)]
pub(crate) struct SessionContext {
    context: Context,
    device: String,
}

/// Contexts that sessions hold.
static LIVE: PerProcess<Vec<Weak<SessionContext>>> = PerProcess::new();

impl SessionContext {
    /// A context of `device`: a new one, or, when it has no room, the one with the fewest sessions.
    pub(crate) fn open(device: &Device) -> Result<Arc<Self>, Error> {
        let mut live = LIVE.lock();
        live.retain(|context| context.strong_count() > 0);
        let name = device.name().to_owned();
        match device.create_context() {
            Ok(context) => {
                let made = Arc::new(Self { context, device: name });
                live.push(Arc::downgrade(&made));
                Ok(made)
            }
            Err(error) if is_full(&error) => {
                let same = |held: &Arc<Self>| held.device == name;
                let held = live.iter().filter_map(Weak::upgrade).filter(same);
                held.min_by_key(Arc::strong_count).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }
}

fn is_full(error: &Error) -> bool {
    error.fault().is_some_and(|fault| fault.status == Status::NO_RESOURCES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_shares_its_contexts_evenly_and_frees_them() {
        // A device of its own: other tests of this process use `sim`.
        let device = Device::open("sim:macs=512").unwrap();
        let room = usize::try_from(device.limits().contexts).unwrap();
        let held: Vec<_> = (0..2 * room).map(|_| SessionContext::open(&device).unwrap()).collect();
        let sessions = |context: &Arc<SessionContext>| Arc::strong_count(context);
        assert!(held.iter().all(|context| sessions(context) == 2));
        drop(held);
        let alone = SessionContext::open(&device).unwrap();
        assert_eq!(sessions(&alone), 1);
    }
}
