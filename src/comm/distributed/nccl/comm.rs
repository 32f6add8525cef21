//! Communicator of a job whose GPUs are connected by NCCL.

use std::sync::Arc;
use std::time::Duration;

use super::NcclLink;
use crate::distributed::{CommError, Communicator, DeviceCollectives, HealthMonitor, ReduceOp, Reducer};

/// The host communicator plus device collectives.
///
/// Data in host memory is exchanged by the host communicator. Each of its collectives first checks whether NCCL has
/// failed: the other ranks have seen the same failure, so waiting for them would only hide it.
pub struct NcclComm {
    /// Dropped first: finalizing NCCL requires the other ranks, which the host communicator releases when dropped.
    link: Arc<NcclLink>,
    host: Box<dyn Communicator>,
}

impl NcclComm {
    /// Combines `link` with the host communicator that was used to join it.
    pub fn new(host: Box<dyn Communicator>, link: NcclLink) -> Self {
        Self { link: Arc::new(link), host }
    }

    /// Returns the host communicator, or the error of NCCL if it has failed.
    fn host(&self) -> Result<&dyn Communicator, CommError> {
        self.link.check().map(|()| self.host.as_ref())
    }
}

impl Communicator for NcclComm {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn local_rank(&self) -> usize {
        self.host.local_rank()
    }

    fn local_size(&self) -> usize {
        self.host.local_size()
    }

    fn world_size(&self) -> usize {
        self.host.world_size()
    }

    fn all_reduce(&self, data: &mut [f32], op: ReduceOp, what: &str) -> Result<(), CommError> {
        self.host()?.all_reduce(data, op, what)
    }

    fn all_reduce_f64(&self, data: &mut [f64], op: ReduceOp, what: &str) -> Result<(), CommError> {
        self.host()?.all_reduce_f64(data, op, what)
    }

    fn reducer(&self) -> Arc<dyn Reducer> {
        self.host.reducer()
    }

    fn broadcast(&self, data: &mut [f32], root: usize, what: &str) -> Result<(), CommError> {
        self.host()?.broadcast(data, root, what)
    }

    fn broadcast_bytes(&self, data: &mut [u8], root: usize, what: &str) -> Result<(), CommError> {
        self.host()?.broadcast_bytes(data, root, what)
    }

    fn all_gather_bytes(&self, data: &[u8], what: &str) -> Result<Vec<Vec<u8>>, CommError> {
        self.host()?.all_gather_bytes(data, what)
    }

    fn barrier(&self, what: &str) -> Result<(), CommError> {
        self.host()?.barrier(what)
    }

    fn device_collectives(&self) -> Option<Arc<dyn DeviceCollectives>> {
        Some(self.link.clone())
    }

    fn gpu(&self) -> Option<usize> {
        Some(self.link.gpu())
    }

    fn health_monitor(&self) -> Option<Arc<dyn HealthMonitor>> {
        self.host.health_monitor()
    }

    fn set_timeout(&self, timeout: Duration) {
        self.host.set_timeout(timeout);
        self.link.set_timeout(timeout);
    }

    fn enter_phase(&self, phase: &str) {
        self.host.enter_phase(phase);
    }

    fn enter_unbounded(&self, phase: &str) {
        self.host.enter_unbounded(phase);
    }

    fn abort(&self, code: i32, reason: &str) -> ! {
        self.host.abort(code, reason)
    }
}
