//! Errors of planning and of plans files.

use std::path::PathBuf;

/// An error while creating, reading, writing or interpreting plans.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The plans file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },

    /// The plans file is not JSON, or a key is missing or has another type.
    #[error("{}: not a plans file of nnU-Net v2: {source}", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },

    /// The plans have no configuration of this name.
    #[error("no configuration {name:?} in {plans}; available: {}", available.join(", "))]
    UnknownConfiguration { name: String, plans: String, available: Vec<String> },

    /// A configuration is inconsistent, or its network is unsupported.
    #[error("{plans}: configuration {name:?}: {reason}")]
    Invalid { plans: String, name: String, reason: String },

    /// The network is unsupported.
    #[error("architecture.{key}: {reason}")]
    Architecture { key: String, reason: String },

    /// A fingerprint or option for which planning is impossible.
    #[error("cannot plan {dataset}: {reason}")]
    Unplannable { dataset: String, reason: String },
}
