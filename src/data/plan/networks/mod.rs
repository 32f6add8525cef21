//! The networks that plans can name.
//!
//! Each is a file that says what the stages of its U-Net are made of. A line in [`NETWORKS`] makes it known: to the planner,
//! which counts its layers, to the model, which builds them, and to whoever reads plans.

mod plain_conv_unet;
mod residual_encoder_unet;

use std::fmt;

pub use plain_conv_unet::PLAIN_CONV_UNET;
pub use residual_encoder_unet::RESIDUAL_ENCODER_UNET;

use super::NetworkShape;
use super::layers::{Block, Place};

/// All networks.
pub static NETWORKS: [&Network; 2] = [&PLAIN_CONV_UNET, &RESIDUAL_ENCODER_UNET];

/// A U-Net: what its stages are made of, and how plans speak of it.
pub struct Network {
    /// The class in plans; its last part is what tells networks apart.
    pub class: &'static str,
    /// The argument in plans with the number of blocks of each encoder stage.
    pub blocks_key: &'static str,
    /// The blocks of a stage of the encoder, from the stage's number, 0 for the highest resolution, and its input's channels.
    pub encoder_stage: fn(&NetworkShape, usize, usize) -> Vec<Block>,
    /// The blocks of a stage of the decoder, from the stage's number, 0 for the lowest resolution, and its input's channels.
    pub decoder_stage: fn(&NetworkShape, usize, usize) -> Vec<Block>,
}

impl Network {
    /// The network of this class, whatever module it is in.
    pub fn of_class(class: &str) -> Option<&'static Self> {
        NETWORKS.into_iter().find(|network| class.rsplit('.').next() == Some(network.name()))
    }

    /// The class without its module.
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

/// The decoder of nnU-Net's own networks (`UNetDecoder`): convolutions.
fn convolutions_upwards(shape: &NetworkShape, index: usize, channels: usize) -> Vec<Block> {
    let place = Place { shape, stage: shape.stage_of_decoder(index), from: channels, stride: [1; 3] };
    place.convolutions(&format!("decoder.stages.{index}.convs"), shape.convs_decoder[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_apart_by_the_last_part_of_their_class() {
        assert_eq!(Network::of_class("somewhere.else.ResidualEncoderUNet"), Some(&RESIDUAL_ENCODER_UNET));
        assert_eq!(Network::of_class("PlainConvUNet"), Some(&PLAIN_CONV_UNET));
        assert_eq!(Network::of_class("MyPlainConvUNet"), None);
        for network in NETWORKS {
            assert_eq!(Network::of_class(network.class), Some(network));
        }
    }
}
