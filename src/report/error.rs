//! Error type of reports.

use std::path::{Path, PathBuf};

/// A folder that is not a run directory, or a damaged file of a run.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct ReportError {
    /// Path of the file or folder.
    pub path: PathBuf,
    /// Description of the problem.
    pub defect: String,
}

impl ReportError {
    /// Error for the file or folder at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}
