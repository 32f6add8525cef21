//! Data loader: draws patches and turns them into batches with worker threads that prefetch and augment.
//!
//! 1. [`Sampler`] is a pure function from (seed, epoch, global sample index) to a [`SampleId`], so any number of ranks,
//!    threads and restarts draw the same patches.
//! 2. [`Loader`] sends this rank's sample indices to worker threads, one sample at a time and several batches ahead.
//! 3. A worker reads the patch, augments it and writes it to its position in a [`Batch`].
//! 4. [`Loader::next`] delivers the batches in order. A worker failure is returned there as a [`LoaderError`] that
//!    names the case, never as a hang.

mod prefetch;
mod sampler;

pub use prefetch::{Batch, Loader, LoaderOptions};
pub use sampler::{Oversampling, SampleId, Sampler, SamplerOptions, Shard};

/// A batch that cannot be delivered. After the first error the loader returns it again on every call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoaderError {
    /// The loader cannot start with the given settings.
    #[error("data loader: {0}")]
    Setup(String),
    /// A sample could not be drawn, read or augmented.
    #[error("case {case}, sample {index} of epoch {epoch}: {cause}")]
    Sample {
        /// Identifier of the case.
        case: String,
        /// Epoch of the sample.
        epoch: u64,
        /// Index of the sample in the epoch's global sequence.
        index: u64,
        /// Error of the store, or the message of the worker's panic.
        cause: String,
    },
    /// All batches of the requested epochs were delivered.
    #[error("data loader: a batch was requested after the end of the last epoch")]
    Finished,
}
