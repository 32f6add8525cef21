//! Architecture of a network: its layers, with their parameters by index.

use super::ParameterSpec;
use crate::ops::ConvParams;
use nnunet_data::plan::{self, NetworkShape};

/// Architecture of a U-Net, without the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetSpec {
    /// Input channels.
    pub channels: usize,
    /// Output classes, background included.
    pub classes: usize,
    /// Network type and stages, from the plans.
    pub shape: NetworkShape,
}

impl UNetSpec {
    /// Returns the spatial extents `(z, y, x)` of each head's logits for a patch, highest resolution first.
    pub fn head_extents(&self, patch: [usize; 3]) -> Vec<[usize; 3]> {
        let heads = self.shape.features.len() - 1;
        let mut extent = patch;
        let resolutions = self.shape.strides.iter().take(heads).map(|stride| {
            extent = std::array::from_fn(|axis| extent[axis] / stride[axis]);
            extent
        });
        resolutions.collect()
    }
}

/// All layers of a U-Net. Parameter indices refer to [`Layout::parameters`].
pub struct Layout {
    /// The blocks of each stage, highest resolution first.
    pub encoder: Vec<Vec<Block>>,
    /// Decoder stages, lowest resolution first.
    pub decoder: Vec<DecoderStage>,
    /// Parameters in nnU-Net's order.
    pub parameters: Vec<ParameterSpec>,
}

/// Building block of a stage.
#[derive(Clone, Debug)]
pub enum Block {
    Conv(ConvBlock),
    Residual(Box<ResidualBlock>),
}

/// Convolution and instance norm. The activation depends on the enclosing block.
#[derive(Clone, Debug)]
pub struct ConvBlock {
    pub weight: usize,
    /// `None` if the plans set `conv_bias: false`, and in the skip connections of residual blocks.
    pub bias: Option<usize>,
    pub gamma: usize,
    pub beta: usize,
    pub params: ConvParams,
}

/// See [`plan::ResidualBlock`].
#[derive(Clone, Debug)]
pub struct ResidualBlock {
    pub conv1: ConvBlock,
    pub conv2: ConvBlock,
    pub pool: [usize; 3],
    pub projection: Option<ConvBlock>,
}

/// Transposed convolution, blocks and head.
#[derive(Clone, Debug)]
pub struct DecoderStage {
    /// Weight and bias of the transposed convolution.
    pub up: (usize, Option<usize>),
    pub blocks: Vec<Block>,
    /// Weight and bias of the head.
    pub head: (usize, usize),
}

impl Layout {
    pub fn new(spec: &UNetSpec) -> Self {
        let layers = spec.shape.layers(spec.channels, spec.classes);
        let mut parameters = Parameters(Vec::new());
        let encoder = layers.encoder.iter().map(|blocks| parameters.blocks(blocks)).collect();
        // nnU-Net lists the decoder's blocks first, then the transposed convolutions, then the heads.
        let blocks: Vec<_> = layers.decoder.iter().map(|stage| parameters.blocks(&stage.blocks)).collect();
        let ups: Vec<_> = layers.decoder.iter().map(|stage| parameters.up(&stage.up)).collect();
        let heads: Vec<_> = layers.decoder.iter().map(|stage| parameters.head(&stage.head)).collect();
        let stages = blocks.into_iter().zip(ups).zip(heads);
        let decoder = stages.map(|((blocks, up), head)| DecoderStage { up, blocks, head }).collect();
        Self { encoder, decoder, parameters: parameters.0 }
    }
}

impl Block {
    /// Returns the parameter indices in order of use.
    pub fn parameters(&self) -> Vec<usize> {
        match self {
            Self::Conv(conv) => conv.parameters(),
            Self::Residual(block) => {
                let ResidualBlock { conv1, conv2, projection, .. } = &**block;
                [conv1, conv2].into_iter().chain(projection).flat_map(ConvBlock::parameters).collect()
            }
        }
    }
}

impl ConvBlock {
    pub fn parameters(&self) -> Vec<usize> {
        layer_of((self.weight, self.bias), &[self.gamma, self.beta])
    }
}

/// Returns the parameter indices of a layer: weight, bias if present, and others.
pub fn layer_of((weight, bias): (usize, Option<usize>), others: &[usize]) -> Vec<usize> {
    [weight].into_iter().chain(bias).chain(others.iter().copied()).collect()
}

/// Parameter list under construction.
struct Parameters(Vec<ParameterSpec>);

impl Parameters {
    fn blocks(&mut self, blocks: &[plan::Block]) -> Vec<Block> {
        let built = blocks.iter().map(|block| match block {
            plan::Block::Conv(conv) => Block::Conv(self.conv(conv)),
            plan::Block::Residual(block) => Block::Residual(Box::new(ResidualBlock {
                conv1: self.conv(&block.conv1),
                conv2: self.conv(&block.conv2),
                pool: block.pool,
                projection: block.projection.as_ref().map(|projection| self.conv(projection)),
            })),
        });
        built.collect()
    }

    fn conv(&mut self, conv: &plan::ConvNorm) -> ConvBlock {
        let plan::ConvNorm { name, from, to, kernel, stride, bias } = conv;
        ConvBlock {
            weight: self.add(format!("{name}.conv.weight"), convolution(*to, *from, *kernel)),
            bias: bias.then(|| self.add(format!("{name}.conv.bias"), vec![*to])),
            gamma: self.add(format!("{name}.norm.weight"), vec![*to]),
            beta: self.add(format!("{name}.norm.bias"), vec![*to]),
            params: ConvParams { stride: *stride, padding: kernel.map(|kernel| kernel / 2), bias_cancels: true },
        }
    }

    fn up(&mut self, up: &plan::Upsample) -> (usize, Option<usize>) {
        let plan::Upsample { name, from, to, stride, bias } = up;
        let weight = self.add(format!("{name}.weight"), convolution(*from, *to, *stride));
        (weight, bias.then(|| self.add(format!("{name}.bias"), vec![*to])))
    }

    fn head(&mut self, head: &plan::Head) -> (usize, usize) {
        let plan::Head { name, from, classes } = head;
        let weight = self.add(format!("{name}.weight"), convolution(*classes, *from, [1; 3]));
        (weight, self.add(format!("{name}.bias"), vec![*classes]))
    }

    fn add(&mut self, name: String, shape: Vec<usize>) -> usize {
        self.0.push(ParameterSpec { name, shape });
        self.0.len() - 1
    }
}

fn convolution(first: usize, second: usize, kernel: [usize; 3]) -> Vec<usize> {
    [first, second].into_iter().chain(kernel).collect()
}
