//! Who is connected, and how those who were have left.
//!
//! A client is in the roster from its acceptance until nothing of it is left: its function, its memory
//! and its descriptors are gone when it is counted as ended.

use super::dumps::{Dumps, Owner, Sink};
use super::telemetry::TelemetryPage;
use crate::config::Config;
use crate::device::Function;
use crate::inject::{InjectError, Plan};
use crate::mortem::Logged;
use nix::sys::socket::{getsockopt, sockopt};
use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

/// Refusals under way at once; more are closed without a word.
const MAX_REFUSALS: usize = 16;

/// Faults of clients that have left that are kept.
const PAST_FAULTS: usize = 256;

/// The clients of one server.
#[derive(Debug)]
pub(crate) struct Roster {
    state: Mutex<State>,
    pub(crate) facts: Facts,
    pub(crate) dumps: Arc<Dumps>,
}

/// What a server is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// What each function is made of.
    pub(crate) config: Config,
    pub(crate) max_clients: usize,
    /// Threads that compute for all.
    pub(crate) workers: usize,
    pub(crate) started: Instant,
}

#[derive(Debug, Default)]
struct State {
    clients: BTreeMap<u64, Arc<Client>>,
    last_id: u64,
    refusals: usize,
    counts: Counts,
    /// Faults that clients to come are given.
    plan: Plan,
    /// Whether codes at the ends of their range are counted for them, where somebody has said so.
    counts_saturation: Option<bool>,
    /// Faults of clients that have left, oldest first.
    past: VecDeque<(Owner, Logged)>,
}

/// What has become of connections. Those accepted are there or have ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) ended: u64,
    /// Of those that ended, the ones that left while a job of theirs was submitted and not answered.
    pub(crate) ended_in_flight: u64,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) stream: Arc<UnixStream>,
    /// Whether there was no room for it, so that its first message is answered with a refusal.
    pub(crate) is_refused: bool,
    /// Process and user at the other end, as the system knows them.
    pub(crate) peer: Option<(i32, u32)>,
    /// The name of that process.
    pub(crate) process: Option<Arc<str>>,
    pub(crate) since: SystemTime,
    function: OnceLock<Arc<Function>>,
    /// What its function shows of itself.
    page: OnceLock<Arc<TelemetryPage>>,
    left_in_flight: AtomicBool,
}

/// A client's place in the roster; dropped when nothing else of it is left.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    roster: &'a Roster,
    client: Option<Arc<Client>>,
}

/// A client as the management socket sees it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) id: u64,
    pub(crate) peer: Option<(i32, u32)>,
    pub(crate) process: Option<Arc<str>>,
    pub(crate) since: SystemTime,
    pub(crate) function: Arc<Function>,
}

impl Seen {
    pub(crate) fn owner(&self) -> Owner {
        let pid = self.peer.map(|(pid, _)| pid);
        Owner { client: self.id, pid, process: self.process.clone() }
    }
}

/// The name of a process, as the system knows it.
fn process_name(pid: i32) -> Option<Arc<str>> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().into())
}

impl Roster {
    pub(crate) fn new(facts: Facts, dumps: Dumps) -> Self {
        Self { state: Mutex::default(), facts, dumps: Arc::new(dumps) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the list and its counts inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection; as refused where there are `most`, not at all where too many are refused.
    pub(crate) fn enter(&self, stream: UnixStream, most: usize) -> Option<Place<'_>> {
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok();
        let process = peer.and_then(|peer| process_name(peer.pid()));
        let mut state = self.lock();
        let is_refused = state.clients.len() - state.refusals >= most;
        state.counts.refused += u64::from(is_refused);
        if is_refused && state.refusals >= MAX_REFUSALS {
            return None;
        }
        state.refusals += usize::from(is_refused);
        state.counts.accepted += u64::from(!is_refused);
        state.last_id += 1;
        let client = Arc::new(Client {
            id: state.last_id,
            stream: Arc::new(stream),
            is_refused,
            peer: peer.map(|peer| (peer.pid(), peer.uid())),
            process,
            since: SystemTime::now(),
            function: OnceLock::new(),
            page: OnceLock::new(),
            left_in_flight: AtomicBool::new(false),
        });
        state.clients.insert(client.id, Arc::clone(&client));
        Some(Place { roster: self, client: Some(client) })
    }

    /// How many clients there are that were not refused.
    pub(crate) fn len(&self) -> usize {
        let state = self.lock();
        state.clients.len() - state.refusals
    }

    /// Clients now, and the counts, of one moment.
    pub(crate) fn counts(&self) -> (usize, Counts) {
        let state = self.lock();
        (state.clients.len() - state.refusals, state.counts)
    }

    /// Ends every connection.
    pub(crate) fn disconnect_all(&self) {
        for client in self.lock().clients.values() {
            // Its thread sees the end of the stream. An error says that it has ended already.
            let _ = client.stream.shutdown(Shutdown::Both);
            if let Some(function) = client.function.get() {
                // It may be in an injected delay.
                function.injector().clear();
            }
        }
    }

    /// The clients that have a function; of these `only` one, where it is named.
    pub(crate) fn functions(&self, only: Option<u64>) -> Vec<Seen> {
        self.lock().functions(only)
    }

    /// The telemetry pages of the clients, by rising id.
    pub(crate) fn pages(&self) -> Vec<Arc<TelemetryPage>> {
        let state = self.lock();
        state.clients.values().filter_map(|client| client.page.get().cloned()).collect()
    }

    /// The latest faults of clients that have left, oldest first; of these `only` one's.
    pub(crate) fn past_faults(&self, only: Option<u64>) -> Vec<(Owner, Logged)> {
        let state = self.lock();
        let past = state.past.iter().filter(|(owner, _)| only.is_none_or(|id| id == owner.client));
        past.cloned().collect()
    }

    /// Gives clients to come the faults of `plan`, in place of those they were to have; returns those
    /// that are there, which have not got them.
    pub(crate) fn plan(&self, plan: Plan) -> Vec<Seen> {
        let mut state = self.lock();
        state.plan = plan;
        state.functions(None)
    }

    /// Counts codes at the ends of their range, or no longer, for clients to come; returns those that are
    /// there, of which it is not changed.
    pub(crate) fn count_saturation(&self, is_on: bool) -> Vec<Seen> {
        let mut state = self.lock();
        state.counts_saturation = Some(is_on);
        state.functions(None)
    }
}

impl State {
    fn functions(&self, only: Option<u64>) -> Vec<Seen> {
        let clients = self.clients.values();
        let clients = clients.filter(|client| only.is_none_or(|id| id == client.id));
        let seen = clients.filter_map(|client| client.seen());
        seen.collect()
    }
}

impl Client {
    fn seen(&self) -> Option<Seen> {
        let function = Arc::clone(self.function.get()?);
        let Self { id, peer, since, .. } = *self;
        Some(Seen { id, peer, process: self.process.clone(), since, function })
    }
}

impl Place<'_> {
    /// The client.
    pub(crate) fn client(&self) -> &Client {
        self.client.as_deref().expect("it is taken when this is dropped")
    }

    /// The client has this function from now on.
    ///
    /// # Errors
    /// It is to have more faults than there can be.
    pub(crate) fn opened(&self, function: &Arc<Function>) -> Result<(), InjectError> {
        // Locked, so that a plan reaches each client once: here, or as one that is there.
        let state = self.roster.lock();
        let armed = function.injector().arm(&state.plan);
        if let Some(is_on) = state.counts_saturation {
            function.count_saturation(is_on);
        }
        // It has none yet: a client is served once.
        let _ = self.client().function.set(Arc::clone(function));
        if let Some(seen) = self.client().seen() {
            let dumps = Arc::clone(&self.roster.dumps);
            function.connect_dumps(Arc::new(Sink { dumps, owner: seen.owner() }));
        }
        armed
    }

    /// The client's function shows itself on `page`.
    pub(crate) fn shows(&self, page: &Arc<TelemetryPage>) {
        // It is served once.
        let _ = self.client().page.set(Arc::clone(page));
    }

    /// The client has left; its function is as it left it.
    pub(crate) fn left(&self, function: &Function) {
        // Relaxed: read by this thread, when the place is dropped.
        self.client().left_in_flight.store(function.in_flight() > 0, Ordering::Relaxed);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        let (id, is_refused) = (client.id, client.is_refused);
        let left_in_flight = client.left_in_flight.load(Ordering::Relaxed);
        let seen = client.seen();
        let faults = seen.as_ref().map(|seen| seen.function.log()).unwrap_or_default();
        let owner = seen.as_ref().map(Seen::owner).unwrap_or_default();
        drop((client, seen));
        // The last share closes the socket: counted when that is done.
        let mut state = self.roster.lock();
        let last = state.clients.remove(&id);
        state.past.extend(faults.into_iter().map(|fault| (owner.clone(), fault)));
        let old = state.past.len().saturating_sub(PAST_FAULTS);
        state.past.drain(..old);
        drop(state);
        drop(last);
        let mut state = self.roster.lock();
        if is_refused {
            state.refusals -= 1;
        } else {
            state.counts.ended += 1;
            state.counts.ended_in_flight += u64::from(left_in_flight);
        }
    }
}
