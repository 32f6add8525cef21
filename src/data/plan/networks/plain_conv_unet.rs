//! nnU-Net's plain U-Net: stages of convolutions, with a strided first convolution.

use super::{Block, Network, NetworkShape, Place, convolutions_upwards};

/// `PlainConvUNet` of dynamic_network_architectures.
pub static PLAIN_CONV_UNET: Network = Network {
    class: "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    blocks_key: "n_conv_per_stage",
    encoder_stage,
    decoder_stage: convolutions_upwards,
};

fn encoder_stage(shape: &NetworkShape, stage: usize, channels: usize) -> Vec<Block> {
    let place = Place { shape, stage, from: channels, stride: shape.strides[stage] };
    place.convolutions(&format!("encoder.stages.{stage}.0.convs"), shape.blocks_encoder[stage])
}
