//! The planner: from a fingerprint to spacing, patch size, network topology and batch size.

mod plans;

pub use plans::{
    Architecture, Configuration, ConfigurationEntry, InheritedConfiguration, NetworkShape, PlanError, Plans,
};
