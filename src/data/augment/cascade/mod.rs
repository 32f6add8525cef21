//! Augmentation of the previous stage's segmentation in a cascade.
//!
//! The label map is rotated, scaled and mirrored together with the patch, as the labels are. [`PreviousStage`] then
//! one-hot encodes its foreground classes as channels and corrupts them the way a previous stage errs: classes that are
//! dilated, eroded or smoothed (`RandomBinaryOperator`) and small missing components (`RemoveRandomComponent`). A
//! channel is a [`BitVolume`], so that the CPU processes 64 to 512 voxels at a time.

mod bit_volume;
mod morphology;
mod previous_stage;

pub use bit_volume::BitVolume;
pub use previous_stage::PreviousStage;
