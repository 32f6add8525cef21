//! The planner: from a fingerprint to spacing, patch size, network topology and batch size.
//!
//! [`plan()`] makes [`Plans`] as one of nnU-Net v2's planners does; [`Plans::load`] reads those that nnU-Net, or this
//! crate, wrote. A [`Configuration`] out of either has been checked, and answers in three dimensions. Which [`Network`] it
//! asks for is a matter of name; [`NetworkShape::layers`] says what that consists of.

mod architecture;
mod configuration;
mod error;
mod estimate;
mod layers;
mod lift;
mod networks;
mod old_format;
mod patch;
mod planner;
mod plans;
mod presets;
mod spacing;
mod topology;

pub use architecture::{Architecture, NetworkShape};
pub use configuration::{Configuration, ResamplingSpec};
pub use error::PlanError;
pub use estimate::{feature_map_size, parameter_count};
pub use layers::{Block, ConvNorm, DecoderStage, Head, Layers, ResidualBlock, Upwards};
pub use networks::{NETWORKS, Network, PLAIN_CONV_UNET, RESIDUAL_ENCODER_UNET};
pub use patch::assumed_memory_gb;
pub use planner::{PlannerOptions, plan};
pub use plans::{ConfigurationEntry, InheritedConfiguration, Plans};
pub use presets::Planner;
pub use topology::Topology;
