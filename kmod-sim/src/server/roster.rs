//! Who is connected, and how those who were have left.
//!
//! A client is in the roster from its acceptance until nothing of it is left: its function, its memory
//! and its descriptors are gone when it is counted as ended.

use crate::device::Function;
use crate::inject::{InjectError, Plan};
use nix::sys::socket::{getsockopt, sockopt};
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

/// Refusals under way at once; more are closed without a word.
const MAX_REFUSALS: usize = 16;

/// The clients of one server.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    clients: BTreeMap<u64, Arc<Client>>,
    last_id: u64,
    refusals: usize,
    counts: Counts,
    /// Faults that clients to come are given.
    plan: Plan,
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
    pub(crate) since: SystemTime,
    function: OnceLock<Arc<Function>>,
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
    pub(crate) since: SystemTime,
    pub(crate) function: Arc<Function>,
}

impl Roster {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the list and its counts inconsistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection; as refused where there are `most`, not at all where too many are refused.
    pub(crate) fn enter(&self, stream: UnixStream, most: usize) -> Option<Place<'_>> {
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok();
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
            since: SystemTime::now(),
            function: OnceLock::new(),
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

    /// Gives clients to come the faults of `plan`, in place of those they were to have; returns those
    /// that are there, which have not got them.
    pub(crate) fn plan(&self, plan: Plan) -> Vec<Seen> {
        let mut state = self.lock();
        state.plan = plan;
        state.functions(None)
    }
}

impl State {
    fn functions(&self, only: Option<u64>) -> Vec<Seen> {
        let clients = self.clients.values();
        let clients = clients.filter(|client| only.is_none_or(|id| id == client.id));
        let seen = clients.filter_map(|client| {
            let Client { id, peer, since, .. } = **client;
            Some(Seen { id, peer, since, function: Arc::clone(client.function.get()?) })
        });
        seen.collect()
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
        // It has none yet: a client is served once.
        let _ = self.client().function.set(Arc::clone(function));
        armed
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
        drop(client);
        // The last share closes the socket: counted when that is done.
        let last = self.roster.lock().clients.remove(&id);
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
