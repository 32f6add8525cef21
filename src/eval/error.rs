//! Error type of evaluations.

use std::io;
use std::path::{Path, PathBuf};

use nnunet_core::user_file::UserFileError;
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
    /// A prediction and its reference have the same shape, but not the same place or voxel size.
    #[error(
        "{}: {difference} of {}; predictions must have the geometry of the raw image (`evaluate --allow-other-geometry` \
         compares voxel by voxel)", prediction.display(), reference.display()
    )]
    Geometry {
        /// Path of the predicted label map.
        prediction: PathBuf,
        /// The first difference.
        difference: String,
        /// Path of the reference label map.
        reference: PathBuf,
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

    pub fn user_file(path: &Path) -> impl FnOnce(UserFileError) -> Self + '_ {
        move |error| match error {
            UserFileError::Io(source) => Self::io(path)(source),
            UserFileError::Invalid(defect) => Self::invalid(path, defect),
        }
    }

    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}
