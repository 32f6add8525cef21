//! Define a network that plans do not know, and run a forward pass on the CPU.
//!
//! `cargo run --example add_network`
//!
//! A [`Network`] lists the blocks of each stage; the model builds and names its layers from them.
//! `docs/how-to/add-a-network.md` describes how to register it, so that plans can select it.

use burn::tensor::Tensor;
use nnunet_dist::backend::CpuInference;
use nnunet_dist::model::{UNet, UNetSpec};
use nnunet_dist::plan::{Block, ConvNorm, Network, NetworkShape, PLAIN_CONV_UNET};

/// A U-Net whose encoder stages end in a convolution with kernel extent 1, which mixes the feature maps.
pub static MIXING_UNET: Network = Network {
    class: "example.MixingUNet",
    blocks_key: "n_conv_per_stage",
    encoder_stage,
    decoder_stage: |shape, index, channels| (PLAIN_CONV_UNET.decoder_stage)(shape, index, channels),
};

fn encoder_stage(shape: &NetworkShape, stage: usize, channels: usize) -> Vec<Block> {
    let mut blocks = (PLAIN_CONV_UNET.encoder_stage)(shape, stage, channels);
    let features = shape.features[stage];
    blocks.push(Block::Conv(ConvNorm {
        name: format!("encoder.stages.{stage}.mix"),
        from: features,
        to: features,
        kernel: [1; 3],
        stride: [1; 3],
        bias: shape.conv_bias,
    }));
    blocks
}

fn main() {
    let network = build(2, 3);
    println!("{} parameters in {} tensors", network.num_values(), network.parameters().len());
    for logits in extents_of_logits(&network, [16, 32, 32]) {
        println!("logits (n, z, y, x, class): {logits:?}");
    }
}

/// A network of three stages with random weights for images with this number of channels and classes.
pub fn build(channels: usize, classes: usize) -> UNet<CpuInference> {
    let shape = NetworkShape {
        network: &MIXING_UNET,
        features: vec![8, 16, 32],
        kernels: vec![[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        strides: vec![[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        blocks_encoder: vec![2, 2, 2],
        convs_decoder: vec![2, 2],
        conv_bias: true,
        norm_eps: 1e-5,
    };
    UNet::new(UNetSpec { channels, classes, shape }, 0, &Default::default())
}

/// Shapes `(n, z, y, x, class)` of the logits of all heads for a patch `(z, y, x)`, highest resolution first.
pub fn extents_of_logits(network: &UNet<CpuInference>, [z, y, x]: [usize; 3]) -> Vec<[usize; 5]> {
    let patch = Tensor::zeros([1, z, y, x, network.spec().channels], &Default::default());
    network.forward(patch, network.heads()).iter().map(Tensor::dims).collect()
}
