//! nnU-Net's U-Net with a residual encoder: a convolutional stem, stages of residual blocks, and the decoder of the
//! plain U-Net.

use super::{Block, BlockPosition, Network, NetworkShape, decoder_convolutions};

/// `ResidualEncoderUNet` of dynamic_network_architectures.
pub static RESIDUAL_ENCODER_UNET: Network = Network {
    class: "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    blocks_key: "n_blocks_per_stage",
    encoder_stage,
    decoder_stage: decoder_convolutions,
};

fn encoder_stage(shape: &NetworkShape, stage: usize, channels: usize) -> Vec<Block> {
    let (mut blocks, mut from) = (Vec::new(), channels);
    if stage == 0 {
        blocks = BlockPosition { shape, stage, from, stride: [1; 3] }.convolutions("encoder.stem.convs", 1);
        from = shape.features[0];
    }
    let position = BlockPosition { shape, stage, from, stride: shape.strides[stage] };
    blocks.extend(position.residual_blocks(&format!("encoder.stages.{stage}.blocks"), shape.blocks_encoder[stage]));
    blocks
}
