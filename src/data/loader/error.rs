//! What can go wrong between the store and a batch.

/// A batch that cannot be delivered. Once returned, the loader returns it again on every call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoaderError {
    /// The loader cannot start as it was asked to.
    #[error("data loader: {0}")]
    Setup(String),
    /// A sample could not be drawn, read or augmented.
    #[error("case {case}, sample {index} of epoch {epoch}: {cause}")]
    Sample {
        /// Identifier of the case.
        case: String,
        /// Epoch of the sample.
        epoch: u64,
        /// Number of the sample within the epoch's global sequence.
        index: u64,
        /// The store's error, or the message of the worker's panic.
        cause: String,
    },
    /// Every batch of the epochs asked for was delivered.
    #[error("data loader: asked for a batch after the end of its last epoch")]
    Finished,
}
