//! Averaging of gradients over the ranks.
//!
//! The backward pass delivers each gradient as soon as it is ready ([`GradientSink`]). It is copied to its place in a
//! bucket ([`BucketLayout`](crate::dist::BucketLayout)), and a full bucket is sent while the backward pass continues.
//! The end of the step waits for the buckets still in flight. With gradient accumulation, gradients are summed in the
//! buckets over several batches, and only the last batch sends them.

mod device;
mod host;
mod turn;

use std::sync::Arc;

use burn::tensor::{backend::Backend, ops::FloatTensor};

pub use device::DeviceExchange;
pub use host::HostExchange;

use nnunet_comm::distributed::{BucketLayout, CommDtype, CommError, Communicator, check_consistency};
use nnunet_nn::ops::{GradientSink, NnOps};

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
pub trait Exchange<B: Backend>: GradientSink<B> {
    /// Starts one of the step's batches, `0 .. accumulate`.
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
