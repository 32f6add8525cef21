//! Postprocessing: keeping only the largest connected component where cross-validation shows an improvement.
//!
//! [`determine`] tries it on predictions with known reference, first for all foreground together, then for each class
//! or region, and selects the steps that raise the Dice, by the rules of nnU-Net v2
//! (`postprocessing/remove_connected_components.py`). [`apply_to_folder`] applies the resulting [`Postprocessing`] to
//! new predictions.

mod components;
mod determine;
mod steps;

pub use components::keep_largest;
pub use determine::{DetermineOptions, Determined, Trial, determine, determine_folder};
pub use steps::apply_to_folder;
pub use steps::{KeepLargest, Postprocessing};
