//! Everything that crosses process boundaries: rendezvous, collectives, failure.
//!
//! [`init`] finds out whether a launcher started this process as one of several and gives the [`Communicator`] of the
//! job: [`Single`] for a process by itself, which never touches MPI, else the ranks of the MPI job. It also divides the
//! CPU cores over the ranks of a host ([`divide_threads`]). A job lives and dies as a whole: a panic on any thread of
//! any rank and [`Communicator::abort`] end all ranks within seconds, with a non-zero exit code and a line that names
//! the rank. Collectives match by their order alone, so [`check_agreement`] compares what they depend on beforehand.
//!
//! A collective has a deadline, and a rank that is missing is named by its signs of life (`health`). Gradients go in
//! buckets ([`BucketLayout`]): through host memory by a [`Reducer`], between GPUs by [`DeviceCollectives`].
//!
//! No MPI or NCCL type appears outside this folder.

use std::sync::Arc;
use std::time::Duration;

mod agreement;
mod bucket;
mod device;
#[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "a single process ends by itself"))]
mod failure;
#[cfg(feature = "mpi")]
mod health;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod placement;
mod rendezvous;
mod single;
mod spread;
mod threads;
mod wire;

pub use agreement::{check_agreement, dissenters, those_differ};
pub use bucket::{Bucket, BucketLayout, Place};
pub use device::{DeviceBuffer, DeviceCollectives, Element, Witness};
pub use failure::explain_full_memory;
#[cfg(feature = "nccl")]
pub use nccl::{NcclComm, NcclLink, Timeouts, nccl_version, own_gpu};
pub use placement::{LocalPlace, choose_gpu, local_place, refuse_shared_gpus};
pub use rendezvous::{init, mpi_version};
pub use single::Single;
pub use spread::{assign, share_of};
pub use threads::{divide_threads, host_name};
pub use wire::Wire;

/// How values of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// Sum over ranks.
    Sum,
    /// Mean over ranks.
    Mean,
    /// Maximum over ranks. MPI leaves open what becomes of a NaN.
    Max,
}

/// What kind of failure it was, which decides what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A rank, a node or the network was lost: the same command may succeed when run again.
    Lost,
    /// The ranks were started with different settings or files.
    Disagreement,
    /// The ranks no longer have the same weights: memory or the network has changed a bit.
    Desync,
    /// This build, or this installation of MPI, cannot do what the launcher asks for.
    Unavailable,
}

/// A collective, or the start of a job, that failed.
#[derive(Debug, thiserror::Error)]
#[error("rank {rank}: {operation} failed after {elapsed_s:.1} s: {reason}")]
pub struct CommError {
    /// The rank that reports.
    pub rank: usize,
    /// Which collective, and of what (bucket, metric).
    pub operation: String,
    /// Seconds since the operation began.
    pub elapsed_s: f64,
    /// What kind of failure it was.
    pub fault: Fault,
    /// The cause and what to do.
    pub reason: String,
}

/// The ranks of one job. All ranks call the same collectives in the same order.
pub trait Communicator: Send {
    /// This process, `0 .. world_size`.
    fn rank(&self) -> usize;
    /// This process among those of its host.
    fn local_rank(&self) -> usize;
    /// How many processes of the job are on this host.
    fn local_size(&self) -> usize;
    /// Number of processes of the job.
    fn world_size(&self) -> usize;
    /// Reduces `data` element by element over all ranks; every rank gets the result. `what` names it in errors.
    fn all_reduce(&self, data: &mut [f32], op: ReduceOp, what: &str) -> Result<(), CommError>;
    /// As [`Communicator::all_reduce`] for the small double-precision sums of losses and metrics.
    fn all_reduce_f64(&self, data: &mut [f64], op: ReduceOp, what: &str) -> Result<(), CommError>;
    /// What reduces gradients behind the computation.
    fn reducer(&self) -> Arc<dyn Reducer>;
    /// Copies `data` of rank `root` to all ranks.
    fn broadcast(&self, data: &mut [f32], root: usize, what: &str) -> Result<(), CommError>;
    /// As [`Communicator::broadcast`] for bytes; the lengths must agree on all ranks.
    fn broadcast_bytes(&self, data: &mut [u8], root: usize, what: &str) -> Result<(), CommError>;
    /// Gathers a message of any length from each rank; every rank gets all, in rank order.
    fn all_gather_bytes(&self, data: &[u8], what: &str) -> Result<Vec<Vec<u8>>, CommError>;
    /// Returns when all ranks have called it.
    fn barrier(&self, what: &str) -> Result<(), CommError>;
    /// Collectives in the memory of this rank's device, where there are any: gradients need not go through the host then.
    fn device_collectives(&self) -> Option<Arc<dyn DeviceCollectives>> {
        None
    }
    /// The number of this rank's GPU among those that the process sees, where the ranks have chosen one each.
    fn gpu(&self) -> Option<usize> {
        None
    }
    /// Who can say, from any thread, which rank is missing where a device collective is late.
    fn witness(&self) -> Option<Arc<dyn Witness>> {
        None
    }
    /// How long a collective may take from now on before it fails. It goes on longer only while the rank that is missing
    /// is known to be at work.
    fn set_timeout(&self, _: Duration) {}
    /// Says what this rank is at, for errors and for ranks that wait for it. A rank that says nothing new for longer than
    /// the timeout is taken to hang.
    fn enter(&self, _phase: &str) {}
    /// As [`Communicator::enter`], for work of which nobody knows how long it takes: a case, a file. As long as the rank
    /// gives signs of life it is waited for.
    fn enter_unbounded(&self, _phase: &str) {}
    /// Ends the whole job at once with an exit code (`1..=255`; any other becomes 1), after printing rank and reason.
    ///
    /// For an error that the other ranks do not share: they would wait for this one for ever.
    fn abort(&self, code: i32, reason: &str) -> !;
}

/// Begins all-reduces that go on behind the computation, from whatever thread has something to reduce.
pub trait Reducer: Send + Sync {
    /// Begins an all-reduce of `data`, which `what` names in errors. Several may be under way; all ranks begin them in the
    /// same order.
    ///
    /// All ranks get the same bits, whatever the format on the wire; with [`Wire::F32`] nothing is rounded but the sums.
    fn start(&self, data: Vec<f32>, op: ReduceOp, wire: Wire, what: &str) -> Box<dyn Pending>;
}

/// An all-reduce under way.
pub trait Pending: Send {
    /// Waits for the result.
    fn wait(self: Box<Self>) -> Result<Vec<f32>, CommError>;
}
