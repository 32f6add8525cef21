//! Losses and their analytic gradients.
//!
//! Soft Dice sums over the whole batch, and the batch lies on several ranks, so the loss is computed in two steps with an
//! all-reduce between them: [`SegmentationLoss::sums`] over this rank's voxels, and, with the sums of all ranks,
//! [`SegmentationLoss::value`] and [`SegmentationLoss::gradient`]. Deep supervision weights one such loss per
//! resolution.

mod deep_supervision;
mod segmentation;
mod tile;

pub use deep_supervision::{downsample_labels, weights};
pub use segmentation::{GlobalSums, LossSums, LossValue, SegmentationLoss, Target};
