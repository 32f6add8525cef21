//! Memory estimates computed from the layers of a network.

use super::NetworkShape;
use super::layers::Layers;

/// Returns the number of elements of all feature maps that the forward pass of one sample keeps for the backward pass
/// (`compute_conv_feature_map_size` of dynamic_network_architectures, without the deep-supervision heads).
///
/// `patch` is in voxels `(z, y, x)`; `classes` includes the background.
pub fn feature_map_size(shape: &NetworkShape, patch: [usize; 3], classes: usize) -> u64 {
    let Layers { encoder, decoder } = shape.layers(1, classes);
    let mut extent = patch;
    let mut voxels = Vec::new();
    let mut size = 0;
    for (blocks, &features) in encoder.iter().zip(&shape.features) {
        for block in blocks {
            let stride = block.stride();
            extent = std::array::from_fn(|axis| extent[axis] / stride[axis]);
            size += (block.outputs() * features) as u64 * volume(extent);
        }
        voxels.push(volume(extent));
    }
    // The decoder runs from the second-lowest resolution upwards.
    for (stage, voxels) in decoder.iter().zip(voxels.iter().rev().skip(1)) {
        let outputs = 1 + stage.blocks.iter().map(|block| block.outputs()).sum::<usize>();
        size += (outputs * stage.up.to) as u64 * voxels;
    }
    size + classes as u64 * voxels.first().copied().unwrap_or(0)
}

/// Returns the number of trainable parameters of the network, including deep-supervision heads.
///
/// `channels` is the number of input channels; `classes` includes the background.
pub fn parameter_count(shape: &NetworkShape, channels: usize, classes: usize) -> u64 {
    let Layers { encoder, decoder } = shape.layers(channels, classes);
    let blocks = encoder.iter().flatten().chain(decoder.iter().flat_map(|stage| &stage.blocks));
    let in_blocks: u64 = blocks.flat_map(|block| block.convolutions()).map(|(conv, _)| conv.parameters()).sum();
    let beside = decoder.iter().map(|stage| {
        let up = volume(stage.up.stride) * (stage.up.from * stage.up.to) as u64;
        let bias = if stage.up.bias { stage.up.to } else { 0 };
        up + (bias + classes * (stage.head.from + 1)) as u64
    });
    in_blocks + beside.sum::<u64>()
}

fn volume(extent: [usize; 3]) -> u64 {
    extent.iter().map(|&extent| extent as u64).product()
}
