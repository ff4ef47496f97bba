//! The server's end of a connection: replies, and requests of our own for memory that has no file.
//!
//! Replies and requests share a lock, so that each is one piece in the stream. The thread that reads the
//! stream hands replies to whoever waits for them; it never waits for one itself. A client that does not
//! answer, or not what was asked, makes a copy fail: the job ends with a fault, the connection goes on.

use super::message::Message;
use super::socket;
use crate::remote::{CopyError, IsAborted, Remote};
use npu_uapi::addr::Iova;
use npu_uapi::vfio_user::{DmaAccess, Header, MAX_TRANSFER_BYTES, SERVER_ID, command};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// How long a client may take over one request of ours.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often somebody who waits looks whether the job was aborted.
const LOOK: Duration = Duration::from_millis(10);

/// One connection, for whoever sends.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Arc<UnixStream>,
    /// Held while a message is written.
    writing: Mutex<()>,
    asked: Mutex<Asked>,
    answered: Condvar,
    /// Most bytes of data that the client takes in one message.
    most_bytes: AtomicU32,
}

#[derive(Debug, Default)]
struct Asked {
    last_id: u16,
    /// By id: the command, and its reply once it is there.
    waiting: BTreeMap<u16, (u16, Option<Message>)>,
    is_closed: bool,
}

impl Link {
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        Self {
            stream,
            writing: Mutex::default(),
            asked: Mutex::default(),
            answered: Condvar::new(),
            most_bytes: AtomicU32::new(MAX_TRANSFER_BYTES),
        }
    }

    /// Sends a message, whole.
    pub(crate) fn send(&self, header: Header, body: &[u8]) -> io::Result<()> {
        self.send_with(header, body, None)
    }

    /// Sends a message, whole, with a file beside it.
    pub(crate) fn send_with(
        &self,
        header: Header,
        body: &[u8],
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match file {
            None => socket::send(&self.stream, header, body),
            Some(file) => socket::send_file(&self.stream, header, body, file),
        }
    }

    /// Keeps requests below what the client has said of itself.
    pub(crate) fn limit(&self, most_bytes: u32) {
        self.most_bytes.store(most_bytes.clamp(1, MAX_TRANSFER_BYTES), Ordering::Relaxed);
    }

    /// Hands a reply to whoever waits for it. One that nobody waits for is dropped.
    pub(crate) fn route(&self, message: Message) {
        let mut asked = self.lock();
        let (id, command) = (message.header.id, message.header.command);
        if let Some((expected, reply @ None)) = asked.waiting.get_mut(&id)
            && *expected == command
        {
            *reply = Some(message);
            self.answered.notify_all();
        }
    }

    /// Ends every wait: nothing more will come.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.answered.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the client; the body of its reply.
    fn ask(
        &self,
        command: u16,
        body: &[u8],
        is_aborted: IsAborted<'_>,
    ) -> Result<Vec<u8>, CopyError> {
        let mut asked = self.lock();
        asked.last_id = asked.last_id.wrapping_add(1) | SERVER_ID;
        let id = asked.last_id;
        asked.waiting.insert(id, (command, None));
        drop(asked);
        let sent = match Header::command(id, command, body.len()) {
            Some(header) => self.send(header, body).map_err(|_| CopyError::Failed),
            None => Err(CopyError::Failed),
        };
        let reply = sent.and_then(|()| self.wait(id, is_aborted));
        self.lock().waiting.remove(&id);
        let reply = reply?;
        if reply.header.failure().is_some() { Err(CopyError::Failed) } else { Ok(reply.body) }
    }

    fn wait(&self, id: u16, is_aborted: IsAborted<'_>) -> Result<Message, CopyError> {
        let deadline = Instant::now() + PATIENCE;
        let mut asked = self.lock();
        loop {
            if let Some(reply) = asked.waiting.get_mut(&id).and_then(|(_, reply)| reply.take()) {
                return Ok(reply);
            }
            if is_aborted() {
                return Err(CopyError::Aborted);
            }
            if asked.is_closed || Instant::now() >= deadline {
                return Err(CopyError::Failed);
            }
            let waited = self.answered.wait_timeout(asked, LOOK);
            asked = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// `len` bytes from `at` on, in pieces that the client takes: where in them each begins, and what
    /// is asked.
    fn chunks(&self, at: u64, len: usize) -> impl Iterator<Item = (usize, DmaAccess)> {
        let most = self.most_bytes.load(Ordering::Relaxed);
        let step = usize::try_from(most).unwrap_or(1);
        (0..len).step_by(step).map(move |start| {
            let count = u32::try_from(len - start).unwrap_or(u32::MAX).min(most);
            let address = Iova::new(at.wrapping_add(start as u64));
            (start, DmaAccess { address, count: count.into() })
        })
    }
}

impl Remote for Link {
    fn read(&self, at: u64, out: &mut [u8], is_aborted: IsAborted<'_>) -> Result<(), CopyError> {
        for (start, access) in self.chunks(at, out.len()) {
            let body = self.ask(command::DMA_READ, access.as_bytes(), is_aborted)?;
            let (found, bytes) =
                DmaAccess::read_from_prefix(&body).map_err(|_| CopyError::Failed)?;
            if found != access || bytes.len() as u64 != access.count {
                return Err(CopyError::Failed);
            }
            out[start..start + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8], is_aborted: IsAborted<'_>) -> Result<(), CopyError> {
        for (start, access) in self.chunks(at, bytes.len()) {
            let end = usize::try_from(access.count).map_or(bytes.len(), |count| start + count);
            let message = [access.as_bytes(), &bytes[start..end]].concat();
            let body = self.ask(command::DMA_WRITE, &message, is_aborted)?;
            // Some repeat what was asked, some say no more than that it is done.
            if !body.is_empty() && body != access.as_bytes() {
                return Err(CopyError::Failed);
            }
        }
        Ok(())
    }

    fn is_prompt(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::vfio_user::errno;

    /// A client that answers each request as `answer` says, in a thread, until the stream ends.
    fn serve(
        stream: UnixStream,
        answer: impl Fn(Message) -> Option<(Header, Vec<u8>)> + Send + 'static,
    ) {
        std::thread::spawn(move || {
            while let Ok(Some(message)) = socket::receive(&stream, None) {
                if let Some((header, body)) = answer(message) {
                    socket::send(&stream, header, &body).unwrap();
                }
            }
        });
    }

    /// A link whose replies are routed, to a client that answers as `answer` says.
    fn link(
        answer: impl Fn(Message) -> Option<(Header, Vec<u8>)> + Send + 'static,
    ) -> (Arc<Link>, Arc<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        serve(theirs, answer);
        let ours = Arc::new(ours);
        let link = Arc::new(Link::new(Arc::clone(&ours)));
        let (reader, stream) = (Arc::clone(&link), Arc::clone(&ours));
        std::thread::spawn(move || {
            while let Ok(Some(message)) = socket::receive(&stream, None) {
                reader.route(message);
            }
            reader.close();
        });
        (link, ours)
    }

    fn echo(message: &Message, data: &[u8]) -> Option<(Header, Vec<u8>)> {
        let body = [&message.body[..16], data].concat();
        Some((message.header.reply(body.len()).unwrap(), body))
    }

    #[test]
    fn copies_come_in_pieces_that_the_client_takes() {
        let (link, _stream) = link(|message| {
            let access = DmaAccess::read_from_prefix(&message.body).unwrap().0;
            assert!(message.header.id >= SERVER_ID && access.count <= 100);
            let first = access.address.raw().to_le_bytes()[0];
            match message.header.command {
                command::DMA_READ => echo(
                    &message,
                    &(first..).take(usize::try_from(access.count).unwrap()).collect::<Vec<u8>>(),
                ),
                _ => echo(&message, &[]),
            }
        });
        link.limit(100);
        let mut out = [0; 250];
        link.read(0x1000, &mut out, &|| false).unwrap();
        assert!(out.iter().zip(0..).all(|(&found, at)| found == at));
        link.write(0x1000, &out, &|| false).unwrap();
    }

    #[test]
    fn replies_that_are_wrong_or_refuse_fail_the_copy_and_the_next_goes_on() {
        let (link, _stream) = link(|message| {
            let access = DmaAccess::read_from_prefix(&message.body).unwrap().0;
            let data = vec![7; usize::try_from(access.count).unwrap()];
            match access.address.raw() {
                1 => Some((message.header.error_reply(errno::EIO), vec![])),
                2 => echo(&message, &data[1..]),
                3 => echo(&message, &[&data[..], &[0]].concat()),
                4 => Some((message.header.reply(0).unwrap(), vec![])),
                5 => {
                    let body = [&[9; 16][..], &data].concat();
                    Some((message.header.reply(body.len()).unwrap(), body))
                }
                _ => echo(&message, &data),
            }
        });
        for at in 1..=5 {
            assert_eq!(link.read(at, &mut [0; 8], &|| false), Err(CopyError::Failed), "{at}");
            let mut out = [0; 8];
            link.read(0x100, &mut out, &|| false).unwrap();
            assert_eq!(out, [7; 8]);
        }
        assert_eq!(link.lock().waiting.len(), 0);
    }

    #[test]
    fn a_wait_for_an_answer_ends_when_the_job_is_aborted_or_the_client_goes() {
        let (link, stream) = link(|_| None);
        let asked = AtomicU32::new(0);
        let is_aborted = || asked.fetch_add(1, Ordering::Relaxed) > 2;
        assert_eq!(link.read(0, &mut [0; 8], &is_aborted), Err(CopyError::Aborted));
        std::thread::scope(|scope| {
            let read = scope.spawn(|| link.read(0, &mut [0; 8], &|| false));
            stream.shutdown(std::net::Shutdown::Both).unwrap();
            assert_eq!(read.join().unwrap(), Err(CopyError::Failed));
        });
    }

    #[test]
    fn replies_with_another_id_or_command_are_not_taken_for_the_answer() {
        let (link, _stream) = link(|message| {
            let access = DmaAccess::read_from_prefix(&message.body).unwrap().0;
            match access.address.raw() {
                1 => {
                    let header = message.header.reply(24).unwrap();
                    let header = Header { id: header.id.wrapping_add(1), ..header };
                    Some((header, [&message.body[..], &[1; 8]].concat()))
                }
                _ => echo(&message, &[2; 8]),
            }
        });
        let looks = AtomicU32::new(0);
        let soon = || looks.fetch_add(1, Ordering::Relaxed) > 5;
        assert_eq!(link.read(1, &mut [0; 8], &soon), Err(CopyError::Aborted));
        let mut out = [0; 8];
        link.read(2, &mut out, &|| false).unwrap();
        assert_eq!(out, [2; 8]);
    }
}
