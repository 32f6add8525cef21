//! All-reduces between GPUs with NCCL, next to a communicator that handles everything else in host memory.
//!
//! [`NcclLink::join`] connects this rank's GPU with the GPUs of the other ranks, and [`NcclComm`] combines the link
//! with the host communicator. NCCL has no timeout and blocks forever when a rank is lost, so nothing here blocks
//! inside NCCL: the communicator is non-blocking, its state is polled, and a thread ([`watchdog`]) monitors the
//! reductions in flight and aborts the communicator on an NCCL error or a timeout.
//!
//! Both NCCL ([`library`]) and the CUDA driver ([`crate::cuda`]) are loaded at run time, from files that may be older
//! or newer than the headers of this build. Only the C types of cudarc are used: its functions look a library up under
//! names that NVIDIA's packages do not use (`libnccl.so.2`), and panic if the library or a symbol is missing.
//!
//! Source: NCCL user guide, "Creating a communicator", "Error handling and communicator abort", "Fault tolerance".

mod library;
mod link;
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

pub use self::link::{NcclLink, own_gpu};
pub use self::watchdog::Timeouts;
use super::{CommError, Communicator, DeviceCollectives, HealthMonitor, ReduceOp, Reducer};

/// Returns version and path of the NCCL library, such as `2.30.7 (libnccl.so.2)`.
///
/// # Errors
/// Returns an error in one line if the library cannot be loaded.
pub fn nccl_version() -> Result<String, String> {
    library::Nccl::open().map(|nccl| format!("{} ({})", nccl.version(), nccl.path.display()))
}

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
