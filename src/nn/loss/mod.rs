//! Segmentation losses and their analytic gradients.
//!
//! Soft Dice sums over the global batch, which is distributed over ranks, so the loss is computed in two steps with an
//! all-reduce between them: [`SegmentationLoss::sums`] over this rank's voxels, then [`SegmentationLoss::value`] and
//! [`SegmentationLoss::gradient`] from the sums of all ranks. For top-k losses, [`select_topk`] runs between the
//! two, also over all ranks. Deep supervision weights one such loss per resolution.

mod deep_supervision;
mod definition;
mod segmentation;
mod tile;
mod topk;

pub use crate::ops::VoxelLoss;
pub use deep_supervision::{downsample_labels, head_weights};
pub use definition::{GlobalSums, LossSums, LossValue, SegmentationLoss, Target};
pub use segmentation::select_topk;
pub use topk::{Cutoff, TopKLosses};
