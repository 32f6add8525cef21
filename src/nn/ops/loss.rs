//! The loss of a batch on its device, for [`super::NnOps::device_loss`]. `crate::loss` defines it, and computes it on the
//! host where a backend has none.

use burn::tensor::{
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

/// What a batch of logits is held against.
pub struct LossTarget<B: Backend> {
    /// Labels `(n, z, y, x)`.
    pub labels: IntTensor<B>,
    /// `(labels, channels)`: 1 where a label belongs to a channel's class or region, else 0.
    pub members: IntTensor<B>,
    /// `(channels)`: the factors of the classes' cross-entropies, if [`LossRule::weighted`].
    pub weights: FloatTensor<B>,
    pub rule: LossRule,
}

/// The loss of a voxel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum VoxelRule {
    /// None.
    None,
    /// The cross-entropy of a class, or the binary ones of regions.
    CrossEntropy,
    /// A binary focal loss of each channel that has a part in the Dice (Lin et al. 2017).
    Focal { gamma: f32 },
}

/// The kind of loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossRule {
    /// Channels are classes: softmax, and a Dice without the first. Else regions: sigmoid, and a Dice of all.
    pub softmax: bool,
    /// Whether the Dice is part of the loss.
    pub dice: bool,
    pub voxels: VoxelRule,
    /// Classes: whether a factor goes with the cross-entropy of each.
    pub weighted: bool,
    /// Classes: the Dice is of the first channel too.
    pub include_background: bool,
    /// Voxels with this label do not count.
    pub ignore_label: Option<i32>,
    /// Dice over the whole batch (of all ranks) instead of per sample.
    pub batch_dice: bool,
    /// Added to numerator and denominator of the Dice.
    pub smooth: f32,
}

impl LossRule {
    /// The first channel that has a part in the Dice and in the focal loss.
    pub fn first_channel(&self) -> usize {
        usize::from(self.softmax && !self.include_background)
    }
}

/// What is found in a batch of logits.
#[derive(Clone, Debug)]
pub struct LossParts<B: Backend> {
    /// Softmax or sigmoid `(n, z, y, x, channels)`.
    pub activations: FloatTensor<B>,
    /// Of a focal loss, the derivatives of the voxels' losses with respect to the logits.
    pub slopes: Option<FloatTensor<B>>,
    /// Per group (sample, or the batch) and channel the sums of intersection, activation and target, then the sum of the
    /// voxels' losses and their number, or the sum of their weights.
    pub sums: FloatTensor<B>,
}

/// What a gradient is computed from.
pub struct LossGradientInput<B: Backend> {
    /// Of this rank, from [`DeviceLoss::parts`].
    pub parts: LossParts<B>,
    /// The sums of all ranks, added up.
    pub global: FloatTensor<B>,
    /// The loss scale is its first value: [`super::Scaler`].
    pub scaler: FloatTensor<B>,
    /// Times the loss scale, the factor of the gradient.
    pub weight: f32,
    pub world_size: usize,
}

/// The two steps of the loss, and what is counted of its activations; between the steps ranks add up their sums.
pub struct DeviceLoss<B: Backend> {
    /// Activations and sums of logits `(n, z, y, x, channels)`.
    pub parts: fn(logits: FloatTensor<B>, target: &LossTarget<B>) -> LossParts<B>,
    /// The same sums of decisions (the largest activation, or those above one half) in place of activations, of the whole
    /// batch: true positives, positives and truths per channel. The last two values mean nothing.
    pub counts: fn(activations: FloatTensor<B>, target: &LossTarget<B>) -> FloatTensor<B>,
    /// The gradient with respect to this rank's logits, as `crate::loss::SegmentationLoss::gradient` defines it.
    pub gradient: fn(input: LossGradientInput<B>, target: &LossTarget<B>) -> FloatTensor<B>,
}
