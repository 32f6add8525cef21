//! A run that cannot be read.

use std::path::{Path, PathBuf};

/// A file of a run that is damaged, or no run at all.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct ReportError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub defect: String,
}

impl ReportError {
    /// A defect of what is at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}
