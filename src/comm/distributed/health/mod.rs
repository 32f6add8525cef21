//! Heartbeats that distinguish a dead or hung rank from a slow one.
//!
//! A collective waits for the slowest rank. When it times out, the collective itself cannot tell which rank is missing,
//! or whether one is. So every rank sends a heartbeat to rank 0 once a second over a TCP connection that is independent
//! of MPI and NCCL ([`heartbeat`]): its process is alive, its current phase, and whether it waits for others. A rank
//! whose collective is late requests the state of all ranks from rank 0 and derives a [`Verdict`] ([`verdict`]).

mod heartbeat;
mod verdict;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

pub(super) use heartbeat::INVITATION_BYTES;
use heartbeat::{Board, Contact};
pub(super) use verdict::Verdict;
use verdict::{Member, judge};

use super::Witness;
use super::threads::host_name;

/// Heartbeat state of this rank.
pub(super) struct Health {
    rank: usize,
    own: Mutex<Own>,
    /// Heartbeat server; set on rank 0 only.
    board: OnceLock<Arc<Board>>,
    /// Heartbeat client; set on all other ranks.
    contact: OnceLock<Arc<Contact>>,
}

/// Current activity of this rank.
struct Own {
    phase: String,
    /// Whether the phase may take an unbounded time.
    long: bool,
    /// Collective in which the rank waits, if any.
    waiting: Option<String>,
    /// Time of the last change of any of these.
    changed: Instant,
}

impl Health {
    pub(super) fn new(rank: usize) -> Arc<Self> {
        let own = Own { phase: "the start".into(), long: false, waiting: None, changed: Instant::now() };
        Arc::new(Self { rank, own: Mutex::new(own), board: OnceLock::new(), contact: OnceLock::new() })
    }

    /// Sets the current phase of this rank, and whether it may take an unbounded time.
    pub(super) fn enter(&self, phase: &str, long: bool) {
        let mut own = self.own();
        own.long = long;
        phase.clone_into(&mut own.phase);
        own.changed = Instant::now();
    }

    /// Marks this rank as waiting in a collective until the guard is dropped.
    pub(super) fn waiting(&self, operation: &str) -> Waiting<'_> {
        let mut own = self.own();
        own.waiting = Some(operation.to_owned());
        own.changed = Instant::now();
        drop(own);
        Waiting(self)
    }

    /// Starts the heartbeat server on rank 0 and returns its serialized endpoint. Returns an empty message on other
    /// ranks.
    pub(super) fn invitation(self: &Arc<Self>) -> Vec<u8> {
        if self.rank > 0 {
            return Vec::new();
        }
        match Board::open(self) {
            Ok((board, invitation)) => {
                let _ = self.board.set(board);
                invitation
            }
            Err(error) => {
                tracing::warn!("heartbeat disabled, errors cannot name a lost rank: {error}");
                Vec::new()
            }
        }
    }

    /// Connects to the heartbeat server of rank 0 and starts sending heartbeats.
    pub(super) fn join(self: &Arc<Self>, invitation: &[u8]) {
        if self.rank > 0
            && let Some(contact) = Contact::open(self, invitation)
        {
            let _ = self.contact.set(contact);
        }
    }

    /// Diagnoses a collective that has not completed after `limit`.
    pub(super) fn verdict(&self, limit: Duration) -> Verdict {
        let members = match (self.board.get(), self.contact.get()) {
            (Some(board), _) => board.members(),
            (None, Some(contact)) => match contact.ask() {
                Ok(members) => members,
                Err(reason) => return Verdict::Lost(reason),
            },
            (None, None) => {
                return Verdict::Lost("timeout; the missing rank is unknown because the heartbeat is disabled".into());
            }
        };
        judge(self.rank, &members, limit)
    }

    /// Returns the state of this rank as reported to others.
    fn member(&self) -> Member {
        let own = self.own();
        Member {
            rank: self.rank,
            host: host_name(),
            silent_ms: 0,
            idle_ms: own.changed.elapsed().as_millis() as u64,
            waiting: own.waiting.is_some(),
            long: own.long,
            phase: match &own.waiting {
                Some(operation) => format!("{}, {operation}", own.phase),
                None => own.phase.clone(),
            },
        }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current phase of this rank.
    pub(super) fn phase(&self) -> String {
        self.own().phase.clone()
    }
}

impl Witness for Health {
    fn waits(&self, operation: Option<&str>) {
        let mut own = self.own();
        if own.waiting.as_deref() != operation {
            own.waiting = operation.map(str::to_owned);
            own.changed = Instant::now();
        }
    }

    fn verdict(&self, limit: Duration) -> Result<String, String> {
        match self.verdict(limit) {
            Verdict::Slow(reason) => Ok(reason),
            Verdict::Lost(reason) => Err(reason),
        }
    }
}

/// Guard: the rank counts as waiting in a collective until it is dropped.
pub(super) struct Waiting<'a>(&'a Health);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut own = self.0.own();
        own.waiting = None;
        own.changed = Instant::now();
    }
}
