//! One connection from its first message to the last trace of it: a function, an engine thread that
//! drives it, and the thread that answers messages.
//!
//! The answering thread never waits for a command of the device, but for the end of jobs in DMA_UNMAP.

use super::link::Link;
use super::message::Message;
use super::roster::Place;
use super::session::Session;
use super::socket;
use crate::array::Array;
use crate::config::Config;
use crate::device::Function;
use crate::inject::InjectError;
use crate::kernel::IsaError;
use crate::pci::{FUNCTION_RESET, offset};
use nix::unistd::{SysconfVar, sysconf};
use npu_uapi::vfio_user::flags;
use npu_uapi::workers::{Caller, Workers};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a client has to agree on the version.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a client may leave a full socket unread; it is given up then.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How long an engine without work stays awake: about what it costs to wake one, so that together
/// they never cost more than twice what the better of the two would have.
const PATIENCE: Duration = Duration::from_micros(20);

/// Why a connection ended, other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The stream broke, or what came cannot be a message.
    #[error("the connection broke: {0}")]
    Stream(#[from] io::Error),
    /// There are no kernels for the function.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// More faults than one function can have.
    #[error(transparent)]
    Inject(#[from] InjectError),
}

/// Serves a client until its stream ends. When this returns, nothing of the client is left.
pub(crate) fn serve(
    place: &Place<'_>,
    (config, array): (Config, &Arc<Array>),
    log: &(dyn Fn(&str) + Sync),
) -> Result<(), ClientError> {
    let stream = &place.client().stream;
    stream.set_write_timeout(Some(WRITE_PATIENCE))?;
    let function = Arc::new(Function::sharing(config, Arc::clone(array))?);
    place.opened(&function)?;
    let link = Arc::new(Link::new(Arc::clone(stream)));
    // Outlives the engine, and unmaps the client's memory when it goes.
    let mut session = Session::new(Arc::clone(&function), Arc::clone(&link))?;
    place.shows(session.page());
    thread::scope(|scope| {
        // Also when this thread panics: the scope would wait for ever.
        let ending = Ending { place, function: &function, link: &link };
        thread::Builder::new()
            .name("npu-engine".into())
            .spawn_scoped(scope, || drive(&function, &Caller, log))?;
        let ended = answer_all(stream, &link, &mut session, log);
        drop(ending);
        ended
    })
}

/// Ends what the function does, and its engine thread.
struct Ending<'a> {
    place: &'a Place<'a>,
    function: &'a Function,
    link: &'a Link,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.place.left(self.function);
        self.link.close();
        // The engine may be in a write that the client does not read. An error says that it is down.
        let _ = self.place.client().stream.shutdown(Shutdown::Both);
        self.function.config_write(offset::DEVICE_CONTROL, FUNCTION_RESET);
        self.function.stop();
    }
}

fn drive(function: &Function, workers: &dyn Workers, log: &dyn Fn(&str)) {
    // Another process submits while this one watches; with one processor neither could.
    let processors = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1);
    let patience = if processors > 1 { PATIENCE } else { Duration::ZERO };
    // A kernel that panics has ended its job with `INTERNAL`; the function goes on.
    while catch_unwind(AssertUnwindSafe(|| function.serve(workers, patience))).is_err() {
        log("a kernel panicked; its job ended with INTERNAL");
    }
}

/// Answers messages until the stream ends.
pub(super) fn answer_all(
    stream: &UnixStream,
    link: &Link,
    session: &mut Session,
    log: &dyn Fn(&str),
) -> Result<(), ClientError> {
    // A client that connects and says nothing must not keep others out.
    let mut deadline = Some(Instant::now() + HANDSHAKE_PATIENCE);
    while let Some(message) = socket::receive(stream, deadline)? {
        if message.header.is_reply() {
            // To what the engine has asked. A client that answers what nobody asks harms only itself.
            link.route(message);
            continue;
        }
        answer(link, session, message, log)?;
        if session.is_open() && deadline.take().is_some() {
            stream.set_read_timeout(None)?;
        }
    }
    Ok(())
}

fn answer(
    link: &Link,
    session: &mut Session,
    message: Message,
    log: &dyn Fn(&str),
) -> Result<(), ClientError> {
    let header = message.header;
    let answer = session.answer(message);
    session.delay_reply();
    if let Err(refusal) = &answer {
        log(&format!("refused command {}: {}", header.command, refusal.why));
    }
    if header.flags & flags::NO_REPLY != 0 {
        return Ok(());
    }
    let too_long = || io::Error::from(io::ErrorKind::InvalidData);
    match answer {
        Ok(body) => {
            let reply = header.reply(body.len()).ok_or_else(too_long)?;
            link.send_with(reply, &body, session.file_beside(header.command, &body))?;
        }
        Err(refusal) => link.send(header.error_reply(refusal.errno), &[])?,
    }
    Ok(())
}
