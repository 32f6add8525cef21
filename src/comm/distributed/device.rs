//! Interface for collectives on device memory, which run asynchronously to the host.

use std::time::Duration;

use super::{CommError, ReduceOp};
pub use crate::{BufferDtype, DeviceBuffer};

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
