//! Interfaces of communication: collectives in host memory and in device memory, their errors, and the job of a single
//! process.

use std::sync::Arc;
use std::time::Duration;

use super::CommDtype;

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

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Contiguous elements in device memory.
///
/// Does not borrow the tensor: its creator must keep the tensor alive until all work on the buffer is ordered before
/// the tensor's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceBuffer {
    /// Device address, `CUdeviceptr`.
    pub pointer: u64,
    /// Number of elements.
    pub len: usize,
    /// Type of the elements.
    pub dtype: BufferDtype,
}

/// Reductions that are queued on the device without blocking the host.
///
/// The host is not notified when a reduction is done, so a failure is reported by a later call.
/// [`DeviceCollectives::check`] describes when it must be called.
pub trait DeviceCollectives: Send + Sync {
    /// Queues an in-place all-reduce of `buffer`, after all work submitted to the compute streams so far. `what` names
    /// it in errors. All ranks must start the same reductions in the same order.
    ///
    /// The memory must stay allocated until [`DeviceCollectives::finish`]; after that, stream order protects it.
    ///
    /// # Errors
    /// Returns an error if the reduction cannot be queued or an earlier one has failed.
    fn start_all_reduce(&self, buffer: DeviceBuffer, op: ReduceOp, what: &str) -> Result<(), CommError>;

    /// Makes all work submitted to the compute streams from now on wait for the reductions started so far.
    ///
    /// # Errors
    /// Same as [`DeviceCollectives::start_all_reduce`].
    fn finish(&self, what: &str) -> Result<(), CommError>;

    /// Checks that all completed reductions have succeeded.
    ///
    /// After an abort, work that waits for a reduction continues with whatever the memory holds. So call this after
    /// results have arrived on the host and before they are used for anything that lasts, such as a checkpoint or a
    /// metric.
    ///
    /// # Errors
    /// Returns the failure of a reduction, if any.
    fn check(&self) -> Result<(), CommError>;
}

/// Health information about the ranks from their heartbeats, independent of the collectives.
pub trait HealthMonitor: Send + Sync {
    /// Records that this rank waits for others in `operation` (`None`: it no longer waits), so it is not reported as
    /// hung.
    fn set_waiting(&self, operation: Option<&str>);

    /// Diagnoses an operation that has not completed after `limit`. `Ok` names the rank that is still working, so
    /// waiting longer makes sense.
    ///
    /// # Errors
    /// Returns an error that names the lost or hung rank if the operation can never complete.
    fn diagnose(&self, limit: Duration) -> Result<String, String>;
}

/// The only rank of its job; every collective returns immediately.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Communicator for Single {
    fn rank(&self) -> usize {
        0
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn local_size(&self) -> usize {
        1
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &mut [f32], _: ReduceOp, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn all_reduce_f64(&self, _: &mut [f64], _: ReduceOp, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn reducer(&self) -> Arc<dyn Reducer> {
        Arc::new(Self)
    }

    fn broadcast(&self, _: &mut [f32], _: usize, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn broadcast_bytes(&self, _: &mut [u8], _: usize, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn all_gather_bytes(&self, data: &[u8], _: &str) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(vec![data.to_vec()])
    }

    fn barrier(&self, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn abort(&self, code: i32, reason: &str) -> ! {
        eprintln!("error: {reason}");
        std::process::exit(code);
    }
}

impl Reducer for Single {
    fn start(&self, data: Vec<f32>, _: ReduceOp, _: CommDtype, _: &str) -> Box<dyn Work> {
        Box::new(Done(data))
    }
}

/// Result that needed no exchange.
struct Done(Vec<f32>);

impl Work for Done {
    fn wait(self: Box<Self>) -> Result<Vec<f32>, CommError> {
        Ok(self.0)
    }
}
