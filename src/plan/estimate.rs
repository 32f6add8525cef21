//! How much memory a network takes, counted instead of measured.

use super::NetworkShape;

/// Elements of all feature maps that one sample's forward pass keeps for the backward pass
/// (`compute_conv_feature_map_size` of `PlainConvUNet`, without the deep-supervision heads).
///
/// `patch` is in voxels `(z, y, x)`; `classes` includes the background.
pub fn feature_map_size(shape: &NetworkShape, patch: [usize; 3], classes: usize) -> u64 {
    let voxels = voxels_per_stage(shape, patch);
    let stages = || shape.features.iter().zip(&voxels).map(|(&features, &voxels)| features as u64 * voxels);
    let encoder: u64 = stages().zip(&shape.convs_encoder).map(|(size, &convs)| size * convs as u64).sum();
    // The decoder works upwards, and starts each stage with one transposed convolution.
    let upwards = stages().rev().skip(1);
    let decoder: u64 = upwards.zip(&shape.convs_decoder).map(|(size, &convs)| size * (convs as u64 + 1)).sum();
    encoder + decoder + classes as u64 * voxels.first().copied().unwrap_or(0)
}

/// Trainable numbers of the network, deep-supervision heads included.
///
/// `channels` is the number of input channels; `classes` includes the background.
pub fn parameter_count(shape: &NetworkShape, channels: usize, classes: usize) -> u64 {
    let block = |kernel: [usize; 3], from: usize, to: usize, convs: usize| -> u64 {
        // Each convolution is followed by a norm with scale and shift.
        let conv = |from| convolution(shape, kernel, from, to) + 2 * to as u64;
        (0..convs).map(|index| conv(if index == 0 { from } else { to })).sum()
    };
    let stages = shape.features.len();
    let mut count = 0;
    let mut from = channels;
    for stage in 0..stages {
        let to = shape.features[stage];
        count += block(shape.kernels[stage], from, to, shape.convs_encoder[stage]);
        from = to;
    }
    for (index, stage) in (0..stages - 1).rev().enumerate() {
        let (below, to) = (shape.features[stage + 1], shape.features[stage]);
        count += convolution(shape, shape.strides[stage + 1], below, to);
        count += block(shape.kernels[stage], 2 * to, to, shape.convs_decoder[index]);
        count += (classes * (to + 1)) as u64;
    }
    count
}

/// Weights and biases of one convolution, transposed or not.
fn convolution(shape: &NetworkShape, kernel: [usize; 3], from: usize, to: usize) -> u64 {
    (kernel.iter().product::<usize>() * from * to + if shape.conv_bias { to } else { 0 }) as u64
}

/// Voxels of the feature maps of each stage.
fn voxels_per_stage(shape: &NetworkShape, patch: [usize; 3]) -> Vec<u64> {
    let mut extent = patch.map(|extent| extent as u64);
    let strided = shape.strides.iter().map(|stride| {
        extent = std::array::from_fn(|axis| extent[axis] / stride[axis] as u64);
        extent.iter().product()
    });
    strided.collect()
}
