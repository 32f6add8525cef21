//! Error type for image files.

use std::path::{Path, PathBuf};

/// An image file that cannot be read or written, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct ImageError {
    /// Path of the file.
    pub path: PathBuf,
    /// Description of the problem.
    pub defect: String,
}

impl ImageError {
    /// Error for the file at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}
