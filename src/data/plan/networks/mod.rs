//! Networks supported in plans.
//!
//! Each file defines the blocks in the stages of a U-Net. An entry in [`NETWORKS`] registers it for the planner, which
//! counts its layers, the model, which builds them, and the plans reader.

mod plain_conv_unet;
mod residual_encoder_unet;

use std::fmt;

pub use plain_conv_unet::PLAIN_CONV_UNET;
pub use residual_encoder_unet::RESIDUAL_ENCODER_UNET;

use super::NetworkShape;
use super::layers::{Block, BlockPosition};

/// All supported networks.
pub static NETWORKS: [&Network; 2] = [&PLAIN_CONV_UNET, &RESIDUAL_ENCODER_UNET];

/// A U-Net variant: the blocks of its stages and its names in plans.
pub struct Network {
    /// Python class in plans; networks are identified by its last component.
    pub class: &'static str,
    /// Key in plans of the number of blocks per encoder stage.
    pub blocks_key: &'static str,
    /// Returns the blocks of an encoder stage, given the stage (0 is the highest resolution) and its input channels.
    pub encoder_stage: fn(&NetworkShape, usize, usize) -> Vec<Block>,
    /// Returns the blocks of a decoder stage, given the stage (0 is the lowest resolution) and its input channels.
    pub decoder_stage: fn(&NetworkShape, usize, usize) -> Vec<Block>,
}

impl Network {
    /// Returns the network of this class, ignoring its Python module.
    pub fn from_class_name(class: &str) -> Option<&'static Self> {
        NETWORKS.into_iter().find(|network| class.rsplit('.').next() == Some(network.name()))
    }

    /// Returns the class name without its module.
    pub fn name(&self) -> &'static str {
        self.class.rsplit('.').next().unwrap_or(self.class)
    }
}

impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        self.class == other.class
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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
    fn networks_are_told_apart_by_the_last_part_of_their_class() {
        assert_eq!(Network::from_class_name("somewhere.else.ResidualEncoderUNet"), Some(&RESIDUAL_ENCODER_UNET));
        assert_eq!(Network::from_class_name("PlainConvUNet"), Some(&PLAIN_CONV_UNET));
        assert_eq!(Network::from_class_name("MyPlainConvUNet"), None);
        for network in NETWORKS {
            assert_eq!(Network::from_class_name(network.class), Some(network));
        }
    }
}
