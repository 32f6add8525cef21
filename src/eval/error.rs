//! Error type of evaluations.

use std::io;
use std::path::{Path, PathBuf};

use nnunet_image::ImageError;

/// An evaluation that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A label map cannot be read or written.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// A prediction and its reference differ in shape.
    #[error(
        "{} has {prediction_shape:?} voxels (z, y, x), but {} has {reference_shape:?}; predictions must have \
         the geometry of the raw image",
        prediction.display(), reference.display()
    )]
    Shape {
        /// Path of the predicted label map.
        prediction: PathBuf,
        /// Shape of the prediction, `(z, y, x)`.
        prediction_shape: Vec<usize>,
        /// Path of the reference label map.
        reference: PathBuf,
        /// Shape of the reference, `(z, y, x)`.
        reference_shape: Vec<usize>,
    },
    /// Files of two folders do not match one to one.
    #[error("{0}")]
    Unpaired(String),
    /// A file has invalid contents.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Path of the file or folder.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

impl EvalError {
    pub fn invalid(path: &Path, reason: impl ToString) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.to_string() }
    }

    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}
