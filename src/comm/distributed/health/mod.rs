//! Heartbeats that distinguish a dead or hung rank from a slow one.
//!
//! A collective waits for the slowest rank. When it times out, the collective itself cannot tell which rank is missing,
//! or whether one is. So every rank sends a heartbeat to rank 0 once a second over a TCP connection that is independent
//! of MPI and NCCL ([`heartbeat`]): its process is alive, its current phase, and whether it waits for others. A rank
//! whose collective is late requests the state of all ranks from rank 0 and derives a [`Diagnosis`] ([`diagnosis`]).

mod diagnosis;
mod heartbeat;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

pub(super) use diagnosis::Diagnosis;
use diagnosis::{RankHealth, diagnose};
pub(super) use heartbeat::ENDPOINT_BYTES;
use heartbeat::{HeartbeatClient, HeartbeatServer};

use super::HealthMonitor;
use super::threads::host_name;

/// Heartbeat state of this rank.
pub(super) struct Health {
    rank: usize,
    own: Mutex<Activity>,
    /// Heartbeat server; set on rank 0 only.
    server: OnceLock<Arc<HeartbeatServer>>,
    /// Heartbeat client; set on all other ranks.
    client: OnceLock<Arc<HeartbeatClient>>,
}

/// Current activity of this rank.
struct Activity {
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
        let own = Activity { phase: "the start".into(), long: false, waiting: None, changed: Instant::now() };
        Arc::new(Self { rank, own: Mutex::new(own), server: OnceLock::new(), client: OnceLock::new() })
    }

    /// Sets the current phase of this rank, and whether it may take an unbounded time.
    pub(super) fn enter_phase(&self, phase: &str, long: bool) {
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
    pub(super) fn endpoint(self: &Arc<Self>) -> Vec<u8> {
        if self.rank > 0 {
            return Vec::new();
        }
        match HeartbeatServer::open(self) {
            Ok((server, endpoint)) => {
                let _ = self.server.set(server);
                endpoint
            }
            Err(error) => {
                tracing::warn!("heartbeat disabled, errors cannot name a lost rank: {error}");
                Vec::new()
            }
        }
    }

    /// Connects to the heartbeat server of rank 0 and starts sending heartbeats.
    pub(super) fn join(self: &Arc<Self>, endpoint: &[u8]) {
        if self.rank > 0
            && let Some(client) = HeartbeatClient::open(self, endpoint)
        {
            let _ = self.client.set(client);
        }
    }

    /// Diagnoses a collective that has not completed after `limit`.
    pub(super) fn diagnose(&self, limit: Duration) -> Diagnosis {
        let ranks = match (self.server.get(), self.client.get()) {
            (Some(server), _) => server.ranks(),
            (None, Some(client)) => match client.ask() {
                Ok(ranks) => ranks,
                Err(reason) => return Diagnosis::Lost(reason),
            },
            (None, None) => {
                return Diagnosis::Lost(
                    "timeout; the missing rank is unknown because the heartbeat is disabled".into(),
                );
            }
        };
        diagnose(self.rank, &ranks, limit)
    }

    /// Returns the state of this rank as reported to others.
    fn own_health(&self) -> RankHealth {
        let own = self.own();
        RankHealth {
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

    fn own(&self) -> MutexGuard<'_, Activity> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current phase of this rank.
    pub(super) fn phase(&self) -> String {
        self.own().phase.clone()
    }
}

impl HealthMonitor for Health {
    fn set_waiting(&self, operation: Option<&str>) {
        let mut own = self.own();
        if own.waiting.as_deref() != operation {
            own.waiting = operation.map(str::to_owned);
            own.changed = Instant::now();
        }
    }

    fn diagnose(&self, limit: Duration) -> Result<String, String> {
        match self.diagnose(limit) {
            Diagnosis::Slow(reason) => Ok(reason),
            Diagnosis::Lost(reason) => Err(reason),
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
