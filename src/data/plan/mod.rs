//! The planner: derives spacing, patch size, network topology and batch size from a dataset fingerprint.
//!
//! [`plan()`] creates [`Plans`] like one of nnU-Net v2's planners; [`Plans::load`] reads plans written by nnU-Net or by
//! this crate. A [`Configuration`] from either is validated, and its `*3` methods return 3D shapes. The plans name a
//! [`Network`]; [`NetworkShape::layers`] lists its layers.

mod architecture;
mod configuration;
mod error;
mod layers;
mod networks;
mod old_format;
mod patch;
mod planner;
mod plans;
mod presets;
mod size_estimate;
mod spacing;
mod to_3d;
mod topology;

pub use architecture::{Architecture, NetworkShape};
pub use configuration::{Configuration, ResamplingSpec};
pub use error::PlanError;
pub use layers::{Block, ConvNorm, DecoderStage, Head, Layers, ResidualBlock, Upsample};
pub use networks::{NETWORKS, Network, PLAIN_CONV_UNET, RESIDUAL_ENCODER_UNET};
pub use patch::estimate_memory_gb;
pub use planner::{PlannerOptions, plan};
pub use plans::{ConfigurationEntry, InheritedConfiguration, Plans};
pub use presets::Planner;
pub use size_estimate::{feature_map_size, parameter_count};
pub use topology::Topology;
