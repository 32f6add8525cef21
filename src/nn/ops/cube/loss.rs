//! Soft Dice and per-voxel losses on the device: activations and sums, then the gradient, without synchronizing with
//! the host. The focal loss is in [`super::focal`].

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::focal;
use super::launch::{RowGeometry, UNITS, allocate, contiguous, elementwise, reuse};
use crate::ops::{LossParams, VoxelLossTerm};

/// Number of sums per channel: intersection, activation and target; for channel 0 also the per-voxel losses and their
/// number.
const QUANTITIES: usize = 5;
/// nnU-Net's lower bound of the Dice denominator.
const MIN_DENOMINATOR: f32 = 1e-8;

/// Returns 1 if the label belongs to the channel, else 0.
#[cube]
pub fn belongs_to(membership: &Array<i32>, label: i32, channel: usize, channels: usize) -> f32 {
    let place = label as usize * channels + channel;
    let mut result = 0.0f32;
    if label >= 0 && place < membership.len() {
        result = membership[place] as f32;
    }
    result
}

/// Returns the class weight of a label. The value for ignored labels is irrelevant.
#[cube]
fn weight_of(weights: &Array<f32>, label: i32) -> f32 {
    let mut weight = 1.0f32;
    if label >= 0 && (label as usize) < weights.len() {
        weight = weights[label as usize];
    }
    weight
}

/// Returns the scale of the per-voxel losses' gradient: `weight` times the loss scale, divided by the number of losses.
#[cube]
pub fn scale_of_voxels(global: &Array<f32>, scaler: &Array<f32>, weight: f32) -> f32 {
    let number = global[global.len() - 1];
    select(number > 0.0f32, weight * scaler[0] / max(number, comptime!(MIN_DENOMINATOR)), 0.0f32)
}

/// Replaces logits by softmax or sigmoid and optionally computes each voxel's cross-entropy; one unit per voxel.
#[cube(launch)]
fn activate(
    logits: &Array<f32>,
    labels: &Array<i32>,
    membership: &Array<i32>,
    weights: &Array<f32>,
    activations: &mut Array<f32>,
    losses: &mut Array<f32>,
    channels: usize,
    #[comptime] softmax: bool,
    #[comptime] weighted: bool,
    #[comptime] cross_entropy: bool,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= labels.len() {
        terminate!();
    }
    let begin = voxel * channels;
    let label = labels[voxel];
    let mut loss = 0.0f32;
    if comptime!(softmax) {
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
        if comptime!(weighted) {
            loss *= weight_of(weights, label);
        }
    } else {
        for channel in 0..channels {
            let logit = logits[begin + channel];
            let y = belongs_to(membership, label, channel, channels);
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

/// Computes the sums over the voxels of a part, per channel.
#[cube(launch)]
fn partial_sums(
    activations: &Array<f32>,
    labels: &Array<i32>,
    membership: &Array<i32>,
    weights: &Array<f32>,
    losses: &Array<f32>,
    partials: &mut Array<f32>,
    voxels: usize,
    channels: usize,
    part: usize,
    losses_per_voxel: f32,
    ignore_label: i32,
    #[comptime] has_ignore_label: bool,
    #[comptime] weighted: bool,
) {
    let stride = comptime!(UNITS) / channels;
    let channel = UNIT_POS as usize % channels;
    let first_row = UNIT_POS as usize / channels;
    let sample = CUBE_POS_Y as usize;
    let begin = CUBE_POS_X as usize * part;
    let end = min(begin + part, voxels);
    let mut intersection = 0.0f32;
    let mut activation = 0.0f32;
    let mut target = 0.0f32;
    let mut loss = 0.0f32;
    let mut number = 0.0f32;
    if first_row < stride {
        let mut row = begin + first_row;
        while row < end {
            let voxel = sample * voxels + row;
            let label = labels[voxel];
            let mut counts = true;
            if comptime!(has_ignore_label) {
                counts = label != ignore_label;
            }
            if counts {
                let y = belongs_to(membership, label, channel, channels);
                let p = activations[voxel * channels + channel];
                intersection += p * y;
                activation += p;
                target += y;
                if channel == 0 {
                    loss += losses[voxel];
                    number += if comptime!(weighted) { weight_of(weights, label) } else { losses_per_voxel };
                }
            }
            row += stride;
        }
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS));
    let intersection = sum_of_rows(intersection, &mut shared, channels, stride);
    let activation = sum_of_rows(activation, &mut shared, channels, stride);
    let target = sum_of_rows(target, &mut shared, channels, stride);
    let loss = sum_of_rows(loss, &mut shared, channels, stride);
    let number = sum_of_rows(number, &mut shared, channels, stride);
    if first_row == 0 {
        let cube = sample * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
        let place = cube * comptime!(QUANTITIES) * channels + channel;
        partials[place] = intersection;
        partials[place + channels] = activation;
        partials[place + 2 * channels] = target;
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

/// Returns `(slope, offset)`: the derivative of the Dice term with respect to an activation is `slope * y - offset`.
#[cube]
fn dice_slope(sums: &Array<f32>, place: usize, scale: f32, smooth: f32) -> (f32, f32) {
    let denominator = max(sums[place + 1] + sums[place + 2] + smooth, comptime!(MIN_DENOMINATOR));
    let dice = (2.0f32 * sums[place] + smooth) / denominator;
    (scale * 2.0f32 / denominator, scale * dice / denominator)
}

/// Computes the gradient with respect to the logits; one unit per voxel.
#[cube(launch)]
fn gradient_kernel(
    activations: &Array<f32>,
    labels: &Array<i32>,
    membership: &Array<i32>,
    weights: &Array<f32>,
    dice_sums: &Array<f32>,
    global: &Array<f32>,
    scaler: &Array<f32>,
    gradient: &mut Array<f32>,
    voxels: usize,
    channels: usize,
    weight: f32,
    dice_weight: f32,
    smooth: f32,
    ignore_label: i32,
    first_dice: usize,
    #[comptime] has_ignore_label: bool,
    #[comptime] softmax: bool,
    #[comptime] weighted: bool,
    #[comptime] batch_dice: bool,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= labels.len() {
        terminate!();
    }
    let begin = voxel * channels;
    let label = labels[voxel];
    let mut counts = true;
    if comptime!(has_ignore_label) {
        counts = label != ignore_label;
    }
    let mut first = 0usize;
    if comptime!(!batch_dice) {
        first = voxel / voxels * channels * 3;
    }
    let mut cross_entropy = scale_of_voxels(global, scaler, weight);
    if comptime!(weighted) {
        cross_entropy *= weight_of(weights, label);
    }
    let dice_scale = dice_weight * scaler[0];

    let mut projection = 0.0f32;
    if comptime!(softmax) {
        for channel in first_dice..channels {
            let (slope, offset) = dice_slope(dice_sums, first + channel * 3, dice_scale, smooth);
            let y = belongs_to(membership, label, channel, channels);
            projection += (slope * y - offset) * activations[begin + channel];
        }
    }
    for channel in 0..channels {
        let y = belongs_to(membership, label, channel, channels);
        let p = activations[begin + channel];
        let mut slope = 0.0f32;
        if channel >= first_dice {
            let (steep, offset) = dice_slope(dice_sums, first + channel * 3, dice_scale, smooth);
            slope = steep * y - offset;
        }
        let dice = if comptime!(softmax) { p * (slope - projection) } else { p * (1.0f32 - p) * slope };
        let value = dice + cross_entropy * (p - y);
        gradient[begin + channel] = select(counts, value, 0.0f32);
    }
}

/// [`crate::ops::LossTarget`] on a CubeCL runtime.
pub struct Target<R: CubeRuntime> {
    pub labels: CubeTensor<R>,
    pub membership: CubeTensor<R>,
    pub weights: CubeTensor<R>,
    pub params: LossParams,
}

impl<R: CubeRuntime> Target<R> {
    fn contiguous(self) -> Self {
        let Self { labels, membership, weights, params } = self;
        Self { labels: contiguous(labels), membership: contiguous(membership), weights: contiguous(weights), params }
    }
}

/// [`crate::ops::LossParts`] on a CubeCL runtime.
pub struct Parts<R: CubeRuntime> {
    pub activations: CubeTensor<R>,
    pub focal_derivatives: Option<CubeTensor<R>>,
    pub sums: CubeTensor<R>,
}

/// Computes activations and sums, see [`crate::ops::DeviceLoss::parts`]. The number of channels must not exceed the
/// units per cube.
pub fn parts<R: CubeRuntime>(logits: CubeTensor<R>, target: Target<R>) -> Parts<R> {
    let [samples, z, y, x, channels] = logits.shape().dims();
    let voxels = z * y * x;
    let target = target.contiguous();
    let params = target.params;
    let logits = contiguous(logits);
    let client = logits.client.clone();
    let losses = allocate(&logits, [samples * voxels], DType::F32);
    let focal_derivatives = match params.voxel_loss {
        VoxelLossTerm::Focal { gamma } => Some(focal::losses(&logits, &target, &losses, gamma)),
        VoxelLossTerm::CrossEntropy | VoxelLossTerm::None => None,
    };
    let activations = reuse(&logits);
    let (count, dim) = elementwise(samples * voxels);
    activate::launch::<R>(
        &client,
        count,
        dim,
        logits.into_array_arg(),
        target.labels.clone().into_array_arg(),
        target.membership.clone().into_array_arg(),
        target.weights.clone().into_array_arg(),
        activations.clone().into_array_arg(),
        losses.clone().into_array_arg(),
        channels,
        params.softmax,
        params.weighted,
        focal_derivatives.is_none(),
    );
    let sums = totals(activations.clone(), losses, target);
    Parts { activations, focal_derivatives, sums }
}

/// Computes the sums of decisions instead of activations, see [`crate::ops::DeviceLoss::counts`].
pub fn counts<R: CubeRuntime>(activations: CubeTensor<R>, target: Target<R>) -> CubeTensor<R> {
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
    let params = LossParams { batch_dice: true, ..target.params };
    // The decisions stand in for the per-voxel losses, whose sum is not used.
    totals(decisions.clone(), decisions, Target { params, ..target.contiguous() })
}

/// Computes the sums per group and channel of contiguous tensors.
fn totals<R: CubeRuntime>(activations: CubeTensor<R>, losses: CubeTensor<R>, target: Target<R>) -> CubeTensor<R> {
    let params = target.params;
    let [samples, z, y, x, channels] = activations.shape().dims();
    let voxels = z * y * x;
    let client = activations.client.clone();
    let geometry = RowGeometry::new(samples, voxels, channels).expect("at most as many channels as units per cube");
    let partials = allocate(&activations, [samples, geometry.parts(), QUANTITIES, channels], DType::F32);
    let (count, dim) = geometry.grid();
    partial_sums::launch::<R>(
        &client,
        count,
        dim,
        activations.clone().into_array_arg(),
        target.labels.into_array_arg(),
        target.membership.into_array_arg(),
        target.weights.into_array_arg(),
        losses.into_array_arg(),
        partials.clone().into_array_arg(),
        voxels,
        channels,
        geometry.part,
        losses_per_voxel(params, channels) as f32,
        params.ignore_label.unwrap_or(0),
        params.ignore_label.is_some(),
        params.weighted,
    );
    let groups = if params.batch_dice { 1 } else { samples };
    let len = groups * channels * 3 + 2;
    let sums = allocate(&activations, [len], DType::F32);
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
        VoxelLossTerm::Focal { .. } => channels - params.first_channel(),
        // Binary cross-entropy has one loss per channel. With an ignore label the sum is divided by the voxels only, as
        // in nnU-Net's `DC_and_BCE_loss`.
        VoxelLossTerm::CrossEntropy if !params.softmax && params.ignore_label.is_none() => channels,
        VoxelLossTerm::CrossEntropy | VoxelLossTerm::None => 1,
    }
}

/// Input of [`gradient`].
pub struct GradientInput<R: CubeRuntime> {
    pub parts: Parts<R>,
    pub global: CubeTensor<R>,
    pub scaler: CubeTensor<R>,
    pub weight: f32,
    pub world_size: usize,
}

/// Computes the gradient with respect to the logits, in place in the activations if their memory is not shared.
pub fn gradient<R: CubeRuntime>(input: GradientInput<R>, target: Target<R>) -> CubeTensor<R> {
    let GradientInput { parts, global, scaler, weight, world_size } = input;
    let Parts { activations, focal_derivatives, sums: local } = parts;
    let [samples, z, y, x, channels] = activations.shape().dims();
    let target = target.contiguous();
    let (params, global, scaler) = (target.params, contiguous(global), contiguous(scaler));
    let activations = contiguous(activations);
    let gradient = reuse(&activations);
    let dice_channels = channels - params.first_channel();
    let groups = if params.batch_dice { 1 } else { samples * world_size };
    let weight = weight * world_size as f32;
    let dice_sums = if params.batch_dice { global.clone() } else { local };
    let (count, dim) = elementwise(samples * z * y * x);
    gradient_kernel::launch::<R>(
        &gradient.client,
        count,
        dim,
        activations.into_array_arg(),
        target.labels.clone().into_array_arg(),
        target.membership.clone().into_array_arg(),
        target.weights.clone().into_array_arg(),
        contiguous(dice_sums).into_array_arg(),
        global.clone().into_array_arg(),
        scaler.clone().into_array_arg(),
        gradient.clone().into_array_arg(),
        z * y * x,
        channels,
        if params.voxel_loss == VoxelLossTerm::CrossEntropy { weight } else { 0.0 },
        if params.dice { -weight / (groups * dice_channels) as f32 } else { 0.0 },
        params.smooth,
        params.ignore_label.unwrap_or(0),
        params.first_channel(),
        params.ignore_label.is_some(),
        params.softmax,
        params.weighted,
        params.batch_dice,
    );
    if let Some(focal_derivatives) = focal_derivatives {
        focal::add_gradient(&gradient, focal_derivatives, &target, [global, scaler], weight);
    }
    gradient
}
