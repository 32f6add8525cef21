//! What can go wrong in an evaluation.

use std::io;
use std::path::{Path, PathBuf};

use nnunet_image::ImageError;

/// Label maps that cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A label map that cannot be read.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// A prediction that does not lie on the voxels of its reference.
    #[error(
        "{} has {prediction_shape:?} voxels (z, y, x), but {} has {reference_shape:?}: predictions must be in the raw \
         image's own geometry",
        prediction.display(), reference.display()
    )]
    Shape {
        /// The predicted label map.
        prediction: PathBuf,
        /// Its extent, `(z, y, x)`.
        prediction_shape: Vec<usize>,
        /// The true label map.
        reference: PathBuf,
        /// Its extent, `(z, y, x)`.
        reference_shape: Vec<usize>,
    },
    /// Files of two folders that do not match one to one.
    #[error("{0}")]
    Unpaired(String),
    /// A file whose contents are not what they should be.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    /// A file or folder that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
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
