//! Errors of raw datasets.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use nnunet_image::ImageError;

/// An error in a dataset or a file that describes one.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder has invalid contents.
    #[error("{}: {defect}", path.display())]
    Invalid { path: PathBuf, defect: String },
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The cross-validation splits are invalid or lack the requested fold.
    #[error("splits: {0}")]
    Splits(String),
    /// An image or label map cannot be read.
    #[error("{0}")]
    Image(#[from] ImageError),
}

impl DatasetError {
    pub fn invalid(path: &Path, defect: impl Display) -> Self {
        Self::Invalid { path: path.to_owned(), defect: defect.to_string() }
    }

    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
