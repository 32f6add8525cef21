//! From the store to batches: which patch comes next, and the threads that fetch and augment it ahead of time.
//!
//! 1. [`Sampler`] is a pure function from (seed, epoch, global sample number) to a [`SampleId`], so any number of
//!    ranks, threads and restarts draw the same patches.
//! 2. [`Loader`] hands this rank's sample numbers to worker threads, one sample at a time and some batches ahead.
//! 3. A worker reads the patch, augments it and writes it into its place in a [`Batch`].
//! 4. [`Loader::next`] delivers the batches in order. A failure of a worker arrives there as a [`LoaderError`] that
//!    names the case, never as a hang.

mod batch;
mod error;
mod order;
mod prefetch;
mod sampler;
mod worker;

pub use batch::{Batch, SampleId};
pub use error::LoaderError;
pub use order::Shard;
pub use prefetch::{Loader, LoaderOptions};
pub use sampler::{Oversampling, Sampler, SamplerOptions};
