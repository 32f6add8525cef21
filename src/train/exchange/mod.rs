//! Averaging of gradients over the ranks.
//!
//! The backward pass hands over each gradient the moment it is ready ([`GradHook`]); it goes to its place in a bucket
//! ([`BucketLayout`](nnunet_comm::distributed::BucketLayout)), and a bucket that is full goes out while the pass goes on. At the end
//! of the step one waits for what is still under way. Where several batches make one step (gradient accumulation), they
//! are summed up in the buckets and only the last sends them out.

mod device;
mod host;
mod turn;

use std::sync::Arc;

use burn::tensor::{backend::Backend, ops::FloatTensor};

pub use device::DeviceExchange;
pub use host::HostExchange;

use nnunet_comm::distributed::{BucketLayout, CommDtype, CommError, Communicator, check_consistency};
use nnunet_nn::ops::{GradHook, NnOps};

/// Options for the gradient reduction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExchangeOptions {
    /// Maximum number of values per bucket; a larger parameter has its own bucket.
    pub bucket_len: usize,
    /// Transfer format.
    pub comm_dtype: CommDtype,
    /// Overlap communication with the backward pass: send each bucket as soon as it is full.
    pub overlap: bool,
    /// Batches per step (gradient accumulation).
    pub accumulate: usize,
}

impl ExchangeOptions {
    /// Returns whether full buckets are sent during a batch of the step; only the last batch completes them.
    fn sends_early(&self, batch: usize) -> bool {
        self.overlap && batch + 1 == self.accumulate
    }
}

/// Collects the gradients of a step and averages them over its batches and the ranks.
pub trait Exchange<B: Backend>: GradHook<B> {
    /// Begins with one of the step's batches, `0 .. accumulate`.
    fn begin(&self, batch: usize);

    /// Waits for the averaged gradients, one per parameter; `None` for parameters without gradient.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    fn finish(&self) -> Result<Vec<Option<FloatTensor<B>>>, CommError>;
}

/// Creates the reducer for parameters with these shapes.
///
/// # Errors
/// Returns an error if the layout differs between ranks, or a rank is lost.
pub fn exchange<B: NnOps>(
    layout: BucketLayout,
    shapes: Vec<Vec<usize>>,
    options: ExchangeOptions,
    comm: &dyn Communicator,
    device: &B::Device,
) -> Result<Arc<dyn Exchange<B>>, CommError> {
    let agreed = format!("{options:?}\n{}", layout.fingerprint());
    check_consistency(comm, "layout of the gradient buckets", agreed.as_bytes())?;
    if let Some(collectives) = comm.device_collectives() {
        return Ok(Arc::new(DeviceExchange::new(comm.rank(), layout, shapes, options, collectives)));
    }
    Ok(Arc::new(HostExchange::new(layout, shapes, options, comm.reducer(), device.clone())))
}
