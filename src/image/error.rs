//! Image files that cannot be used.

use std::path::{Path, PathBuf};

/// A file that cannot be read or written, and why.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct ImageError {
    /// The file in question.
    pub path: PathBuf,
    /// What is wrong with it.
    pub defect: String,
}

impl ImageError {
    /// A defect of the file at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}
