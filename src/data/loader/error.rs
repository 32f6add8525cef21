//! Errors of the data loader.

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
