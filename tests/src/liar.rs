//! A device that lies: between the driver and a real `npu-sim`, forwarding messages and the files
//! beside them, and by a seeded plan changing what goes back to the driver.
//!
//! It keeps the files that pass, as a device may, and writes where a device may not: over completions
//! and indices, fault records and answers in memory.

use crate::noise::Noise;
use memmap2::MmapRaw;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use npu_uapi::vfio_user::{HEADER_BYTES, Header, MAX_FDS, MAX_MESSAGE_BYTES, command};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// Between two rounds of writing over memory.
const PAUSE: Duration = Duration::from_micros(300);
/// Of each file, the first bytes: there the driver has its rings, its fault ring and answers.
const REACHED: u64 = 64 << 10;

/// One way to lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lie {
    /// None, to see that all passes.
    None,
    /// Another request's number.
    Id,
    /// A size that the message has not.
    Size,
    /// Other flags: a command, unknown bits.
    Flags,
    /// An error that was none, with any number.
    Errno,
    /// The end of the reply is missing, and so is the connection then.
    Truncated,
    /// The reply comes twice.
    Doubled,
    /// The reply never comes.
    Silence,
    /// Other bytes in the body: registers, regions, interrupts, capabilities.
    Body,
    /// The connection ends.
    Close,
    /// Memory that the driver shares is written at random: rings, faults, answers.
    Scribble,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::None,
        Self::Id,
        Self::Size,
        Self::Flags,
        Self::Errno,
        Self::Truncated,
        Self::Doubled,
        Self::Silence,
        Self::Body,
        Self::Close,
        Self::Scribble,
    ];
}

/// What one liar does, and when.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where its numbers begin.
    pub seed: u64,
    /// How it lies.
    pub lie: Lie,
    /// Replies that pass before it begins.
    pub honest: u64,
}

impl Plan {
    /// The plan of `seed`: every way of lying comes equally often, early and late.
    pub fn new(seed: u64) -> Self {
        let kinds = Lie::ALL.len() as u64;
        let mut noise = Noise::new(seed);
        let lie = Lie::ALL[usize::try_from(seed % kinds).unwrap_or(0)];
        // Starting up takes some 70 replies; few come after it.
        Self { seed, lie, honest: noise.below(90) }
    }
}

/// Stands between `driver`, the other end of the driver's socket, and the server behind `path`, until
/// either of them ends.
///
/// # Errors
/// The server cannot be reached.
pub fn serve(driver: UnixStream, path: &std::path::Path, plan: Plan) -> io::Result<()> {
    let server = UnixStream::connect(path)?;
    let files = Mutex::new(Vec::new());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        if plan.lie == Lie::Scribble {
            scope.spawn(|| scribble(&files, &is_over, plan));
        }
        scope.spawn(|| {
            // Ends with either side.
            let _ = requests(&driver, &server, &files);
            let _ = server.shutdown(Shutdown::Both);
        });
        let _ = replies(&driver, &server, plan);
        is_over.store(true, Ordering::Relaxed);
        let _ = driver.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// Passes on what the driver asks, with its files, of which the liar keeps those that are memory.
fn requests(
    mut driver: &UnixStream,
    server: &UnixStream,
    files: &Mutex<Vec<MmapRaw>>,
) -> io::Result<()> {
    loop {
        let mut head = [0; HEADER_BYTES];
        let (len, beside) = receive(driver, &mut head)?;
        if len == 0 {
            return Ok(());
        }
        driver.read_exact(&mut head[len..])?;
        let header = Header::read_from_bytes(&head).unwrap_or_default();
        let mut body = body_for(header)?;
        driver.read_exact(&mut body)?;
        let fds: Vec<RawFd> = beside.iter().map(AsRawFd::as_raw_fd).collect();
        send(server, &[&head[..], &body].concat(), &fds)?;
        if header.command == command::DMA_MAP {
            let mut files = files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for file in beside {
                files.extend(MmapRaw::map_raw(&File::from(file)));
            }
        }
    }
}

fn body_for(header: Header) -> io::Result<Vec<u8>> {
    let size = header.size.min(MAX_MESSAGE_BYTES);
    let len = usize::try_from(size).map_err(io::Error::other)?;
    Ok(vec![0; len.saturating_sub(HEADER_BYTES)])
}

fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = cmsg_space!([RawFd; MAX_FDS]);
    let mut bytes = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut bytes, Some(&mut room), flags)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            files.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, files))
}

fn send(mut stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[] } else { &rights[..] };
    let slices = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<UnixAddr>(stream.as_raw_fd(), &slices, rights, flags, None)?;
    stream.write_all(&bytes[sent..])
}

/// Passes on what the device answers, changed as the plan says; from its turn on, one reply in three.
fn replies(driver: &UnixStream, mut server: &UnixStream, plan: Plan) -> io::Result<()> {
    let mut noise = Noise::new(plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for index in 0.. {
        let mut head = [0; HEADER_BYTES];
        server.read_exact(&mut head)?;
        let mut header = Header::read_from_bytes(&head).unwrap_or_default();
        let mut body = body_for(header)?;
        server.read_exact(&mut body)?;
        let lies = index == plan.honest || (index > plan.honest && noise.below(3) == 0);
        match if lies { plan.lie } else { Lie::None } {
            Lie::None | Lie::Scribble => {}
            Lie::Id => header.id ^= 1 << noise.below(16),
            Lie::Size => {
                let sizes = [0, 1, 15, 16, 17, header.size + 1, header.size * 2, u32::MAX];
                header.size = sizes[usize::try_from(noise.below(8)).unwrap_or(0)];
            }
            Lie::Flags => header.flags ^= 1 << noise.below(32),
            Lie::Errno => {
                header = header.error_reply(noise.word());
                body.clear();
            }
            Lie::Truncated => {
                let bytes = [header.as_bytes(), &body].concat();
                let len = noise.below(bytes.len() as u64);
                send(driver, &bytes[..usize::try_from(len).unwrap_or(0)], &[])?;
                return Ok(());
            }
            Lie::Doubled => send(driver, &[header.as_bytes(), &body].concat(), &[])?,
            Lie::Silence => continue,
            Lie::Body => {
                for byte in &mut body {
                    if noise.below(4) == 0 {
                        *byte = noise.word().to_le_bytes()[0];
                    }
                }
            }
            Lie::Close => return Ok(()),
        }
        send(driver, &[header.as_bytes(), &body].concat(), &[])?;
    }
    Ok(())
}

/// Writes over the memory that the driver shares, until it is over.
fn scribble(files: &Mutex<Vec<MmapRaw>>, is_over: &AtomicBool, plan: Plan) {
    let mut noise = Noise::new(plan.seed ^ 0x5eed);
    // So many rounds do nothing, so that some lies come late.
    let mut quiet = plan.honest / 3;
    while !is_over.load(Ordering::Relaxed) {
        if quiet > 0 {
            quiet -= 1;
        } else {
            let files = files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for file in files.iter() {
                let reached = REACHED.min(file.len() as u64);
                for _ in 0..1 + noise.below(64) {
                    let at = usize::try_from(noise.below(reached)).unwrap_or(0);
                    let byte = file.as_mut_ptr().wrapping_add(at);
                    // SAFETY: inside the mapping, which the guard keeps; others use atomics too.
                    let byte = unsafe { AtomicU8::from_ptr(byte) };
                    byte.store(noise.word().to_le_bytes()[0], Ordering::Relaxed);
                }
            }
        }
        thread::sleep(PAUSE);
    }
}
