//! Why an ensemble cannot be made.

use std::path::PathBuf;

use crate::ProbabilityError;
use nnunet_data::dataset::DatasetError;
use nnunet_image::ImageError;

/// Predictions that cannot be averaged.
#[derive(Debug, thiserror::Error)]
pub enum EnsembleError {
    /// Probabilities that cannot be read or written.
    #[error("{0}")]
    Probabilities(#[from] ProbabilityError),
    /// A label map that cannot be read or written.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// The dataset's description cannot be read.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// Predictions that do not belong together, or are not there.
    #[error("{}: {defect}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        defect: String,
    },
    /// A folder that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}
