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
    pub rule: LossRule,
}

/// The kind of loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossRule {
    /// Channels are classes: softmax, cross-entropy, and a Dice without the first. Else regions: sigmoid, binary
    /// cross-entropy, and a Dice of all.
    pub softmax: bool,
    /// Whether the Dice is part of the loss.
    pub dice: bool,
    /// Whether the cross-entropy is part of the loss.
    pub cross_entropy: bool,
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
    /// The first channel that has a part in the Dice.
    pub fn first_channel(&self) -> usize {
        usize::from(self.softmax && !self.include_background)
    }
}

/// What a gradient is computed from.
pub struct LossGradientInput<B: Backend> {
    /// From [`DeviceLoss::sums`].
    pub activations: FloatTensor<B>,
    /// Of this rank.
    pub local: FloatTensor<B>,
    /// Of all ranks: their sum.
    pub global: FloatTensor<B>,
    /// The loss scale is its first value: [`super::Scaler`].
    pub scaler: FloatTensor<B>,
    /// Times the loss scale, the factor of the gradient.
    pub weight: f32,
    pub world_size: usize,
}

/// The two steps of the loss, and what is counted of its activations; between the steps ranks add up their sums.
pub struct DeviceLoss<B: Backend> {
    /// Activations of logits `(n, z, y, x, channels)`, and the sums: per group (sample, or the batch) and channel the sums
    /// of intersection, activation and target, then the sum of the cross-entropies and their number.
    pub sums: fn(logits: FloatTensor<B>, target: &LossTarget<B>) -> [FloatTensor<B>; 2],
    /// The same sums of decisions (the largest activation, or those above one half) in place of activations, of the whole
    /// batch: true positives, positives and truths per channel. The last two values mean nothing.
    pub counts: fn(activations: FloatTensor<B>, target: &LossTarget<B>) -> FloatTensor<B>,
    /// The gradient with respect to this rank's logits, as `crate::loss::SegmentationLoss::gradient` defines it.
    pub gradient: fn(input: LossGradientInput<B>, target: &LossTarget<B>) -> FloatTensor<B>,
}
