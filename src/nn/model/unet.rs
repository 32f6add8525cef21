//! nnU-Net's U-Nets with deep-supervision heads, as a list of layers built from the plans.

use std::collections::HashMap;

use burn::tensor::{
    FloatDType, Tensor,
    backend::{AutodiffBackend, Backend},
};

use super::layout::{Block, ConvBlock, DecoderStage, Layout, ResidualBlock, UNetSpec, layer_of};
use super::{Parameter, ParameterSpec, StateError, TensorState, init};
use crate::ops::{self, NnOps, NormParams, Precision};

/// Slope of the leaky ReLU.
const NEGATIVE_SLOPE: f32 = 0.01;

/// Slope that turns the leaky ReLU into the identity.
const IDENTITY: f32 = 1.0;

/// A U-Net.
///
/// The encoder has stages of plain or residual convolution blocks; the first block of a stage is strided. Each decoder
/// stage is a transposed convolution, a concatenation with the encoder features of the same resolution, and blocks. A
/// 1x1x1 convolution (head) at every decoder stage maps features to logits.
#[derive(Clone, Debug)]
pub struct UNet<B: Backend> {
    spec: UNetSpec,
    precision: Precision,
    encoder: Vec<Vec<Block>>,
    decoder: Vec<DecoderStage>,
    parameters: Vec<Parameter<B>>,
}

/// Hook applied to the activations that enter a layer; it also receives the indices of the layer's parameters.
pub type LayerHook<'a, B> = &'a dyn Fn(Tensor<B, 5>, &[usize]) -> Tensor<B, 5>;

impl<B: NnOps> UNet<B> {
    /// Creates a network with He-initialized weights drawn from `seed`.
    pub fn new(spec: UNetSpec, seed: u64, device: &B::Device) -> Self {
        Self::build(spec, device, |parameter, index| init::he(parameter, seed, index).values)
    }

    /// Creates a network with the given weights.
    ///
    /// # Errors
    /// Returns an error that names the first parameter that is missing, has the wrong shape, or does not exist in the
    /// network.
    pub fn with_state(spec: UNetSpec, state: &[TensorState], device: &B::Device) -> Result<Self, StateError> {
        let by_name: HashMap<&str, &TensorState> = state.iter().map(|s| (s.spec.name.as_str(), s)).collect();
        let layout = Layout::new(&spec);
        for parameter in &layout.parameters {
            match by_name.get(parameter.name.as_str()) {
                None => return Err(StateError(format!("{} is missing", parameter.name))),
                Some(found) if found.spec.shape != parameter.shape => {
                    return Err(StateError(format!(
                        "{} has shape {:?}, the network expects {:?}",
                        parameter.name, found.spec.shape, parameter.shape
                    )));
                }
                Some(_) => {}
            }
        }
        if let Some(extra) = state.iter().find(|s| !layout.parameters.contains(&s.spec)) {
            return Err(StateError(format!("the network has no {}", extra.spec.name)));
        }
        Ok(Self::build(spec, device, |parameter, _| by_name[parameter.name.as_str()].values.clone()))
    }

    fn build(spec: UNetSpec, device: &B::Device, mut values: impl FnMut(ParameterSpec, usize) -> Vec<f32>) -> Self {
        let Layout { encoder, decoder, parameters } = Layout::new(&spec);
        let parameters = parameters
            .into_iter()
            .enumerate()
            .map(|(index, parameter)| Parameter::new(parameter.clone(), values(parameter, index), device))
            .collect();
        Self { spec, precision: Precision::Fp32, encoder, decoder, parameters }
    }

    /// Computes logits `(n, z, y, x, classes)` of the decoder stages from an input `(n, z, y, x, c)`, highest
    /// resolution first.
    ///
    /// Computes only the first `heads`: 1 at inference, all with a nonzero loss weight in training.
    pub fn forward(&self, x: Tensor<B, 5>, heads: usize) -> Vec<Tensor<B, 5>> {
        self.forward_with_hook(x, heads, &|x, _| x)
    }

    /// Like [`UNet::forward`], with `hook` applied to the activations that enter each layer. `hook` also receives the
    /// indices of the layer's parameters.
    pub fn forward_with_hook(&self, x: Tensor<B, 5>, heads: usize, hook: LayerHook<'_, B>) -> Vec<Tensor<B, 5>> {
        let mut features = self.input(x);
        let mut skips = Vec::with_capacity(self.encoder.len());
        for stage in 0..self.encoder.len() {
            features = self.encoder_stage(stage, features, hook);
            skips.push(features.clone());
        }
        skips.pop();

        let mut logits = Vec::with_capacity(heads);
        for stage in 0..self.decoder.len() {
            let skip = skips.pop().expect("one skip per decoder stage");
            features = self.decoder_stage(stage, features, skip, hook);
            if self.has_head(stage, heads) {
                logits.push(self.head(stage, features.clone(), hook));
            }
        }
        logits.reverse();
        logits
    }

    /// Casts an image to the activation type.
    pub fn input(&self, x: Tensor<B, 5>) -> Tensor<B, 5> {
        x.cast(self.precision.activations())
    }

    /// Computes the features of encoder stage `stage`, 0 at the highest resolution, from the previous stage's features.
    pub fn encoder_stage(&self, stage: usize, x: Tensor<B, 5>, hook: LayerHook<'_, B>) -> Tensor<B, 5> {
        self.blocks(x, &self.encoder[stage], hook)
    }

    /// Computes the features of decoder stage `stage`, 0 at the lowest resolution, from the features of the stage below
    /// and the encoder's features (`skip`) at the same resolution.
    pub fn decoder_stage(
        &self,
        stage: usize,
        below: Tensor<B, 5>,
        skip: Tensor<B, 5>,
        hook: LayerHook<'_, B>,
    ) -> Tensor<B, 5> {
        let DecoderStage { up, blocks, .. } = &self.decoder[stage];
        let below = hook(below, &layer_of(*up, &[]));
        let up = ops::conv_transpose(below, self.tensor(up.0), self.bias(*up, 1));
        self.blocks(ops::concat(up, skip), blocks, hook)
    }

    /// Computes the logits of a decoder stage from its features.
    pub fn head(&self, stage: usize, features: Tensor<B, 5>, hook: LayerHook<'_, B>) -> Tensor<B, 5> {
        let (weight, bias) = self.decoder[stage].head;
        let features = hook(features, &[weight, bias]);
        ops::head(features, self.tensor(weight), self.tensor(bias))
    }

    fn blocks(&self, x: Tensor<B, 5>, blocks: &[Block], hook: LayerHook<'_, B>) -> Tensor<B, 5> {
        blocks.iter().fold(x, |x, block| match block {
            Block::Conv(conv) => self.conv_block(x, conv, NEGATIVE_SLOPE, hook),
            Block::Residual(block) => self.residual_block(x, block, hook),
        })
    }

    fn residual_block(&self, x: Tensor<B, 5>, block: &ResidualBlock, hook: LayerHook<'_, B>) -> Tensor<B, 5> {
        let inner = self.conv_block(x.clone(), &block.conv1, NEGATIVE_SLOPE, hook);
        let inner = self.conv_block(inner, &block.conv2, IDENTITY, hook);
        let mut skip = x;
        if block.pool != [1; 3] {
            skip = ops::avg_pool(skip, block.pool);
        }
        if let Some(projection) = &block.projection {
            skip = self.conv_block(skip, projection, IDENTITY, hook);
        }
        ops::add_leaky_relu(inner, skip, NEGATIVE_SLOPE)
    }

    fn conv_block(
        &self,
        x: Tensor<B, 5>,
        block: &ConvBlock,
        negative_slope: f32,
        hook: LayerHook<'_, B>,
    ) -> Tensor<B, 5> {
        let x = hook(x, &block.parameters());
        let x = ops::conv(x, self.tensor(block.weight), self.bias((block.weight, block.bias), 0), block.params);
        let norm = NormParams { eps: self.spec.shape.norm_eps as f32, negative_slope };
        ops::norm_act(x, self.tensor(block.gamma), self.tensor(block.beta), norm)
    }

    fn tensor<const D: usize>(&self, index: usize) -> Tensor<B, D> {
        self.parameters[index].tensor()
    }

    /// Returns the bias of a convolution, or zeros if it has none. `axis` is the output axis of the weights: 0, or 1
    /// for transposed convolutions.
    fn bias(&self, (weight, bias): (usize, Option<usize>), axis: usize) -> Tensor<B, 1> {
        match bias {
            Some(bias) => self.tensor(bias),
            None => {
                let outputs = self.parameters[weight].spec.shape[axis];
                Tensor::zeros([outputs], &self.tensor::<5>(0).device())
            }
        }
    }
}

impl<B: Backend> UNet<B> {
    /// Sets the activation type. Logits stay f32.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Returns the activation type: input of this type is not rounded.
    pub fn input_format(&self) -> FloatDType {
        self.precision.activations()
    }

    /// Returns the architecture.
    pub fn spec(&self) -> &UNetSpec {
        &self.spec
    }

    /// Returns the number of decoder stages, each of which has a head.
    pub fn heads(&self) -> usize {
        self.decoder.len()
    }

    /// Whether a decoder stage's logits are among the first `heads`.
    pub fn has_head(&self, stage: usize, heads: usize) -> bool {
        self.decoder.len() - stage <= heads
    }

    /// Returns all parameters in nnU-Net's order.
    pub fn parameters(&self) -> &[Parameter<B>] {
        &self.parameters
    }

    /// Returns all parameters, mutably.
    pub fn parameters_mut(&mut self) -> &mut [Parameter<B>] {
        &mut self.parameters
    }

    /// Returns the indices of the parameters that get gradients when the first `heads` are trained, in order of use in
    /// the forward pass.
    pub fn order_of_use(&self, heads: usize) -> Vec<usize> {
        let mut order: Vec<usize> = self.encoder.iter().flatten().flat_map(Block::parameters).collect();
        for (index, stage) in self.decoder.iter().enumerate() {
            order.extend(layer_of(stage.up, &[]));
            order.extend(stage.blocks.iter().flat_map(Block::parameters));
            if self.has_head(index, heads) {
                order.extend([stage.head.0, stage.head.1]);
            }
        }
        order
    }

    /// Returns the number of trainable values.
    pub fn num_values(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.spec.len()).sum()
    }

    /// Downloads all weights.
    pub fn state(&self) -> Vec<TensorState> {
        self.parameters.iter().map(Parameter::state).collect()
    }
}

impl<B: AutodiffBackend> UNet<B> {
    /// Returns the network on the inner backend, without autodiff, for inference.
    pub fn valid(&self) -> UNet<B::InnerBackend> {
        UNet {
            spec: self.spec.clone(),
            precision: self.precision,
            encoder: self.encoder.clone(),
            decoder: self.decoder.clone(),
            parameters: self.parameters.iter().map(Parameter::valid).collect(),
        }
    }

    /// Makes every parameter an autodiff leaf, so that the next backward pass computes its gradient.
    pub fn require_gradients(mut self) -> Self {
        for parameter in &mut self.parameters {
            let value = parameter.inner();
            parameter.set(value);
        }
        self
    }
}
