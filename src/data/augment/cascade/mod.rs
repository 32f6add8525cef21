//! Augmentation of the previous stage's segmentation in a cascade.
//!
//! The label map is rotated, scaled and mirrored together with the patch, as the labels are. [`PreviousStage`] then
//! one-hot encodes its foreground classes as channels and corrupts them the way a previous stage errs: classes that are
//! dilated, eroded or smoothed ([`RandomBinaryOperator`]) and small missing components ([`RemoveRandomComponent`]). A
//! channel is a [`BitVolume`], so that the CPU processes 64 to 512 voxels at a time.

mod ball;
mod bits;
mod components;
mod previous_stage;
mod random_operator;
mod remove_component;

pub use ball::{Ball, Morphology};
pub use bits::BitVolume;
pub use components::Components;
pub use previous_stage::PreviousStage;
pub use random_operator::RandomBinaryOperator;
pub use remove_component::RemoveRandomComponent;
