//! Binary focal loss of each channel (Lin et al. 2017): `-(1 - p)^gamma ln p`, with `p` the probability of the correct
//! class by the sigmoid of the logit.

use burn::tensor::TensorMetadata;
use burn_cubecl::{BoolElement, CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::loss_target::{Target, TargetArrays, voxel_loss_scale};
use super::runtime::{allocate, elementwise};

/// Lower bound of `1 - p`, because powers of 0 differ between devices.
const LEAST: f32 = 1e-30;

/// Sums each voxel's losses and computes their derivatives with respect to the logits; one unit per voxel.
#[cube(launch)]
fn focal_kernel(
    logits: &Array<f32>,
    target: TargetArrays,
    losses: &mut Array<f32>,
    derivatives: &mut Array<f32>,
    first_channel: usize,
    gamma: f32,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= target.labels.len() {
        terminate!();
    }
    let begin = voxel * target.channels;
    let label = target.labels[voxel];
    let mut loss = 0.0f32;
    for channel in 0..target.channels {
        let mut derivative = 0.0f32;
        if channel >= first_channel {
            let sign = 2.0f32 * target.contains(label, channel) - 1.0f32;
            let right = sign * logits[begin + channel];
            let decay = f32::exp(-f32::abs(right));
            let larger = 1.0f32 / (1.0f32 + decay);
            let smaller = decay * larger;
            let p = select(right > 0.0f32, larger, smaller);
            let rest = select(right > 0.0f32, smaller, larger);
            let logarithm = f32::log1p(decay) + max(-right, 0.0f32);
            let focus = f32::powf(max(rest, comptime!(LEAST)), gamma);
            loss += focus * logarithm;
            derivative = -sign * focus * (gamma * p * logarithm + rest);
        }
        derivatives[begin + channel] = derivative;
    }
    losses[voxel] = loss;
}

/// Adds the focal loss's contribution to a gradient; one unit per voxel.
#[cube(launch)]
fn add_scaled(
    derivatives: &Array<f32>,
    target: TargetArrays,
    global: &Array<f32>,
    scaler: &Array<f32>,
    gradient: &mut Array<f32>,
    weight: f32,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= target.labels.len() {
        terminate!();
    }
    let scale = voxel_loss_scale(global, scaler, weight);
    let scale = select(target.counts(target.labels[voxel]), scale, 0.0f32);
    for channel in 0..target.channels {
        let place = voxel * target.channels + channel;
        gradient[place] += scale * derivatives[place];
    }
}

/// Writes each voxel's loss to `losses` and returns the derivatives. All tensors are contiguous.
pub fn losses<R: CubeRuntime, BT: BoolElement>(
    logits: &CubeTensor<R>,
    target: &Target<R, BT>,
    losses: &CubeTensor<R>,
    gamma: f32,
) -> CubeTensor<R> {
    let derivatives = allocate(logits, logits.shape(), logits.dtype);
    let (count, dim) = elementwise(losses.shape().num_elements());
    focal_kernel::launch::<R>(
        &logits.client,
        count,
        dim,
        logits.clone().into_array_arg(),
        target.arg(),
        losses.clone().into_array_arg(),
        derivatives.clone().into_array_arg(),
        target.inner.params.first_channel(),
        gamma,
    );
    derivatives
}

/// Adds the derivatives to `gradient`, scaled by the global sums and the loss scale.
pub fn add_gradient<R: CubeRuntime, BT: BoolElement>(
    gradient: &CubeTensor<R>,
    derivatives: CubeTensor<R>,
    target: &Target<R, BT>,
    [global, scaler]: [CubeTensor<R>; 2],
    weight: f32,
) {
    let channels = gradient.shape()[4];
    let (count, dim) = elementwise(gradient.shape().num_elements() / channels);
    add_scaled::launch::<R>(
        &gradient.client,
        count,
        dim,
        derivatives.into_array_arg(),
        target.arg(),
        global.into_array_arg(),
        scaler.into_array_arg(),
        gradient.clone().into_array_arg(),
        weight,
    );
}
