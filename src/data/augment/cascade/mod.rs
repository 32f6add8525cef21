//! What a cascade does to the segmentation of its previous stage on the way into the network.
//!
//! The label map is turned, scaled and mirrored with the patch, as the labels are. [`PreviousStage`] then makes a channel of
//! zeros and ones of each foreground class, and spoils these channels as a previous stage's mistakes would: grown, shrunk
//! and smoothed classes ([`RandomBinaryOperator`]), small parts that were missed ([`RemoveRandomComponent`]). A channel is a
//! [`BitVolume`], of which a processor takes 64 to 512 voxels at a time.

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
