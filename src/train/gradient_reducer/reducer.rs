//! Interface and options of a gradient reducer.

use burn::tensor::{backend::Backend, ops::FloatTensor};

use nnunet_comm::distributed::{CommDtype, CommError};
use nnunet_nn::ops::GradHook;

/// Options for the gradient reduction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientReducerOptions {
    /// Maximum number of values per bucket; a larger parameter has its own bucket.
    pub bucket_len: usize,
    /// Transfer format.
    pub comm_dtype: CommDtype,
    /// Overlap communication with the backward pass: send each bucket as soon as it is full.
    pub overlap: bool,
    /// Batches per step (gradient accumulation).
    pub accumulate: usize,
}

impl GradientReducerOptions {
    /// Returns whether full buckets are sent during a batch of the step; only the last batch completes them.
    pub(super) fn sends_early(&self, batch: usize) -> bool {
        self.overlap && batch + 1 == self.accumulate
    }
}

/// Collects the gradients of a step and averages them over its batches and the ranks.
pub trait GradientReducer<B: Backend>: GradHook<B> {
    /// Begins with one of the step's batches, `0 .. accumulate`.
    fn begin(&self, batch: usize);

    /// Waits for the averaged gradients, one per parameter; `None` for parameters without gradient.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    fn finish(&self) -> Result<Vec<Option<FloatTensor<B>>>, CommError>;
}
