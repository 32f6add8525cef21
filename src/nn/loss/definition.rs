//! Definition of a segmentation loss, and the sums and values that its computation passes on.

use super::topk::{Cutoff, TopKLosses};
use crate::ops::VoxelLoss;

/// Meaning of the output channels.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// One channel per class, background first; each voxel has one class.
    Classes,
    /// One channel per region, given as its labels; regions may overlap.
    Regions(Vec<Vec<i16>>),
}

/// Soft Dice and per-voxel loss of a batch of logits `(n, voxels, channels)` and labels `(n, voxels)`.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentationLoss {
    pub target: Target,
    /// Whether the loss includes the Dice term.
    pub dice: bool,
    pub voxels: VoxelLoss,
    /// Compute the Dice over the global batch (all ranks) instead of per sample.
    pub batch_dice: bool,
    /// Added to numerator and denominator of the Dice (`s` above).
    pub smooth: f64,
    /// Whether the Dice and the focal loss of classes include the background.
    pub include_background: bool,
    /// Cross-entropy weight per class, background first (PyTorch's `weight`); empty for none.
    pub class_weights: Vec<f32>,
    /// Voxels with this label are excluded.
    pub ignore_label: Option<i16>,
}

/// Loss sums over the voxels of one rank. Adding those of all ranks gives the sums of the global batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Intersection, activation and target sums per group (sample, or the batch) and Dice channel.
    pub dice: Vec<[f64; 3]>,
    /// Sum of the per-voxel losses.
    pub cross_entropy: f64,
    /// Number of losses in the sum, or the sum of their weights.
    pub count: f64,
    /// Losses of this rank's voxels, for top-k only.
    pub topk: Option<TopKLosses>,
}

/// Loss value and its terms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossValue {
    /// `dice + cross_entropy`.
    pub total: f64,
    /// Minus the mean soft Dice; 0 if the loss has no Dice term.
    pub dice: f64,
    /// Mean of the per-voxel losses, of any kind.
    pub cross_entropy: f64,
}

impl SegmentationLoss {
    /// Creates nnU-Net's default loss: Dice and cross-entropy, without background.
    pub fn new(target: Target, batch_dice: bool, ignore_label: Option<i16>) -> Self {
        Self {
            target,
            dice: true,
            voxels: VoxelLoss::CrossEntropy,
            batch_dice,
            smooth: 1e-5,
            include_background: false,
            class_weights: Vec::new(),
            ignore_label,
        }
    }

    /// Returns the loss's name for messages, e.g. `Dice + cross-entropy`.
    pub fn name(&self) -> String {
        let voxels = match self.voxels {
            VoxelLoss::None => "",
            VoxelLoss::CrossEntropy if self.class_weights.is_empty() => "cross-entropy",
            VoxelLoss::CrossEntropy => "weighted cross-entropy",
            VoxelLoss::TopK { .. } => "top-k cross-entropy",
            VoxelLoss::Focal { .. } => "focal",
        };
        let parts = [if self.dice { "Dice" } else { "" }, voxels];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" + ")
    }

    /// Returns the first channel included in the Dice and the focal loss.
    pub fn first_channel(&self) -> usize {
        usize::from(self.target == Target::Classes && !self.include_background)
    }

    /// Whether the gradient is computed from the logits, which cannot be recovered from the softmax.
    pub(super) fn needs_logits(&self) -> bool {
        matches!(self.voxels, VoxelLoss::Focal { .. })
    }
}

/// Sums needed to compute the gradient.
#[derive(Clone, Debug)]
pub struct GlobalSums {
    /// Sums of this rank.
    pub local: LossSums,
    /// Sums of all ranks. Its Dice sums are used for batch Dice only.
    pub global: LossSums,
    /// Number of ranks.
    pub world_size: usize,
}

impl GlobalSums {
    /// Wraps the sums of a single rank.
    pub fn single(sums: LossSums) -> Self {
        Self { local: sums.clone(), global: sums, world_size: 1 }
    }
}

/// Coefficients of the loss gradient. The derivative of the Dice term with respect to a voxel's activation `p` is
/// `dice_slope * y - dice_offset`; the derivative of the cross-entropy with respect to its logit is `voxel_scale * (p - y)`.
pub struct LossCoefficients<'a> {
    /// Per channel.
    pub dice_slope: Vec<f32>,
    /// Per channel.
    pub dice_offset: Vec<f32>,
    /// Factor of the per-voxel losses.
    pub voxel_scale: f32,
    /// Top-k cutoff, for [`VoxelLoss::TopK`] only.
    pub cutoff: Option<&'a Cutoff>,
}
