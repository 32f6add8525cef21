//! What can go wrong with plans.

use std::path::PathBuf;

/// A plan that cannot be made, read, written or followed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The plans file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },

    /// The plans file is not JSON, or a key is missing or has another type.
    #[error("{}: not a plans file of nnU-Net v2: {source}", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },

    /// A name that is not among the plans' configurations.
    #[error("no configuration {name:?} in {plans}; available: {}", available.join(", "))]
    UnknownConfiguration { name: String, plans: String, available: Vec<String> },

    /// A configuration whose parts contradict each other, or whose network cannot be built.
    #[error("{plans}: configuration {name:?}: {reason}")]
    Invalid { plans: String, name: String, reason: String },

    /// A network that this crate cannot build.
    #[error("architecture.{key}: {reason}")]
    Architecture { key: String, reason: String },

    /// A fingerprint or option from which no plan follows.
    #[error("cannot plan {dataset}: {reason}")]
    Unplannable { dataset: String, reason: String },
}
