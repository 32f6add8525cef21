//! Binary focal loss of each channel (Lin et al. 2017): `-(1 - p)^gamma ln p`, with `p` the probability of the correct
//! class by the sigmoid of the logit.

use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{allocate, elementwise};
use super::loss::{Target, belongs_to, scale_of_voxels};

/// Lower bound of `1 - p`, because powers of 0 differ between devices.
const LEAST: f32 = 1e-30;

/// Sums each voxel's losses and computes their derivatives with respect to the logits; one unit per voxel.
#[cube(launch)]
fn focal_kernel(
    logits: &Array<f32>,
    labels: &Array<i32>,
    membership: &Array<i32>,
    losses: &mut Array<f32>,
    focal_derivatives: &mut Array<f32>,
    channels: usize,
    first: usize,
    gamma: f32,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= labels.len() {
        terminate!();
    }
    let begin = voxel * channels;
    let label = labels[voxel];
    let mut loss = 0.0f32;
    for channel in 0..channels {
        let mut slope = 0.0f32;
        if channel >= first {
            let sign = 2.0f32 * belongs_to(membership, label, channel, channels) - 1.0f32;
            let right = sign * logits[begin + channel];
            let decay = f32::exp(-f32::abs(right));
            let larger = 1.0f32 / (1.0f32 + decay);
            let smaller = decay * larger;
            let p = select(right > 0.0f32, larger, smaller);
            let rest = select(right > 0.0f32, smaller, larger);
            let logarithm = f32::log1p(decay) + max(-right, 0.0f32);
            let focus = f32::powf(max(rest, comptime!(LEAST)), gamma);
            loss += focus * logarithm;
            slope = -sign * focus * (gamma * p * logarithm + rest);
        }
        focal_derivatives[begin + channel] = slope;
    }
    losses[voxel] = loss;
}

/// Adds the focal loss's contribution to a gradient; one unit per voxel.
#[cube(launch)]
fn add_scaled(
    focal_derivatives: &Array<f32>,
    labels: &Array<i32>,
    global: &Array<f32>,
    scaler: &Array<f32>,
    gradient: &mut Array<f32>,
    channels: usize,
    weight: f32,
    ignore_label: i32,
    #[comptime] has_ignore_label: bool,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= labels.len() {
        terminate!();
    }
    let mut scale = scale_of_voxels(global, scaler, weight);
    if comptime!(has_ignore_label) {
        scale = select(labels[voxel] == ignore_label, 0.0f32, scale);
    }
    for channel in 0..channels {
        let place = voxel * channels + channel;
        gradient[place] += scale * focal_derivatives[place];
    }
}

/// Writes each voxel's loss to `losses` and returns the derivatives. All tensors are contiguous.
pub fn losses<R: CubeRuntime>(
    logits: &CubeTensor<R>,
    target: &Target<R>,
    losses: &CubeTensor<R>,
    gamma: f32,
) -> CubeTensor<R> {
    let channels = logits.shape()[4];
    let focal_derivatives = allocate(logits, logits.shape(), logits.dtype);
    let (count, dim) = elementwise(logits.shape().num_elements() / channels);
    focal_kernel::launch::<R>(
        &logits.client,
        count,
        dim,
        logits.clone().into_array_arg(),
        target.labels.clone().into_array_arg(),
        target.membership.clone().into_array_arg(),
        losses.clone().into_array_arg(),
        focal_derivatives.clone().into_array_arg(),
        channels,
        target.params.first_channel(),
        gamma,
    );
    focal_derivatives
}

/// Adds the derivatives to `gradient`, scaled by the global sums and the loss scale.
pub fn add_gradient<R: CubeRuntime>(
    gradient: &CubeTensor<R>,
    focal_derivatives: CubeTensor<R>,
    target: &Target<R>,
    [global, scaler]: [CubeTensor<R>; 2],
    weight: f32,
) {
    let channels = gradient.shape()[4];
    let (count, dim) = elementwise(gradient.shape().num_elements() / channels);
    add_scaled::launch::<R>(
        &gradient.client,
        count,
        dim,
        focal_derivatives.into_array_arg(),
        target.labels.clone().into_array_arg(),
        global.into_array_arg(),
        scaler.into_array_arg(),
        gradient.clone().into_array_arg(),
        channels,
        weight,
        target.params.ignore_label.unwrap_or(0),
        target.params.ignore_label.is_some(),
    );
}
