//! nnU-Net's plain U-Net: stages of convolutions, with a strided first convolution.

use super::{Block, BlockPosition, Network, NetworkShape, decoder_convolutions};

/// `PlainConvUNet` of dynamic_network_architectures.
pub static PLAIN_CONV_UNET: Network = Network {
    class: "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    blocks_key: "n_conv_per_stage",
    encoder_stage,
    decoder_stage: decoder_convolutions,
};

fn encoder_stage(shape: &NetworkShape, stage: usize, channels: usize) -> Vec<Block> {
    let position = BlockPosition { shape, stage, from: channels, stride: shape.strides[stage] };
    position.convolutions(&format!("encoder.stages.{stage}.0.convs"), shape.blocks_encoder[stage])
}
