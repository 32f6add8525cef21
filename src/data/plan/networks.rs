//! Networks supported in plans.
//!
//! Each static defines the blocks in the stages of a U-Net. Its entry in [`NETWORKS`] registers it for the planner,
//! which counts its layers, the model, which builds them, and the plans reader.

use super::network::{Block, BlockPosition, Network, NetworkShape};

/// All supported networks.
pub static NETWORKS: [&Network; 2] = [&PLAIN_CONV_UNET, &RESIDUAL_ENCODER_UNET];

impl Network {
    /// Returns the network of this class, ignoring its Python module.
    pub fn from_class_name(class: &str) -> Option<&'static Self> {
        NETWORKS.into_iter().find(|network| class.rsplit('.').next() == Some(network.name()))
    }
}

/// nnU-Net's plain U-Net: stages of convolutions, with a strided first convolution (`PlainConvUNet` of
/// dynamic_network_architectures).
pub static PLAIN_CONV_UNET: Network = Network {
    class: "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    blocks_key: "n_conv_per_stage",
    encoder_stage: plain_encoder_stage,
    decoder_stage: decoder_convolutions,
};

fn plain_encoder_stage(shape: &NetworkShape, stage: usize, channels: usize) -> Vec<Block> {
    let position = BlockPosition { shape, stage, from: channels, stride: shape.strides[stage] };
    position.convolutions(&format!("encoder.stages.{stage}.0.convs"), shape.blocks_encoder[stage])
}

/// nnU-Net's U-Net with a residual encoder: a convolutional stem, stages of residual blocks, and the decoder of the
/// plain U-Net (`ResidualEncoderUNet` of dynamic_network_architectures).
pub static RESIDUAL_ENCODER_UNET: Network = Network {
    class: "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    blocks_key: "n_blocks_per_stage",
    encoder_stage: residual_encoder_stage,
    decoder_stage: decoder_convolutions,
};

fn residual_encoder_stage(shape: &NetworkShape, stage: usize, channels: usize) -> Vec<Block> {
    let (mut blocks, mut from) = (Vec::new(), channels);
    if stage == 0 {
        blocks = BlockPosition { shape, stage, from, stride: [1; 3] }.convolutions("encoder.stem.convs", 1);
        from = shape.features[0];
    }
    let position = BlockPosition { shape, stage, from, stride: shape.strides[stage] };
    blocks.extend(position.residual_blocks(&format!("encoder.stages.{stage}.blocks"), shape.blocks_encoder[stage]));
    blocks
}

/// Returns the convolutions of a decoder stage of nnU-Net's `UNetDecoder`.
fn decoder_convolutions(shape: &NetworkShape, index: usize, channels: usize) -> Vec<Block> {
    let position = BlockPosition { shape, stage: shape.stage_of_decoder(index), from: channels, stride: [1; 3] };
    position.convolutions(&format!("decoder.stages.{index}.convs"), shape.convs_decoder[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_identified_by_the_last_component_of_their_class() {
        assert_eq!(Network::from_class_name("somewhere.else.ResidualEncoderUNet"), Some(&RESIDUAL_ENCODER_UNET));
        assert_eq!(Network::from_class_name("PlainConvUNet"), Some(&PLAIN_CONV_UNET));
        assert_eq!(Network::from_class_name("MyPlainConvUNet"), None);
        for network in NETWORKS {
            assert_eq!(Network::from_class_name(network.class), Some(network));
        }
    }
}
