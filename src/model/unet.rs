//! nnU-Net's plain U-Net (`PlainConvUNet` of dynamic_network_architectures) with deep-supervision heads.

use std::collections::HashMap;

use burn::tensor::{
    FloatDType, Tensor,
    backend::{AutodiffBackend, Backend},
};

use super::{Parameter, ParameterSpec, StateError, TensorState, init};
use crate::ops::{self, ConvParams, NnOps, NormParams, Precision};
use crate::plan::NetworkShape;

/// Slope of the leaky ReLU.
const NEGATIVE_SLOPE: f32 = 0.01;

/// Everything that determines a U-Net but its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetSpec {
    /// Input channels.
    pub channels: usize,
    /// Output classes, background included.
    pub classes: usize,
    /// Stages, from the plans.
    pub shape: NetworkShape,
}

impl UNetSpec {
    /// Extents of the heads' logits for a patch, highest resolution first.
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

/// A plain U-Net.
///
/// Encoder: stages of convolution + instance norm + leaky ReLU, the first convolution of a stage strided. Decoder:
/// transposed convolution, concatenation with the encoder's features of that resolution, convolutions. A 1x1x1
/// convolution at every decoder stage turns features into logits.
#[derive(Clone, Debug)]
pub struct UNet<B: Backend> {
    spec: UNetSpec,
    precision: Precision,
    encoder: Vec<Vec<ConvBlock>>,
    decoder: Vec<DecoderStage>,
    parameters: Vec<Parameter<B>>,
}

/// What becomes of the activations that enter a layer; the numbers are those of the layer's parameters.
pub type Tap<'a, B> = &'a dyn Fn(Tensor<B, 5>, &[usize]) -> Tensor<B, 5>;

/// Convolution, instance norm, leaky ReLU; the numbers are indices of parameters.
#[derive(Clone, Debug)]
struct ConvBlock {
    weight: usize,
    /// `None` where the plans say `conv_bias: false`.
    bias: Option<usize>,
    gamma: usize,
    beta: usize,
    params: ConvParams,
}

impl ConvBlock {
    fn parameters(&self) -> Vec<usize> {
        layer_of((self.weight, self.bias), &[self.gamma, self.beta])
    }
}

/// The parameters of a layer: weight, bias if it has one, and others.
fn layer_of((weight, bias): (usize, Option<usize>), others: &[usize]) -> Vec<usize> {
    [weight].into_iter().chain(bias).chain(others.iter().copied()).collect()
}

#[derive(Clone, Debug)]
struct DecoderStage {
    /// Weight and bias of the transposed convolution.
    up: (usize, Option<usize>),
    convs: Vec<ConvBlock>,
    /// Weight and bias of the head.
    head: (usize, usize),
}

impl<B: NnOps> UNet<B> {
    /// A network with He-initialised weights drawn from `seed`.
    pub fn new(spec: UNetSpec, seed: u64, device: &B::Device) -> Self {
        Self::build(spec, device, |parameter, index| init::he(parameter, seed, index).values)
    }

    /// A network with given weights.
    ///
    /// # Errors
    /// Names the first parameter that is missing or has another shape, or a weight no parameter has.
    pub fn with_state(spec: UNetSpec, state: &[TensorState], device: &B::Device) -> Result<Self, StateError> {
        let by_name: HashMap<&str, &TensorState> = state.iter().map(|s| (s.spec.name.as_str(), s)).collect();
        let layout = Layout::new(&spec);
        for parameter in &layout.parameters {
            match by_name.get(parameter.name.as_str()) {
                None => return Err(StateError(format!("{} is missing", parameter.name))),
                Some(found) if found.spec.shape != parameter.shape => {
                    return Err(StateError(format!(
                        "{} has shape {:?}, the network {:?}",
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

    /// Logits `(n, z, y, x, classes)` of each decoder stage, highest resolution first, of an input `(n, z, y, x, c)`.
    ///
    /// Only the first `heads` are computed: 1 at inference, all that have a weight in the loss during training.
    pub fn forward(&self, x: Tensor<B, 5>, heads: usize) -> Vec<Tensor<B, 5>> {
        self.forward_tapped(x, heads, &|x, _| x)
    }

    /// As [`UNet::forward`], with the activations that enter each layer passed through `tap`, which is also told the
    /// numbers of the layer's parameters.
    pub fn forward_tapped(&self, x: Tensor<B, 5>, heads: usize, tap: Tap<'_, B>) -> Vec<Tensor<B, 5>> {
        let mut features = self.input(x);
        let mut skips = Vec::with_capacity(self.encoder.len());
        for stage in 0..self.encoder.len() {
            features = self.encoder_stage(stage, features, tap);
            skips.push(features.clone());
        }
        skips.pop();

        let mut logits = Vec::with_capacity(heads);
        for stage in 0..self.decoder.len() {
            let skip = skips.pop().expect("one skip per decoder stage");
            features = self.decoder_stage(stage, features, skip, tap);
            if self.has_head(stage, heads) {
                logits.push(self.head(stage, features.clone(), tap));
            }
        }
        logits.reverse();
        logits
    }

    /// An image in the format of the activations.
    pub fn input(&self, x: Tensor<B, 5>) -> Tensor<B, 5> {
        x.cast(self.precision.activations())
    }

    /// The features of an encoder stage, 0 at the highest resolution, of those of the stage before it.
    pub fn encoder_stage(&self, stage: usize, x: Tensor<B, 5>, tap: Tap<'_, B>) -> Tensor<B, 5> {
        self.encoder[stage].iter().fold(x, |x, block| self.conv_block(x, block, tap))
    }

    /// The features of a decoder stage, 0 at the lowest resolution, of those of the stage below it and of the encoder's at its
    /// own resolution.
    pub fn decoder_stage(
        &self,
        stage: usize,
        below: Tensor<B, 5>,
        skip: Tensor<B, 5>,
        tap: Tap<'_, B>,
    ) -> Tensor<B, 5> {
        let DecoderStage { up, convs, .. } = &self.decoder[stage];
        let below = tap(below, &layer_of(*up, &[]));
        let up = ops::conv_transpose(below, self.tensor(up.0), self.bias(*up));
        convs.iter().fold(ops::concat(up, skip), |x, block| self.conv_block(x, block, tap))
    }

    /// The logits of a decoder stage, of its features.
    pub fn head(&self, stage: usize, features: Tensor<B, 5>, tap: Tap<'_, B>) -> Tensor<B, 5> {
        let (weight, bias) = self.decoder[stage].head;
        let features = tap(features, &[weight, bias]);
        ops::head(features, self.tensor(weight), self.tensor(bias))
    }

    fn conv_block(&self, x: Tensor<B, 5>, block: &ConvBlock, tap: Tap<'_, B>) -> Tensor<B, 5> {
        let x = tap(x, &block.parameters());
        let x = ops::conv(x, self.tensor(block.weight), self.bias((block.weight, block.bias)), block.params);
        let norm = NormParams { eps: self.spec.shape.norm_eps as f32, negative_slope: NEGATIVE_SLOPE };
        ops::norm_act(x, self.tensor(block.gamma), self.tensor(block.beta), norm)
    }

    fn tensor<const D: usize>(&self, index: usize) -> Tensor<B, D> {
        self.parameters[index].tensor()
    }

    /// The bias of a (possibly transposed) convolution, or zeros.
    fn bias(&self, (weight, bias): (usize, Option<usize>)) -> Tensor<B, 1> {
        match bias {
            Some(bias) => self.tensor(bias),
            None => {
                let weight = &self.parameters[weight];
                let axis = usize::from(weight.spec.name.contains("transpconvs"));
                Tensor::zeros([weight.spec.shape[axis]], &self.tensor::<5>(0).device())
            }
        }
    }
}

impl<B: Backend> UNet<B> {
    /// The same network with activations of another type; the logits stay f32.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The format in which the network takes images without rounding them: that of its activations.
    pub fn input_format(&self) -> FloatDType {
        self.precision.activations()
    }

    /// What determines the network but its weights.
    pub fn spec(&self) -> &UNetSpec {
        &self.spec
    }

    /// Number of decoder stages, each with a head.
    pub fn heads(&self) -> usize {
        self.decoder.len()
    }

    /// Whether a decoder stage's logits are wanted where the first `heads` are.
    pub fn has_head(&self, stage: usize, heads: usize) -> bool {
        self.decoder.len() - stage <= heads
    }

    /// All parameters, in nnU-Net's order.
    pub fn parameters(&self) -> &[Parameter<B>] {
        &self.parameters
    }

    /// All parameters, to change their values.
    pub fn parameters_mut(&mut self) -> &mut [Parameter<B>] {
        &mut self.parameters
    }

    /// The numbers of the parameters that have gradients when the first `heads` are trained, in the order of their use.
    pub fn order_of_use(&self, heads: usize) -> Vec<usize> {
        let mut order: Vec<usize> = self.encoder.iter().flatten().flat_map(ConvBlock::parameters).collect();
        for (index, stage) in self.decoder.iter().enumerate() {
            order.extend(layer_of(stage.up, &[]));
            order.extend(stage.convs.iter().flat_map(ConvBlock::parameters));
            if self.has_head(index, heads) {
                order.extend([stage.head.0, stage.head.1]);
            }
        }
        order
    }

    /// Number of trainable values.
    pub fn num_values(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.spec.len()).sum()
    }

    /// Downloads all weights.
    pub fn state(&self) -> Vec<TensorState> {
        self.parameters.iter().map(Parameter::state).collect()
    }
}

impl<B: AutodiffBackend> UNet<B> {
    /// The same weights on the backend without differentiation, for inference.
    pub fn valid(&self) -> UNet<B::InnerBackend> {
        UNet {
            spec: self.spec.clone(),
            precision: self.precision,
            encoder: self.encoder.clone(),
            decoder: self.decoder.clone(),
            parameters: self.parameters.iter().map(Parameter::valid).collect(),
        }
    }

    /// Makes every parameter a leaf whose gradient the next backward pass gives.
    pub fn require_gradients(mut self) -> Self {
        for parameter in &mut self.parameters {
            let value = parameter.inner();
            parameter.set(value);
        }
        self
    }
}

/// The layers and the parameters they refer to.
struct Layout {
    encoder: Vec<Vec<ConvBlock>>,
    decoder: Vec<DecoderStage>,
    parameters: Vec<ParameterSpec>,
}

impl Layout {
    fn new(spec: &UNetSpec) -> Self {
        let shape = &spec.shape;
        let mut layout = Self { encoder: Vec::new(), decoder: Vec::new(), parameters: Vec::new() };
        let mut channels = spec.channels;
        for (stage, &features) in shape.features.iter().enumerate() {
            let mut convs = Vec::new();
            for conv in 0..shape.convs_encoder[stage] {
                let stride = if conv == 0 { shape.strides[stage] } else { [1; 3] };
                let name = format!("encoder.stages.{stage}.0.convs.{conv}");
                convs.push(layout.conv_block(&name, shape, channels, features, shape.kernels[stage], stride));
                channels = features;
            }
            layout.encoder.push(convs);
        }

        // nnU-Net lists the decoder's convolutions first, then the transposed ones, then the heads.
        let stages = shape.features.len() - 1;
        let target = |stage: usize| stages - 1 - stage;
        let mut convolutions = Vec::new();
        for stage in 0..stages {
            let features = shape.features[target(stage)];
            let mut convs = Vec::new();
            for conv in 0..shape.convs_decoder[stage] {
                let channels = if conv == 0 { 2 * features } else { features };
                let name = format!("decoder.stages.{stage}.convs.{conv}");
                convs.push(layout.conv_block(&name, shape, channels, features, shape.kernels[target(stage)], [1; 3]));
            }
            convolutions.push(convs);
        }
        let up: Vec<_> = (0..stages)
            .map(|stage| {
                let (from, to) = (shape.features[target(stage) + 1], shape.features[target(stage)]);
                let name = format!("decoder.transpconvs.{stage}");
                let weight =
                    layout.add(format!("{name}.weight"), convolution(from, to, shape.strides[target(stage) + 1]));
                (weight, shape.conv_bias.then(|| layout.add(format!("{name}.bias"), vec![to])))
            })
            .collect();
        let heads: Vec<_> = (0..stages)
            .map(|stage| {
                let name = format!("decoder.seg_layers.{stage}");
                let features = shape.features[target(stage)];
                let weight = layout.add(format!("{name}.weight"), convolution(spec.classes, features, [1; 3]));
                (weight, layout.add(format!("{name}.bias"), vec![spec.classes]))
            })
            .collect();
        layout.decoder = convolutions
            .into_iter()
            .zip(up)
            .zip(heads)
            .map(|((convs, up), head)| DecoderStage { up, convs, head })
            .collect();
        layout
    }

    fn conv_block(
        &mut self,
        name: &str,
        shape: &NetworkShape,
        channels: usize,
        features: usize,
        kernel: [usize; 3],
        stride: [usize; 3],
    ) -> ConvBlock {
        ConvBlock {
            weight: self.add(format!("{name}.conv.weight"), convolution(features, channels, kernel)),
            bias: shape.conv_bias.then(|| self.add(format!("{name}.conv.bias"), vec![features])),
            gamma: self.add(format!("{name}.norm.weight"), vec![features]),
            beta: self.add(format!("{name}.norm.bias"), vec![features]),
            params: ConvParams { stride, padding: kernel.map(|kernel| (kernel - 1) / 2), bias_cancels: true },
        }
    }

    fn add(&mut self, name: String, shape: Vec<usize>) -> usize {
        self.parameters.push(ParameterSpec { name, shape });
        self.parameters.len() - 1
    }
}

fn convolution(first: usize, second: usize, kernel: [usize; 3]) -> Vec<usize> {
    [first, second].into_iter().chain(kernel).collect()
}
