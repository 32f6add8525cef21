//! Communication between processes: rendezvous, collectives, failure handling.
//!
//! [`init`] detects whether a launcher started this process as one of several and returns the [`Communicator`] of the
//! job: [`Single`] for a single process, which never initializes MPI, otherwise the MPI communicator. It also divides
//! the CPU cores among the ranks of a host ([`divide_threads`]). The job succeeds or fails as a whole: a panic on any
//! thread of any rank and [`Communicator::abort`] end all ranks within seconds, with a non-zero exit code and a line
//! that names the rank. Collectives are matched only by their order, so [`check_consistency`] first compares everything
//! they depend on.
//!
//! Every collective has a timeout, and heartbeats identify a missing rank (`health`). Gradients are exchanged in
//! buckets ([`BucketLayout`]): through host memory by a [`Reducer`], between GPUs by [`DeviceCollectives`].
//!
//! No MPI or NCCL type appears outside this folder.

use std::sync::Arc;
use std::time::Duration;

mod bucket;
mod comm_dtype;
mod consistency;
mod device;
#[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "a single process ends by itself"))]
mod failure;
#[cfg(feature = "mpi")]
mod health;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod partition;
mod placement;
mod rendezvous;
mod single;
mod threads;

pub use bucket::{Bucket, BucketLayout, BucketPosition};
pub use comm_dtype::CommDtype;
pub use consistency::{check_consistency, describe_mismatch, mismatched_ranks};
pub use device::{BufferDtype, DeviceBuffer, DeviceCollectives, HealthMonitor};
pub use failure::install_out_of_memory_hook;
#[cfg(feature = "nccl")]
pub use nccl::{NcclComm, NcclLink, Timeouts, nccl_version, own_gpu};
pub use partition::{own_partition, partition_by_cost};
pub use placement::{LocalRank, check_gpus_not_shared, choose_gpu, local_rank_on_host};
pub use rendezvous::{init, mpi_version};
pub use single::Single;
pub use threads::{divide_threads, host_name};

/// Reduction operator over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// Sum over ranks.
    Sum,
    /// Mean over ranks.
    Mean,
    /// Maximum over ranks. MPI does not define the result for NaN.
    Max,
}

/// Kind of failure, which determines the exit code and the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A rank, a node or the network was lost; retrying the same command may succeed.
    Lost,
    /// The ranks were started with different settings or files.
    Disagreement,
    /// The ranks no longer have the same weights: a bit was corrupted in memory or on the network.
    Desync,
    /// This build or this MPI installation does not support the request of the launcher.
    Unavailable,
}

/// A failed collective, or a failed start of the job.
#[derive(Debug, thiserror::Error)]
#[error("rank {rank}: {operation} failed after {elapsed_s:.1} s: {reason}")]
pub struct CommError {
    /// Rank that reports the error.
    pub rank: usize,
    /// Name of the collective and its data (bucket, metric).
    pub operation: String,
    /// Seconds since the operation started.
    pub elapsed_s: f64,
    /// Kind of failure.
    pub fault: Fault,
    /// Cause and remedy.
    pub reason: String,
}

/// Communicator over the ranks of one job. All ranks must call the same collectives in the same order.
pub trait Communicator: Send {
    /// Rank of this process, in `0 .. world_size`.
    fn rank(&self) -> usize;
    /// Rank of this process among the processes of its host.
    fn local_rank(&self) -> usize;
    /// Number of processes of the job on this host.
    fn local_size(&self) -> usize;
    /// Number of processes of the job.
    fn world_size(&self) -> usize;
    /// All-reduces `data` in place, element-wise; every rank gets the result. `what` names it in errors.
    fn all_reduce(&self, data: &mut [f32], op: ReduceOp, what: &str) -> Result<(), CommError>;
    /// Like [`Communicator::all_reduce`], for the small double-precision sums of losses and metrics.
    fn all_reduce_f64(&self, data: &mut [f64], op: ReduceOp, what: &str) -> Result<(), CommError>;
    /// Returns the reducer that exchanges gradients concurrently with computation.
    fn reducer(&self) -> Arc<dyn Reducer>;
    /// Copies `data` from rank `root` to all ranks.
    fn broadcast(&self, data: &mut [f32], root: usize, what: &str) -> Result<(), CommError>;
    /// Like [`Communicator::broadcast`], for bytes. The length must be the same on all ranks.
    fn broadcast_bytes(&self, data: &mut [u8], root: usize, what: &str) -> Result<(), CommError>;
    /// Gathers a message of any length from each rank; every rank gets all messages, in rank order.
    fn all_gather_bytes(&self, data: &[u8], what: &str) -> Result<Vec<Vec<u8>>, CommError>;
    /// Blocks until all ranks have called it.
    fn barrier(&self, what: &str) -> Result<(), CommError>;
    /// Returns the collectives on device memory, if available; gradients then bypass the host.
    fn device_collectives(&self) -> Option<Arc<dyn DeviceCollectives>> {
        None
    }
    /// Returns the index of this rank's GPU among those visible to the process, if the ranks have each selected one.
    fn gpu(&self) -> Option<usize> {
        None
    }
    /// Returns the health monitor, which diagnoses a late device collective from any thread.
    fn health_monitor(&self) -> Option<Arc<dyn HealthMonitor>> {
        None
    }
    /// Sets the timeout of later collectives. A collective may take longer only while the missing rank is known to be
    /// working.
    fn set_timeout(&self, _: Duration) {}
    /// Sets the current phase of this rank, for errors and for ranks that wait for it. A rank that does not enter a new
    /// phase within the timeout is considered hung.
    fn enter_phase(&self, _phase: &str) {}
    /// Like [`Communicator::enter_phase`], for a phase of unbounded duration such as a case or a file. Other ranks wait
    /// while this rank sends heartbeats.
    fn enter_unbounded(&self, _phase: &str) {}
    /// Prints rank and reason, then ends the whole job at once with an exit code (`1..=255`; any other becomes 1).
    ///
    /// For an error that the other ranks do not share: they would wait for this rank forever.
    fn abort(&self, code: i32, reason: &str) -> !;
}

/// Starts all-reduces that run concurrently with computation, from any thread.
pub trait Reducer: Send + Sync {
    /// Starts an all-reduce of `data`; `what` names it in errors. Several may be in flight; all ranks must start them
    /// in the same order.
    ///
    /// All ranks get the same bits, whatever the transfer format. With [`CommDtype::F32`] only the sums are rounded.
    fn start(&self, data: Vec<f32>, op: ReduceOp, comm_dtype: CommDtype, what: &str) -> Box<dyn Work>;
}

/// Handle of an all-reduce in flight.
pub trait Work: Send {
    /// Waits for the result.
    fn wait(self: Box<Self>) -> Result<Vec<f32>, CommError>;
}
