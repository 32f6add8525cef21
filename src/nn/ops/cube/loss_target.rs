//! Target of the loss in a kernel: labels, and the tables by label.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime};
use cubecl::prelude::*;

use super::runtime::contiguous;
use crate::ops::LossTarget;

/// nnU-Net's lower bound of a loss's denominator.
pub const MIN_DENOMINATOR: f32 = 1e-8;

/// Properties of the loss for which a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetKind {
    /// Whether channels are classes (softmax) or regions (sigmoid).
    pub softmax: bool,
    /// Whether the cross-entropy is weighted per class.
    pub weighted: bool,
    /// Whether a label is excluded.
    pub has_ignore_label: bool,
}

/// [`LossTarget`] in a kernel.
#[derive(CubeType, CubeLaunch)]
pub struct TargetArrays {
    /// Label of each voxel.
    pub labels: Array<i32>,
    /// `(labels, channels)`: 1 if a label belongs to a channel, else 0.
    pub membership: Array<i32>,
    /// Cross-entropy weights of the classes; unused unless `kind.weighted`.
    pub class_weights: Array<f32>,
    /// Excluded label; unused unless `kind.has_ignore_label`.
    pub ignore_label: i32,
    pub channels: usize,
    #[cube(comptime)]
    pub kind: TargetKind,
}

#[cube]
impl TargetArrays {
    /// Returns 1 if the label belongs to the channel, else 0.
    pub fn contains(&self, label: i32, channel: usize) -> f32 {
        let place = label as usize * self.channels + channel;
        let mut result = 0.0f32;
        if label >= 0 && place < self.membership.len() {
            result = self.membership[place] as f32;
        }
        result
    }

    /// Returns the class weight of a label. The value for ignored labels is irrelevant.
    pub fn class_weight(&self, label: i32) -> f32 {
        let mut weight = 1.0f32;
        if label >= 0 && (label as usize) < self.class_weights.len() {
            weight = self.class_weights[label as usize];
        }
        weight
    }

    /// Whether voxels with this label are part of the loss.
    pub fn counts(&self, label: i32) -> bool {
        let mut counts = true;
        if comptime!(self.kind.has_ignore_label) {
            counts = label != self.ignore_label;
        }
        counts
    }
}

/// Returns the scale of the per-voxel losses' gradient: `weight` times the loss scale, divided by the number of losses.
#[cube]
pub fn voxel_loss_scale(global: &Array<f32>, scaler: &Array<f32>, weight: f32) -> f32 {
    let number = global[global.len() - 1];
    select(number > 0.0f32, weight * scaler[0] / max(number, comptime!(MIN_DENOMINATOR)), 0.0f32)
}

/// Target of a loss whose logits have `channels` channels, with contiguous tensors.
pub struct Target<R: CubeRuntime, BT: BoolElement> {
    pub inner: LossTarget<CubeBackend<R, f32, i32, BT>>,
    channels: usize,
}

impl<R: CubeRuntime, BT: BoolElement> Target<R, BT> {
    pub fn new(target: &LossTarget<CubeBackend<R, f32, i32, BT>>, channels: usize) -> Self {
        let inner = LossTarget {
            labels: contiguous(target.labels.clone()),
            membership: contiguous(target.membership.clone()),
            weights: contiguous(target.weights.clone()),
            params: target.params,
        };
        Self { inner, channels }
    }

    /// Returns the kernel argument.
    pub fn arg(&self) -> TargetArraysLaunch<R> {
        let LossTarget { labels, membership, weights, params } = &self.inner;
        TargetArraysLaunch::new(
            labels.clone().into_array_arg(),
            membership.clone().into_array_arg(),
            weights.clone().into_array_arg(),
            params.ignore_label.unwrap_or(0),
            self.channels,
            TargetKind {
                softmax: params.softmax,
                weighted: params.weighted,
                has_ignore_label: params.ignore_label.is_some(),
            },
        )
    }
}
