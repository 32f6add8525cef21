//! The seam for collectives that take place in the memory of the devices, behind the host's back.

use std::time::Duration;

use super::{CommError, ReduceOp};
pub use crate::{BufferDtype, DeviceBuffer};

/// Reductions that are queued on the device like its other work, without stopping the host.
///
/// Nothing tells the host when a reduction is done. So a failure is met later than where it happened, by whichever call
/// comes next: see [`DeviceCollectives::check`] for when it must be asked for.
pub trait DeviceCollectives: Send + Sync {
    /// Queues an all-reduce of `buffer` in place, after all work that the compute streams have been given so far. `what`
    /// names it in errors. All ranks start the same reductions in the same order.
    ///
    /// The memory must stay allocated until [`DeviceCollectives::finish`], after which the device's own order protects
    /// it.
    ///
    /// # Errors
    /// That this one cannot be queued, or that an earlier one has failed.
    fn start_all_reduce(&self, buffer: DeviceBuffer, op: ReduceOp, what: &str) -> Result<(), CommError>;

    /// Lets all work that is given to the compute streams from now on wait for the reductions started so far.
    ///
    /// # Errors
    /// As [`DeviceCollectives::start_all_reduce`].
    fn finish(&self, what: &str) -> Result<(), CommError>;

    /// Whether all reductions that the device is done with have succeeded.
    ///
    /// An abort lets the work that waits for a reduction go on with whatever the memory holds. So ask after results have
    /// arrived on the host, and before they are used for anything that lasts: a checkpoint, a metric.
    ///
    /// # Errors
    /// What has failed.
    fn check(&self) -> Result<(), CommError>;
}

/// What is known of the ranks beside the collectives, by their signs of life.
pub trait Witness: Send + Sync {
    /// Notes that this rank waits for others in an operation, or in none any more: it is not the one that hangs.
    fn waits(&self, operation: Option<&str>);

    /// Why an operation has not come to its end after `limit`: `Ok` says who is still at work, so that it is worth while
    /// to go on waiting.
    ///
    /// # Errors
    /// Who is lost or hangs: the operation will never come to its end.
    fn verdict(&self, limit: Duration) -> Result<String, String>;
}
