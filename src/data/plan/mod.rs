//! The planner: derives spacing, patch size, network topology and batch size from a dataset fingerprint.
//!
//! [`plan()`] creates [`Plans`] like one of nnU-Net v2's planners; [`Plans::load`] reads plans written by nnU-Net or by
//! this crate. A [`Configuration`] from either is validated, and its `*3` methods return 3D shapes. The plans name a
//! [`Network`]; [`NetworkShape::layers`] lists its layers.

mod architecture;
mod configuration;
mod network;
mod networks;
mod patch;
mod planner;
mod plans;
mod presets;
mod spacing;
mod training_images;

use std::path::PathBuf;

pub use architecture::Architecture;
pub use configuration::{Configuration, ResamplingSpec};
pub use network::{
    Block, ConvNorm, DecoderStage, Head, Layers, Network, NetworkShape, ResidualBlock, Upsample, feature_map_size,
    parameter_count,
};
pub use networks::{NETWORKS, PLAIN_CONV_UNET, RESIDUAL_ENCODER_UNET};
pub use patch::{Topology, estimate_memory_gb};
pub use planner::{PlannerOptions, plan};
pub use plans::{ConfigurationEntry, InheritedConfiguration, Plans};
pub use presets::Planner;
pub use training_images::TrainingImages;

/// An error while creating, reading, writing or interpreting plans.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The plans file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },

    /// The plans file is not JSON, or a key is missing or has another type.
    #[error("{}: not a plans file of nnU-Net v2: {defect}", path.display())]
    Malformed { path: PathBuf, defect: String },

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
