//! Postprocessing: keeping the largest connected component, where cross-validation shows that this helps.
//!
//! [`determine`] tries it on predictions with known truth, first for all foreground together, then for each class or region,
//! and keeps what raises the Dice, by the rules of nnU-Net v2 (`postprocessing/remove_connected_components.py`). The result,
//! [`Postprocessing`], is applied to new predictions by [`apply_to_folder`].

mod components;
mod determine;
mod folder;
mod steps;

pub use components::keep_largest;
pub use determine::{DetermineOptions, Determined, Trial, determine, determine_folder};
pub use folder::apply_to_folder;
pub use steps::{KeepLargest, Postprocessing};
