//! The layers of a network in numbers: what the planner counts and the model builds.

use super::NetworkShape;

/// A convolution followed by an instance norm with scale and shift.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvNorm {
    /// Its parameters are `NAME.conv.weight`, `NAME.conv.bias`, `NAME.norm.weight` and `NAME.norm.bias`.
    pub name: String,
    /// Feature maps of the input.
    pub from: usize,
    /// Feature maps of the output.
    pub to: usize,
    /// `(z, y, x)`, odd; the input is padded by half of it.
    pub kernel: [usize; 3],
    /// `(z, y, x)`.
    pub stride: [usize; 3],
    /// Whether the convolution has a bias.
    pub bias: bool,
}

/// What stages are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Convolution, norm, leaky ReLU.
    Conv(ConvNorm),
    /// Two convolutions around which the input takes a short cut.
    Residual(Box<ResidualBlock>),
}

/// `leaky_relu(conv2(leaky_relu(conv1(x))) + skip(x))`, each convolution with its norm (`BasicBlockD` of
/// dynamic_network_architectures; He et al. 2019, "Bag of tricks", ResNet-D).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidualBlock {
    /// Has the block's stride.
    pub conv1: ConvNorm,
    pub conv2: ConvNorm,
    /// The blocks of voxels, `(z, y, x)`, of which the skip takes the mean: the stride.
    pub pool: [usize; 3],
    /// Convolution of extent 1 in the skip, where the block changes the number of feature maps.
    pub projection: Option<ConvNorm>,
}

/// A stage of the decoder: upwards, joined with the encoder's features of that resolution, blocks, and a head beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderStage {
    /// The transposed convolution; its kernel is its stride.
    pub up: Upwards,
    pub blocks: Vec<Block>,
    pub head: Head,
}

/// A transposed convolution whose kernel is its stride; its parameters are `NAME.weight` and `NAME.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upwards {
    pub name: String,
    pub from: usize,
    pub to: usize,
    pub stride: [usize; 3],
    pub bias: bool,
}

/// A convolution of extent 1 from features to logits; its parameters are `NAME.weight` and `NAME.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub name: String,
    pub from: usize,
    pub classes: usize,
}

/// All layers of a U-Net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// The blocks of each stage, highest resolution first.
    pub encoder: Vec<Vec<Block>>,
    /// Lowest resolution first.
    pub decoder: Vec<DecoderStage>,
}

impl NetworkShape {
    /// The layers for images of `channels` channels and so many classes, background included.
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
                up: Upwards {
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

    /// The stage of the encoder whose resolution a stage of the decoder has; the decoder counts from the lowest.
    pub(super) fn stage_of_decoder(&self, index: usize) -> usize {
        self.features.len() - 2 - index
    }
}

impl Block {
    /// Its convolutions, each with the step from the block's input to its own.
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

    /// The step from its input to its output.
    pub fn stride(&self) -> [usize; 3] {
        match self {
            Self::Conv(conv) => conv.stride,
            Self::Residual(block) => block.conv1.stride,
        }
    }

    /// Outputs of layers, of the block's own number of feature maps, that nnU-Net counts for it.
    pub(super) fn outputs(&self) -> usize {
        match self {
            Self::Conv(_) => 1,
            Self::Residual(block) if block.pool == [1; 3] && block.projection.is_none() => 2,
            Self::Residual(_) => 3,
        }
    }
}

impl ConvNorm {
    /// Trainable numbers.
    pub(super) fn parameters(&self) -> u64 {
        let weights = self.kernel.iter().product::<usize>() as u64 * self.from as u64 * self.to as u64;
        weights + self.to as u64 * if self.bias { 3 } else { 2 }
    }
}

/// Where blocks stand: at the resolution of a stage of the encoder, after `from` feature maps, the first with `stride`.
pub(super) struct Place<'a> {
    pub shape: &'a NetworkShape,
    pub stage: usize,
    pub from: usize,
    pub stride: [usize; 3],
}

impl Place<'_> {
    /// `count` convolutions `NAME.0`, `NAME.1`, ….
    pub(super) fn convolutions(&self, name: &str, count: usize) -> Vec<Block> {
        let place = |index| self.conv(format!("{name}.{index}"), index == 0);
        (0..count).map(|index| Block::Conv(place(index))).collect()
    }

    /// `count` residual blocks `NAME.0`, `NAME.1`, ….
    pub(super) fn residual_blocks(&self, name: &str, count: usize) -> Vec<Block> {
        let block = |index| Box::new(self.residual(&format!("{name}.{index}"), index == 0));
        (0..count).map(|index| Block::Residual(block(index))).collect()
    }

    fn residual(&self, name: &str, is_first: bool) -> ResidualBlock {
        let conv1 = self.conv(format!("{name}.conv1"), is_first);
        let (from, to, pool) = (conv1.from, conv1.to, conv1.stride);
        // PyTorch numbers the steps of the skip, and the pool, if any, is the first.
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
