//! Soft Dice and per-voxel losses on the device, without synchronizing with the host. The focal loss is in
//! [`super::focal`].
//!
//! The forward pass ([`parts`]) replaces the logits by activations and each voxel by its loss, then sums both in two
//! levels: the voxels of a cube, then the cubes of a group (a sample, or the batch). The ranks add up the sums. The
//! backward pass ([`gradient`]) computes each logit's gradient from its activation and the sums.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::focal;
use super::loss_target::{MIN_DENOMINATOR, Target, TargetArrays, voxel_loss_scale};
use super::runtime::{RowGeometry, Rows, UNITS, allocate, contiguous, elementwise, reuse};
use crate::ops::{LossGradientInput, LossParams, LossParts, LossTarget, VoxelLoss};

/// Number of sums per channel: intersection, activation and target; for channel 0 also the per-voxel losses and their
/// number.
const QUANTITIES: usize = 5;

/// Replaces logits by softmax or sigmoid and optionally computes each voxel's cross-entropy; one unit per voxel.
#[cube(launch)]
fn activate(
    logits: &Array<f32>,
    target: TargetArrays,
    activations: &mut Array<f32>,
    losses: &mut Array<f32>,
    #[comptime] cross_entropy: bool,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= target.labels.len() {
        terminate!();
    }
    let channels = target.channels;
    let begin = voxel * channels;
    let label = target.labels[voxel];
    let mut loss = 0.0f32;
    if comptime!(target.kind.softmax) {
        let mut largest = logits[begin];
        for channel in 1..channels {
            largest = max(largest, logits[begin + channel]);
        }
        let mut total = 0.0f32;
        let mut lead = 0.0f32;
        for channel in 0..channels {
            let below = logits[begin + channel] - largest;
            if label == channel as i32 {
                lead = below;
            }
            total += f32::exp(below);
        }
        for channel in 0..channels {
            activations[begin + channel] = f32::exp(logits[begin + channel] - largest) / total;
        }
        loss = f32::ln(total) - lead;
        if comptime!(target.kind.weighted) {
            loss *= target.class_weight(label);
        }
    } else {
        for channel in 0..channels {
            let logit = logits[begin + channel];
            let y = target.contains(label, channel);
            let decay = f32::exp(-f32::abs(logit));
            loss += max(logit, 0.0f32) - logit * y + f32::log1p(decay);
            let larger = 1.0f32 / (1.0f32 + decay);
            activations[begin + channel] = select(logit >= 0.0f32, larger, decay * larger);
        }
    }
    if comptime!(cross_entropy) {
        losses[voxel] = loss;
    }
}

/// Writes 1 for predicted channels (argmax, or activation above one half), 0 for others; one unit per voxel.
#[cube(launch)]
fn argmax_decisions(activations: &Array<f32>, decisions: &mut Array<f32>, channels: usize, #[comptime] softmax: bool) {
    let begin = ABSOLUTE_POS * channels;
    if begin >= activations.len() {
        terminate!();
    }
    if comptime!(softmax) {
        let mut best = 0usize;
        for channel in 1..channels {
            // The first maximum wins, as in `argmax`.
            if activations[begin + channel] > activations[begin + best] {
                best = channel;
            }
        }
        for channel in 0..channels {
            decisions[begin + channel] = select(channel == best, 1.0f32, 0.0f32);
        }
    } else {
        for channel in 0..channels {
            decisions[begin + channel] = select(activations[begin + channel] > 0.5f32, 1.0f32, 0.0f32);
        }
    }
}

/// Sums a value over the units of one channel; the unit of the first row has the result.
#[cube]
fn sum_of_rows(value: f32, shared: &mut SharedMemory<f32>, channels: usize, stride: usize) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    let mut sum = value;
    if unit < channels {
        for row in 1..stride {
            sum += shared[row * channels + unit];
        }
    }
    sum
}

/// Computes the sums over the voxels of a cube, per channel; rows are voxels, columns are channels.
#[cube(launch)]
fn partial_sums(
    activations: &Array<f32>,
    target: TargetArrays,
    losses: &Array<f32>,
    partials: &mut Array<f32>,
    rows: Rows,
    losses_per_voxel: f32,
) {
    let unit = rows.unit();
    let channel = unit.column;
    let channels = rows.columns;
    let mut intersection = 0.0f32;
    let mut activation = 0.0f32;
    let mut truth = 0.0f32;
    let mut loss = 0.0f32;
    let mut number = 0.0f32;
    let mut row = unit.begin;
    while row < unit.end {
        let voxel = unit.sample * rows.rows + row;
        let label = target.labels[voxel];
        if target.counts(label) {
            let y = target.contains(label, channel);
            let p = activations[voxel * channels + channel];
            intersection += p * y;
            activation += p;
            truth += y;
            if channel == 0 {
                loss += losses[voxel];
                number += if comptime!(target.kind.weighted) { target.class_weight(label) } else { losses_per_voxel };
            }
        }
        row += unit.stride;
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS));
    let intersection = sum_of_rows(intersection, &mut shared, channels, unit.stride);
    let activation = sum_of_rows(activation, &mut shared, channels, unit.stride);
    let truth = sum_of_rows(truth, &mut shared, channels, unit.stride);
    let loss = sum_of_rows(loss, &mut shared, channels, unit.stride);
    let number = sum_of_rows(number, &mut shared, channels, unit.stride);
    if unit.is_first {
        let cube = unit.sample * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
        let place = cube * comptime!(QUANTITIES) * channels + channel;
        partials[place] = intersection;
        partials[place + channels] = activation;
        partials[place + 2 * channels] = truth;
        partials[place + 3 * channels] = loss;
        partials[place + 4 * channels] = number;
    }
}

/// Computes the sums over all parts, one cube per sum: the Dice sums per group and channel, then the last two.
#[cube(launch)]
fn total_sums(partials: &Array<f32>, sums: &mut Array<f32>, channels: usize, groups: usize, parts_of_group: usize) {
    let place = CUBE_POS_X as usize;
    let dice = groups * channels * 3;
    let mut first = 0usize;
    let mut count = groups * parts_of_group;
    let mut quantity = 3usize;
    let mut channel = 0usize;
    if place < dice {
        quantity = place % 3;
        channel = place / 3 % channels;
        first = place / (3 * channels) * parts_of_group;
        count = parts_of_group;
    } else {
        quantity += place - dice;
    }
    let mut sum = 0.0f32;
    let mut index = UNIT_POS as usize;
    while index < count {
        sum += partials[((first + index) * comptime!(QUANTITIES) + quantity) * channels + channel];
        index += comptime!(UNITS);
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS));
    let sum = sum_of_rows(sum, &mut shared, 1usize, comptime!(UNITS));
    if UNIT_POS == 0 {
        sums[place] = sum;
    }
}

/// Sums that the gradient needs, and the loss scale.
#[derive(CubeType, CubeLaunch)]
struct SumArrays {
    /// Sums of the Dice: the global ones for the batch Dice, otherwise this rank's.
    dice: Array<f32>,
    /// Sums over all ranks.
    global: Array<f32>,
    /// Values of [`crate::ops::GradScaler`].
    scaler: Array<f32>,
}

/// Factors of the loss terms' gradients, and the Dice's smoothing term.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct LossWeights {
    cross_entropy: f32,
    dice: f32,
    smooth: f32,
}

/// Returns the derivative of the Dice term with respect to an activation. The channel's sums begin at `place`.
#[cube]
fn dice_derivative(sums: &SumArrays, place: usize, y: f32, weights: LossWeights) -> f32 {
    let intersection = sums.dice[place];
    let denominator = max(sums.dice[place + 1] + sums.dice[place + 2] + weights.smooth, comptime!(MIN_DENOMINATOR));
    let dice = (2.0f32 * intersection + weights.smooth) / denominator;
    let scale = weights.dice * sums.scaler[0];
    scale * 2.0f32 / denominator * y - scale * dice / denominator
}

/// Computes the gradient with respect to the logits; one unit per voxel.
///
/// With `d` the derivatives of the Dice with respect to the activations `p`, the gradient of a logit is
/// `p (d - Σ p d)` for softmax and `p (1 - p) d` for sigmoid. That of the cross-entropy is `p - y`.
#[cube(launch)]
fn gradient_kernel(
    activations: &Array<f32>,
    target: TargetArrays,
    sums: SumArrays,
    gradient: &mut Array<f32>,
    weights: LossWeights,
    voxels_per_group: usize,
    first_dice_channel: usize,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= target.labels.len() {
        terminate!();
    }
    let channels = target.channels;
    let begin = voxel * channels;
    let label = target.labels[voxel];
    let counts = target.counts(label);
    let first_sum = voxel / voxels_per_group * channels * 3;
    let mut cross_entropy = voxel_loss_scale(&sums.global, &sums.scaler, weights.cross_entropy);
    if comptime!(target.kind.weighted) {
        cross_entropy *= target.class_weight(label);
    }

    let mut projection = 0.0f32;
    if comptime!(target.kind.softmax) {
        for channel in first_dice_channel..channels {
            let y = target.contains(label, channel);
            let derivative = dice_derivative(&sums, first_sum + channel * 3, y, weights);
            projection += derivative * activations[begin + channel];
        }
    }
    for channel in 0..channels {
        let y = target.contains(label, channel);
        let p = activations[begin + channel];
        let mut derivative = 0.0f32;
        if channel >= first_dice_channel {
            derivative = dice_derivative(&sums, first_sum + channel * 3, y, weights);
        }
        let dice =
            if comptime!(target.kind.softmax) { p * (derivative - projection) } else { p * (1.0f32 - p) * derivative };
        let value = dice + cross_entropy * (p - y);
        gradient[begin + channel] = select(counts, value, 0.0f32);
    }
}

/// Computes activations and sums, see [`crate::ops::DeviceLoss::parts`]. The number of channels must not exceed the
/// units per cube.
pub fn parts<R: CubeRuntime, BT: BoolElement>(
    logits: CubeTensor<R>,
    target: &LossTarget<CubeBackend<R, f32, i32, BT>>,
) -> LossParts<CubeBackend<R, f32, i32, BT>> {
    let [samples, z, y, x, channels] = logits.shape().dims();
    let voxels = z * y * x;
    let target = Target::new(target, channels);
    let logits = contiguous(logits);
    let client = logits.client.clone();
    let losses = allocate(&logits, [samples * voxels], DType::F32);
    let focal_derivatives = match target.inner.params.voxel_loss {
        VoxelLoss::Focal { gamma } => Some(focal::losses(&logits, &target, &losses, gamma)),
        VoxelLoss::CrossEntropy | VoxelLoss::TopK { .. } | VoxelLoss::None => None,
    };
    let activations = reuse(&logits);
    let (count, dim) = elementwise(samples * voxels);
    activate::launch::<R>(
        &client,
        count,
        dim,
        logits.into_array_arg(),
        target.arg(),
        activations.clone().into_array_arg(),
        losses.clone().into_array_arg(),
        focal_derivatives.is_none(),
    );
    let sums = totals(&activations, losses, &target, target.inner.params.batch_dice);
    LossParts { activations, focal_derivatives, sums }
}

/// Computes the sums of decisions instead of activations, see [`crate::ops::DeviceLoss::counts`].
pub fn counts<R: CubeRuntime, BT: BoolElement>(
    activations: CubeTensor<R>,
    target: &LossTarget<CubeBackend<R, f32, i32, BT>>,
) -> CubeTensor<R> {
    let channels = activations.shape()[4];
    let activations = contiguous(activations);
    let decisions = reuse(&activations);
    let (count, dim) = elementwise(activations.shape().num_elements() / channels);
    argmax_decisions::launch::<R>(
        &activations.client.clone(),
        count,
        dim,
        activations.into_array_arg(),
        decisions.clone().into_array_arg(),
        channels,
        target.params.softmax,
    );
    // The decisions stand in for the per-voxel losses, whose sum is not used.
    totals(&decisions, decisions.clone(), &Target::new(target, channels), true)
}

/// Computes the sums per channel of contiguous tensors: over the batch, or per sample.
fn totals<R: CubeRuntime, BT: BoolElement>(
    activations: &CubeTensor<R>,
    losses: CubeTensor<R>,
    target: &Target<R, BT>,
    over_batch: bool,
) -> CubeTensor<R> {
    let [samples, z, y, x, channels] = activations.shape().dims();
    let client = activations.client.clone();
    let geometry = RowGeometry::new(samples, z * y * x, channels).expect("at most as many channels as units per cube");
    let partials = allocate(activations, [samples, geometry.parts(), QUANTITIES, channels], DType::F32);
    let (count, dim) = geometry.grid();
    partial_sums::launch::<R>(
        &client,
        count,
        dim,
        activations.clone().into_array_arg(),
        target.arg(),
        losses.into_array_arg(),
        partials.clone().into_array_arg(),
        geometry.arg(),
        losses_per_voxel(target.inner.params, channels) as f32,
    );
    let groups = if over_batch { 1 } else { samples };
    let len = groups * channels * 3 + 2;
    let sums = allocate(activations, [len], DType::F32);
    total_sums::launch::<R>(
        &client,
        CubeCount::Static(len as u32, 1, 1),
        dim,
        partials.into_array_arg(),
        sums.clone().into_array_arg(),
        channels,
        groups,
        samples / groups * geometry.parts(),
    );
    sums
}

/// Number of losses per voxel, the divisor of the sum.
fn losses_per_voxel(params: LossParams, channels: usize) -> usize {
    match params.voxel_loss {
        VoxelLoss::Focal { .. } => channels - params.first_channel(),
        // Binary cross-entropy has one loss per channel. With an ignore label the sum is divided by the voxels only, as
        // in nnU-Net's `DC_and_BCE_loss`.
        VoxelLoss::CrossEntropy if !params.softmax && params.ignore_label.is_none() => channels,
        VoxelLoss::CrossEntropy | VoxelLoss::TopK { .. } | VoxelLoss::None => 1,
    }
}

/// Computes the gradient with respect to the logits, in place in the activations if their memory is not shared.
pub fn gradient<R: CubeRuntime, BT: BoolElement>(
    input: LossGradientInput<CubeBackend<R, f32, i32, BT>>,
    target: &LossTarget<CubeBackend<R, f32, i32, BT>>,
) -> CubeTensor<R> {
    let LossGradientInput { parts, global, scaler, weight, world_size } = input;
    let LossParts { activations, focal_derivatives, sums: local } = parts;
    let [samples, z, y, x, channels] = activations.shape().dims();
    let target = Target::new(target, channels);
    let (params, global, scaler) = (target.inner.params, contiguous(global), contiguous(scaler));
    let activations = contiguous(activations);
    let gradient = reuse(&activations);
    let voxels = z * y * x;
    let dice_channels = channels - params.first_channel();
    // One group over all ranks, or one per sample of each rank.
    let (groups, voxels_per_group, dice_sums) = match params.batch_dice {
        true => (1, samples * voxels, global.clone()),
        false => (samples * world_size, voxels, contiguous(local)),
    };
    let weight = weight * world_size as f32;
    let (count, dim) = elementwise(samples * voxels);
    gradient_kernel::launch::<R>(
        &gradient.client,
        count,
        dim,
        activations.into_array_arg(),
        target.arg(),
        SumArraysLaunch::new(
            dice_sums.into_array_arg(),
            global.clone().into_array_arg(),
            scaler.clone().into_array_arg(),
        ),
        gradient.clone().into_array_arg(),
        LossWeightsLaunch::new(
            if params.voxel_loss == VoxelLoss::CrossEntropy { weight } else { 0.0 },
            if params.dice { -weight / (groups * dice_channels) as f32 } else { 0.0 },
            params.smooth,
        ),
        voxels_per_group,
        params.first_channel(),
    );
    if let Some(derivatives) = focal_derivatives {
        focal::add_gradient(&gradient, derivatives, &target, [global, scaler], weight);
    }
    gradient
}
