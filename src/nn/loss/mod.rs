//! Losses and their analytic gradients.
//!
//! Soft Dice sums over the whole batch, and the batch lies on several ranks, so the loss is computed in two steps with an
//! all-reduce between them: [`SegmentationLoss::sums`] over this rank's voxels, and, with the sums of all ranks,
//! [`SegmentationLoss::value`] and [`SegmentationLoss::gradient`]. Where only the hardest voxels count, [`select_hardest`]
//! comes in between, for they too are those of all ranks. Deep supervision weights one such loss per resolution.

mod deep_supervision;
mod hardest;
mod segmentation;
mod tile;

pub use deep_supervision::{downsample_labels, weights};
pub use hardest::{Cutoff, Hardest, select_hardest};
pub use segmentation::{GlobalSums, LossSums, LossValue, SegmentationLoss, Target, VoxelLoss};
