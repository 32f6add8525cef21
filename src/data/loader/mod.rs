//! Data loader: draws patches and turns them into batches with worker threads that prefetch and augment.
//!
//! 1. [`Sampler`] is a pure function from (seed, epoch, global sample index) to a [`SampleId`], so any number of ranks,
//!    threads and restarts draw the same patches.
//! 2. [`Loader`] sends this rank's sample indices to worker threads, one sample at a time and several batches ahead.
//! 3. A worker reads the patch, augments it and writes it to its position in a [`Batch`].
//! 4. [`Loader::next`] delivers the batches in order. A worker failure is returned there as a [`LoaderError`] that
//!    names the case, never as a hang.

mod batch;
mod case_partition;
mod error;
mod prefetch;
mod sampler;
mod worker;

pub use batch::{Batch, SampleId};
pub use case_partition::Shard;
pub use error::LoaderError;
pub use prefetch::{Loader, LoaderOptions};
pub use sampler::{Oversampling, Sampler, SamplerOptions};
