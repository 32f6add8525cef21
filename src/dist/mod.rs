//! Everything that crosses process boundaries: rendezvous, collectives, failure.
//!
//! No MPI or NCCL type appears outside this folder.

mod single;

pub use single::Single;

/// How values of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// Sum over ranks.
    Sum,
    /// Mean over ranks.
    Mean,
    /// Maximum over ranks.
    Max,
}

/// A collective that failed.
#[derive(Debug, thiserror::Error)]
#[error("rank {rank}: {operation} failed after {elapsed_s:.1} s: {reason}")]
pub struct CommError {
    /// The rank that reports.
    pub rank: usize,
    /// Which collective, and of what (bucket, metric).
    pub operation: String,
    /// Seconds since the operation began.
    pub elapsed_s: f64,
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
    /// Copies `data` of rank `root` to all ranks.
    fn broadcast(&self, data: &mut [f32], root: usize, what: &str) -> Result<(), CommError>;
    /// As [`Communicator::broadcast`] for bytes; the lengths must agree on all ranks.
    fn broadcast_bytes(&self, data: &mut [u8], root: usize, what: &str) -> Result<(), CommError>;
    /// Gathers a message of any length from each rank; every rank gets all, in rank order.
    fn all_gather_bytes(&self, data: &[u8], what: &str) -> Result<Vec<Vec<u8>>, CommError>;
    /// Returns when all ranks have called it.
    fn barrier(&self, what: &str) -> Result<(), CommError>;
    /// Ends the whole job at once with an exit code, after printing rank and reason.
    fn abort(&self, code: i32, reason: &str) -> !;
}
