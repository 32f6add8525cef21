//! Telling a rank that is dead or hangs from one that is slow.
//!
//! A collective waits for the last rank, and when its deadline has passed nobody knows from the collective itself who is
//! missing, or whether one is. So every rank sends a sign of life to rank 0 once a second, over a TCP connection that has
//! nothing to do with MPI or NCCL ([`heartbeat`]): that its process runs, what it is at, whether it waits for others. A
//! rank whose collective is late asks rank 0 for all of them and comes to a [`Verdict`] ([`verdict`]).

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

/// This rank's part in the exchange of signs of life.
pub(super) struct Health {
    rank: usize,
    own: Mutex<Own>,
    /// Of rank 0.
    board: OnceLock<Arc<Board>>,
    /// Of the others: the way to rank 0's.
    contact: OnceLock<Arc<Contact>>,
}

/// What this rank is at.
struct Own {
    phase: String,
    /// Whether that may take any time.
    long: bool,
    /// The collective it waits in.
    waiting: Option<String>,
    /// When one of them last changed.
    changed: Instant,
}

impl Health {
    pub(super) fn new(rank: usize) -> Arc<Self> {
        let own = Own { phase: "the start".into(), long: false, waiting: None, changed: Instant::now() };
        Arc::new(Self { rank, own: Mutex::new(own), board: OnceLock::new(), contact: OnceLock::new() })
    }

    /// What this rank is at from now on, and whether that may take any time.
    pub(super) fn enter(&self, phase: &str, long: bool) {
        let mut own = self.own();
        own.long = long;
        phase.clone_into(&mut own.phase);
        own.changed = Instant::now();
    }

    /// Notes that this rank waits in a collective, until the guard is dropped.
    pub(super) fn waiting(&self, operation: &str) -> Waiting<'_> {
        let mut own = self.own();
        own.waiting = Some(operation.to_owned());
        own.changed = Instant::now();
        drop(own);
        Waiting(self)
    }

    /// On rank 0: opens the board and says where; of the others nothing is asked.
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
                tracing::warn!("no heartbeat: a rank that is lost will not be named: {error}");
                Vec::new()
            }
        }
    }

    /// Accepts the invitation of rank 0: signs of life are sent from now on.
    pub(super) fn join(self: &Arc<Self>, invitation: &[u8]) {
        if self.rank > 0
            && let Some(contact) = Contact::open(self, invitation)
        {
            let _ = self.contact.set(contact);
        }
    }

    /// Why a collective has not come to its end after `limit`.
    pub(super) fn verdict(&self, limit: Duration) -> Verdict {
        let members = match (self.board.get(), self.contact.get()) {
            (Some(board), _) => board.members(),
            (None, Some(contact)) => match contact.ask() {
                Ok(members) => members,
                Err(reason) => return Verdict::Lost(reason),
            },
            (None, None) => {
                return Verdict::Lost(
                    "the deadline has passed, and there is no heartbeat to tell who is missing".into(),
                );
            }
        };
        judge(self.rank, &members, limit)
    }

    /// This rank as others see it.
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

    /// What this rank is at.
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

/// While it lives, its rank waits for others.
pub(super) struct Waiting<'a>(&'a Health);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut own = self.0.own();
        own.waiting = None;
        own.changed = Instant::now();
    }
}
