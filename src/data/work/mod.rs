//! The folders that the commands share: the work folder of a dataset and the run directories in it.
//!
//! [`WorkDir`] and [`RunDir`] are the only places that know the names of the files in them.

mod run_dir;
mod work_dir;

pub use run_dir::{FoldId, RunDir};
pub use work_dir::{DEFAULT_PLANS, Source, WorkDir, check_plans_name};

/// A configuration that cannot be used: an unknown key, a value of the wrong type or out of its range, a missing file.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {defect}")]
pub struct ConfigError {
    /// The file, or the layer, that states the value.
    pub origin: String,
    /// The defect and the value that would be right.
    pub defect: String,
}

impl ConfigError {
    /// A defect found in `origin`.
    pub fn new(origin: impl std::fmt::Display, defect: impl std::fmt::Display) -> Self {
        Self { origin: origin.to_string(), defect: defect.to_string() }
    }
}

/// Joins the lines of a parser's message, so that every error is one line.
pub fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
