//! The planner: from a fingerprint to spacing, patch size, network topology and batch size.
//!
//! [`plan()`] makes [`Plans`] as nnU-Net v2's default planner does; [`Plans::load`] reads those that nnU-Net, or this
//! crate, wrote. A [`Configuration`] out of either has been checked, and answers in three dimensions.

mod architecture;
mod configuration;
mod error;
mod estimate;
mod old_format;
mod patch;
mod planner;
mod plans;
mod spacing;
mod topology;

pub use architecture::{Architecture, NetworkShape};
pub use configuration::{Configuration, ResamplingSpec};
pub use error::PlanError;
pub use estimate::{feature_map_size, parameter_count};
pub use patch::assumed_memory_gb;
pub use planner::{PlannerOptions, plan};
pub use plans::{ConfigurationEntry, InheritedConfiguration, Plans};
pub use topology::Topology;
