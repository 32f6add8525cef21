//! Heartbeats that distinguish a dead or hung rank from a slow one.
//!
//! A collective waits for the slowest rank. When it times out, the collective itself cannot tell which rank is missing,
//! or whether one is. So every rank sends a heartbeat to rank 0 once a second over a TCP connection that is independent
//! of MPI and NCCL ([`heartbeat`]): its process is alive, its current phase, and whether it waits for others. A rank
//! whose collective is late requests the state of all ranks from rank 0 and derives a [`Diagnosis`] ([`rank_health`]).

mod heartbeat;
mod rank_health;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub(super) use self::heartbeat::ENDPOINT_BYTES;
use self::heartbeat::{HeartbeatClient, HeartbeatServer};
pub(super) use self::rank_health::Diagnosis;
use self::rank_health::{OwnHealth, diagnose};
use super::HealthMonitor;

/// Health of this rank, and its heartbeat connection to the others.
pub(super) struct Health {
    own: Arc<OwnHealth>,
    /// Heartbeat server; set on rank 0 only.
    server: OnceLock<Arc<HeartbeatServer>>,
    /// Heartbeat client; set on all other ranks.
    client: OnceLock<Arc<HeartbeatClient>>,
}

impl Health {
    pub(super) fn new(rank: usize) -> Arc<Self> {
        Arc::new(Self { own: OwnHealth::new(rank), server: OnceLock::new(), client: OnceLock::new() })
    }

    /// Sets the current phase of this rank, and whether it may take an unbounded time.
    pub(super) fn enter_phase(&self, phase: &str, long: bool) {
        self.own.enter_phase(phase, long);
    }

    /// Returns the current phase of this rank.
    pub(super) fn phase(&self) -> String {
        self.own.phase()
    }

    /// Marks this rank as waiting in a collective until the guard is dropped.
    pub(super) fn waiting(&self, operation: &str) -> Waiting<'_> {
        self.own.set_waiting(Some(operation));
        Waiting(&self.own)
    }

    /// Starts the heartbeat server on rank 0 and returns its serialized endpoint. Returns an empty message on other
    /// ranks.
    pub(super) fn endpoint(&self) -> Vec<u8> {
        if self.own.rank() > 0 {
            return Vec::new();
        }
        match HeartbeatServer::open(&self.own) {
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
    pub(super) fn join(&self, endpoint: &[u8]) {
        if self.own.rank() > 0
            && let Some(client) = HeartbeatClient::open(&self.own, endpoint)
        {
            let _ = self.client.set(client);
        }
    }

    /// Diagnoses a collective that has not completed after `limit`.
    pub(super) fn diagnose(&self, limit: Duration) -> Diagnosis {
        let ranks = match (self.server.get(), self.client.get()) {
            (Some(server), _) => server.ranks(),
            (None, Some(client)) => match client.request_ranks() {
                Ok(ranks) => ranks,
                Err(reason) => return Diagnosis::Lost(reason),
            },
            (None, None) => {
                let reason = "timeout; the missing rank is unknown because the heartbeat is disabled";
                return Diagnosis::Lost(reason.into());
            }
        };
        diagnose(self.own.rank(), &ranks, limit)
    }
}

impl HealthMonitor for Health {
    fn set_waiting(&self, operation: Option<&str>) {
        self.own.update_waiting(operation);
    }

    fn diagnose(&self, limit: Duration) -> Result<String, String> {
        match self.diagnose(limit) {
            Diagnosis::Slow(reason) => Ok(reason),
            Diagnosis::Lost(reason) => Err(reason),
        }
    }
}

/// Guard: the rank counts as waiting in a collective until it is dropped.
pub(super) struct Waiting<'a>(&'a OwnHealth);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set_waiting(None);
    }
}
