//! On-device loss of a batch, for [`super::NnOps::device_loss`]. `crate::loss` defines the loss and computes it on the
//! host for backends without this.

use burn::tensor::{
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

/// Target of the loss.
pub struct LossTarget<B: Backend> {
    /// Labels, shape `(n, z, y, x)`.
    pub labels: IntTensor<B>,
    /// Shape `(labels, channels)`: 1 if a label belongs to a channel's class or region, else 0.
    pub membership: IntTensor<B>,
    /// Cross-entropy weights of the classes, shape `(channels)`; used if [`LossParams::weighted`].
    pub weights: FloatTensor<B>,
    pub params: LossParams,
}

/// Per-voxel loss term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum VoxelLoss {
    /// No per-voxel loss: Dice only.
    None,
    /// Cross-entropy of classes; binary cross-entropy of each region.
    CrossEntropy,
    /// Mean of the largest cross-entropies of classes (nnU-Net's `TopKLoss`), over this percentage of all voxels of the
    /// global batch. Ignored voxels are included with a loss of 0. [`crate::loss::select_topk`] selects the voxels.
    TopK { percent: f64 },
    /// Binary focal loss of each channel (Lin et al. 2017), as MONAI's `FocalLoss` without `alpha`.
    Focal { gamma: f32 },
}

/// Parameters of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossParams {
    /// True if channels are classes (softmax, Dice without the first channel); false if they are regions (sigmoid, Dice
    /// of all).
    pub softmax: bool,
    /// Whether the loss includes the Dice term.
    pub dice: bool,
    /// Not [`VoxelLoss::TopK`], whose voxels are selected on the host.
    pub voxel_loss: VoxelLoss,
    /// For classes: whether the cross-entropy is weighted per class.
    pub weighted: bool,
    /// For classes: whether the Dice includes the first channel, the background.
    pub include_background: bool,
    /// Voxels with this label are excluded.
    pub ignore_label: Option<i32>,
    /// Compute the Dice over the global batch (all ranks) instead of per sample.
    pub batch_dice: bool,
    /// Added to numerator and denominator of the Dice.
    pub smooth: f32,
}

impl LossParams {
    /// Returns the first channel included in the Dice and the focal loss.
    pub fn first_channel(&self) -> usize {
        usize::from(self.softmax && !self.include_background)
    }
}

/// Output of the loss's forward pass.
#[derive(Clone, Debug)]
pub struct LossParts<B: Backend> {
    /// Softmax or sigmoid, shape `(n, z, y, x, channels)`.
    pub activations: FloatTensor<B>,
    /// Focal loss only: derivatives of the per-voxel losses with respect to the logits.
    pub focal_derivatives: Option<FloatTensor<B>>,
    /// Sums of intersection, activation and target per group (sample, or the batch) and channel, then the sum of the
    /// per-voxel losses and their number (or the sum of their weights).
    pub sums: FloatTensor<B>,
}

/// Input of the loss gradient.
pub struct LossGradientInput<B: Backend> {
    /// Output of [`DeviceLoss::parts`] on this rank.
    pub parts: LossParts<B>,
    /// Sums of `parts` over all ranks.
    pub global: FloatTensor<B>,
    /// Values of [`super::GradScaler`]; the first is the loss scale.
    pub scaler: FloatTensor<B>,
    /// Factor of the gradient, in addition to the loss scale.
    pub weight: f32,
    pub world_size: usize,
}

/// Loss functions of a device. The ranks all-reduce their sums between `parts` and `gradient`.
pub struct DeviceLoss<B: Backend> {
    /// Computes activations and sums from logits `(n, z, y, x, channels)`.
    pub parts: fn(logits: FloatTensor<B>, target: &LossTarget<B>) -> LossParts<B>,
    /// Computes the same sums over the whole batch with decisions (argmax, or activations above one half) in place of
    /// activations: true positives, predicted positives and actual positives per channel. The last two values are
    /// meaningless.
    pub counts: fn(activations: FloatTensor<B>, target: &LossTarget<B>) -> FloatTensor<B>,
    /// Computes the gradient with respect to this rank's logits, as defined by
    /// `crate::loss::SegmentationLoss::gradient`.
    pub gradient: fn(input: LossGradientInput<B>, target: &LossTarget<B>) -> FloatTensor<B>,
}
