//! Shape and layers of a network as plain data: the planner estimates sizes from them, the model is built from them.

use std::fmt;

/// Network parameters of an [`Architecture`](super::Architecture), with 2D shapes padded to 3D.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkShape {
    /// Network class.
    pub network: &'static Network,
    /// Feature maps of each stage, highest resolution first.
    pub features: Vec<usize>,
    /// Convolution kernel of each stage, `(z, y, x)`.
    pub kernels: Vec<[usize; 3]>,
    /// Stride of the first convolution of each stage; the first entry is 1.
    pub strides: Vec<[usize; 3]>,
    /// Blocks per encoder stage: convolutions or residual blocks, depending on the network.
    pub blocks_encoder: Vec<usize>,
    /// Convolutions per decoder stage, lowest resolution first.
    pub convs_decoder: Vec<usize>,
    /// True if convolutions have a bias.
    pub conv_bias: bool,
    /// Epsilon of the instance norm.
    pub norm_eps: f64,
}

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

/// A convolution followed by an instance norm with scale and shift.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvNorm {
    /// Prefix of the parameters `NAME.conv.weight`, `NAME.conv.bias`, `NAME.norm.weight` and `NAME.norm.bias`.
    pub name: String,
    /// Number of input feature maps.
    pub from: usize,
    /// Number of output feature maps.
    pub to: usize,
    /// Kernel extent `(z, y, x)`, odd; the input is padded by half of it.
    pub kernel: [usize; 3],
    /// Stride `(z, y, x)`.
    pub stride: [usize; 3],
    /// True if the convolution has a bias.
    pub bias: bool,
}

/// A building block of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Convolution, norm, leaky ReLU.
    Conv(ConvNorm),
    /// Two convolutions with a residual connection.
    Residual(Box<ResidualBlock>),
}

/// `leaky_relu(conv2(leaky_relu(conv1(x))) + skip(x))`, each convolution with its norm (`BasicBlockD` of
/// dynamic_network_architectures; He et al. 2019, "Bag of tricks", ResNet-D).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidualBlock {
    /// First convolution, with the stride of the block.
    pub conv1: ConvNorm,
    pub conv2: ConvNorm,
    /// Average pooling window of the skip connection, `(z, y, x)`: the stride.
    pub pool: [usize; 3],
    /// Convolution with kernel extent 1 in the skip connection, if the block changes the number of feature maps.
    pub projection: Option<ConvNorm>,
}

/// A decoder stage: upsampling, concatenation with the encoder features of the same resolution, blocks, and a
/// segmentation head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderStage {
    /// Transposed convolution whose kernel equals its stride.
    pub up: Upsample,
    pub blocks: Vec<Block>,
    pub head: Head,
}

/// A transposed convolution whose kernel equals its stride; its parameters are `NAME.weight` and `NAME.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upsample {
    pub name: String,
    pub from: usize,
    pub to: usize,
    pub stride: [usize; 3],
    pub bias: bool,
}

/// A convolution with kernel extent 1 from features to logits; its parameters are `NAME.weight` and `NAME.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub name: String,
    pub from: usize,
    pub classes: usize,
}

/// All layers of a U-Net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Blocks of each encoder stage, highest resolution first.
    pub encoder: Vec<Vec<Block>>,
    /// Decoder stages, lowest resolution first.
    pub decoder: Vec<DecoderStage>,
}

impl NetworkShape {
    /// Returns the layers for images of `channels` channels and `classes` classes, including the background.
    pub fn layers(&self, channels: usize, classes: usize) -> Layers {
        let (network, stages) = (self.network, self.features.len());
        let mut from = channels;
        let encoder = (0..stages).map(|stage| {
            let blocks = (network.encoder_stage)(self, stage, from);
            from = self.features[stage];
            blocks
        });
        let encoder = encoder.collect();
        let decoder = (0..stages.saturating_sub(1)).map(|index| {
            let stage = self.stage_of_decoder(index);
            let (below, features) = (self.features[stage + 1], self.features[stage]);
            DecoderStage {
                up: Upsample {
                    name: format!("decoder.transpconvs.{index}"),
                    from: below,
                    to: features,
                    stride: self.strides[stage + 1],
                    bias: self.conv_bias,
                },
                blocks: (network.decoder_stage)(self, index, 2 * features),
                head: Head { name: format!("decoder.seg_layers.{index}"), from: features, classes },
            }
        });
        Layers { encoder, decoder: decoder.collect() }
    }

    /// Returns the encoder stage with the resolution of a decoder stage; decoder stages count from the lowest
    /// resolution.
    pub(super) fn stage_of_decoder(&self, index: usize) -> usize {
        self.features.len() - 2 - index
    }
}

impl Block {
    /// Returns the convolutions of the block, each with its stride relative to the block's input.
    pub fn convolutions(&self) -> Vec<(&ConvNorm, [usize; 3])> {
        match self {
            Self::Conv(conv) => vec![(conv, [1; 3])],
            Self::Residual(block) => {
                let ResidualBlock { conv1, conv2, pool, projection } = &**block;
                let mut all = vec![(conv1, [1; 3]), (conv2, conv1.stride)];
                all.extend(projection.as_ref().map(|projection| (projection, *pool)));
                all
            }
        }
    }

    /// Returns the stride from input to output.
    pub fn stride(&self) -> [usize; 3] {
        match self {
            Self::Conv(conv) => conv.stride,
            Self::Residual(block) => block.conv1.stride,
        }
    }

    /// Returns the number of layer outputs that nnU-Net counts for the block, in units of the block's output feature
    /// maps.
    pub(super) fn outputs(&self) -> usize {
        match self {
            Self::Conv(_) => 1,
            Self::Residual(block) if block.pool == [1; 3] && block.projection.is_none() => 2,
            Self::Residual(_) => 3,
        }
    }
}

impl ConvNorm {
    /// Returns the number of trainable parameters.
    pub(super) fn parameters(&self) -> u64 {
        let weights = self.kernel.iter().product::<usize>() as u64 * self.from as u64 * self.to as u64;
        weights + self.to as u64 * if self.bias { 3 } else { 2 }
    }
}

/// Position of blocks in the network: the encoder stage of their resolution, their input feature maps, and the stride
/// of the first block.
pub(super) struct BlockPosition<'a> {
    pub shape: &'a NetworkShape,
    pub stage: usize,
    pub from: usize,
    pub stride: [usize; 3],
}

impl BlockPosition<'_> {
    /// Creates `count` convolutions `NAME.0`, `NAME.1`, ...
    pub(super) fn convolutions(&self, name: &str, count: usize) -> Vec<Block> {
        let place = |index| self.conv(format!("{name}.{index}"), index == 0);
        (0..count).map(|index| Block::Conv(place(index))).collect()
    }

    /// Creates `count` residual blocks `NAME.0`, `NAME.1`, ...
    pub(super) fn residual_blocks(&self, name: &str, count: usize) -> Vec<Block> {
        let block = |index| Box::new(self.residual(&format!("{name}.{index}"), index == 0));
        (0..count).map(|index| Block::Residual(block(index))).collect()
    }

    fn residual(&self, name: &str, is_first: bool) -> ResidualBlock {
        let conv1 = self.conv(format!("{name}.conv1"), is_first);
        let (from, to, pool) = (conv1.from, conv1.to, conv1.stride);
        // PyTorch numbers the modules of the skip connection; the pooling layer, if any, comes first.
        let number = usize::from(pool != [1; 3]);
        let projection = (from != to).then(|| ConvNorm {
            name: format!("{name}.skip.{number}"),
            from,
            to,
            kernel: [1; 3],
            stride: [1; 3],
            bias: false,
        });
        ResidualBlock { conv1, conv2: self.conv(format!("{name}.conv2"), false), pool, projection }
    }

    fn conv(&self, name: String, is_first: bool) -> ConvNorm {
        let to = self.shape.features[self.stage];
        let (from, stride) = if is_first { (self.from, self.stride) } else { (to, [1; 3]) };
        ConvNorm { name, from, to, kernel: self.shape.kernels[self.stage], stride, bias: self.shape.conv_bias }
    }
}

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

/// Converts `(y, x)` or `(z, y, x)` to `(z, y, x)`, with `z` as the first entry for 2D.
pub(super) fn to_3d<T: Copy>(axes: &[T], z: T) -> [T; 3] {
    let mut padded = [z; 3];
    for (to, from) in padded.iter_mut().rev().zip(axes.iter().rev()) {
        *to = *from;
    }
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_axes_are_padded_with_one_slice() {
        assert_eq!(to_3d(&[5, 7], 1), [1, 5, 7]);
        assert_eq!(to_3d(&[3, 5, 7], 1), [3, 5, 7]);
    }
}
