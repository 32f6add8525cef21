//! Error type of ensembles.

use std::path::PathBuf;

use crate::ProbabilityError;
use nnunet_data::dataset::DatasetError;
use nnunet_image::ImageError;

/// Predictions that cannot be ensembled.
#[derive(Debug, thiserror::Error)]
pub enum EnsembleError {
    /// Probabilities cannot be read or written.
    #[error("{0}")]
    Probabilities(#[from] ProbabilityError),
    /// A label map cannot be read or written.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// The `dataset.json` cannot be read.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// Predictions are missing or do not match.
    #[error("{}: {defect}", path.display())]
    Invalid {
        /// Path of the file or folder.
        path: PathBuf,
        /// Description of the problem.
        defect: String,
    },
    /// A folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
}
