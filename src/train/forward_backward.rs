//! Forward and backward pass of the network.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorPrimitive, backend::AutodiffBackend, ops::FloatTensor};

use super::batch::Inner;
use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::model::UNet;
use nnunet_nn::ops::{self, GradHook, NnOps};

/// One gradient per parameter; `None` for parameters without gradient.
pub(super) type Gradients<B> = Vec<Option<FloatTensor<<B as AutodiffBackend>::InnerBackend>>>;

/// Destination of the gradients during the backward pass.
pub(super) type SharedGradHook<B> = Arc<dyn GradHook<Inner<B>>>;

/// A forward pass that waits for the gradients of its logits.
pub(super) struct ForwardBackward<'a, B: ComputeBackend> {
    network: &'a UNet<B>,
    grad_hook: Option<SharedGradHook<B>>,
    kept: Kept<B>,
}

/// Data kept for the backward pass.
enum Kept<B: ComputeBackend> {
    /// The complete autodiff graph that ends in these logits.
    Graph(Vec<Tensor<B, 5>>),
    /// Only the activations between stages; everything else is recomputed in the backward pass (gradient checkpointing,
    /// Chen et al. 2016, with the network's stages as segments).
    Stages(Stages<Inner<B>>),
}

/// The activations between stages.
struct Stages<B: NnOps> {
    input: Tensor<B, 5>,
    /// Output of each encoder stage, highest resolution first.
    encoded: Vec<Tensor<B, 5>>,
    /// Output of each decoder stage, lowest resolution first.
    decoded: Vec<Tensor<B, 5>>,
    /// Logits of each head, highest resolution first.
    logits: Vec<Tensor<B, 5>>,
}

impl<'a, B: ComputeBackend> ForwardBackward<'a, B> {
    /// Runs the network on images `(n, z, y, x, c)`, as far as the first `heads` require. Gradients are passed to
    /// `grad_hook`, if given, during the backward pass. With `checkpointing`, only the activations between stages are kept.
    pub(super) fn new(
        network: &'a UNet<B>,
        images: Tensor<Inner<B>, 5>,
        heads: usize,
        grad_hook: Option<SharedGradHook<B>>,
        checkpointing: bool,
    ) -> Self {
        let kept = match checkpointing {
            true => Kept::Stages(Stages::new(&network.valid(), images, heads)),
            false => {
                let images = Tensor::from_inner(images);
                Kept::Graph(network.forward_with_hook(images, heads, &|x, layer| {
                    with_grad_hook(network, grad_hook.as_ref(), x, layer)
                }))
            }
        };
        Self { network, grad_hook, kept }
    }

    /// Returns the logits `(n, z, y, x, classes)` of each head, highest resolution first.
    pub(super) fn logits(&self) -> Vec<Tensor<Inner<B>, 5>> {
        match &self.kept {
            Kept::Graph(logits) => logits.iter().map(|logits| logits.clone().inner()).collect(),
            Kept::Stages(stages) => stages.logits.clone(),
        }
    }

    /// Computes the gradients of the parameters from the gradients of the logits. Returns those that the grad_hook has not
    /// received.
    pub(super) fn backward(self, logit_gradients: Vec<Tensor<Inner<B>, 5>>) -> Gradients<B> {
        let Self { network, grad_hook, kept } = self;
        let mut gradients = vec![None; network.parameters().len()];
        match kept {
            Kept::Graph(logits) => {
                let mut roots = Roots::<B>::default();
                logits.into_iter().zip(logit_gradients).for_each(|(logits, gradient)| roots.add(logits, gradient));
                let mut found = roots.backward();
                take_gradients(network, &mut found, &mut gradients);
            }
            Kept::Stages(stages) => stages.backward(network, grad_hook.as_ref(), logit_gradients, &mut gradients),
        }
        gradients
    }
}

impl<B: NnOps> Stages<B> {
    fn new(network: &UNet<B>, images: Tensor<B, 5>, heads: usize) -> Self {
        let input = network.input(images);
        let (mut encoded, mut decoded, mut logits) = (Vec::new(), Vec::<Tensor<B, 5>>::new(), Vec::new());
        for stage in 0..=network.heads() {
            let x = encoded.last().unwrap_or(&input).clone();
            encoded.push(network.encoder_stage(stage, x, &|x, _| x));
        }
        for stage in 0..network.heads() {
            let below = decoded.last().or(encoded.last()).expect("an encoder has stages").clone();
            let skip = encoded[network.heads() - 1 - stage].clone();
            let features = network.decoder_stage(stage, below, skip, &|x, _| x);
            if network.has_head(stage, heads) {
                logits.push(network.head(stage, features.clone(), &|x, _| x));
            }
            decoded.push(features);
        }
        logits.reverse();
        // The features at the highest resolution are not an input of any later stage.
        decoded.pop();
        Self { input, encoded, decoded, logits }
    }

    /// Recomputes each stage, last to first, and computes its gradients.
    fn backward<A: ComputeBackend<InnerBackend = B>>(
        self,
        network: &UNet<A>,
        grad_hook: Option<&SharedGradHook<A>>,
        logit_gradients: Vec<Tensor<B, 5>>,
        gradients: &mut Gradients<A>,
    ) {
        let layer_hook = |x: Tensor<A, 5>, layer: &[usize]| with_grad_hook(network, grad_hook, x, layer);
        let leaf = |x: Tensor<B, 5>| Tensor::<A, 5>::from_inner(x).require_grad();
        let Self { input, mut encoded, mut decoded, logits } = self;
        let heads = logits.len();
        drop(logits);
        let mut logit_gradients = logit_gradients.into_iter();
        let mut skip_gradients = Vec::new();
        let mut feature_gradient: Option<Tensor<B, 5>> = None;
        let bottom = encoded.pop().expect("an encoder has stages");
        decoded.insert(0, bottom);
        // Decoder stages with their skip connections; the last stage has the highest resolution.
        for (stage, skip) in (0..network.heads()).rev().zip(&encoded) {
            let below = leaf(decoded.pop().expect("one input per stage"));
            let skip = leaf(skip.clone());
            let features = network.decoder_stage(stage, below.clone(), skip.clone(), &layer_hook);
            let mut roots = Roots::<A>::default();
            if let (true, Some(gradient)) = (network.has_head(stage, heads), logit_gradients.next()) {
                roots.add(network.head(stage, features.clone(), &layer_hook), gradient);
            }
            if let Some(gradient) = feature_gradient {
                roots.add(features, gradient);
            }
            let mut found = roots.backward();
            take_gradients(network, &mut found, gradients);
            feature_gradient = below.grad_remove(&mut found);
            skip_gradients.push(skip.grad_remove(&mut found));
        }
        for stage in (0..=network.heads()).rev() {
            let x = match stage.checked_sub(1).map(|before| encoded.swap_remove(before)) {
                Some(x) => leaf(x),
                // The gradient of the images is not needed.
                None => Tensor::from_inner(input.clone()),
            };
            let mut roots = Roots::<A>::default();
            let features = network.encoder_stage(stage, x.clone(), &layer_hook);
            let skip_gradient = skip_gradients.get_mut(stage).and_then(Option::take);
            let gradient = match (feature_gradient, skip_gradient) {
                (Some(a), Some(b)) => Some(accumulate(a, b)),
                (one, other) => one.or(other),
            };
            roots.add(features, gradient.expect("every stage's features are used"));
            let mut found = roots.backward();
            take_gradients(network, &mut found, gradients);
            feature_gradient = if stage == 0 { None } else { x.grad_remove(&mut found) };
        }
    }
}

/// Outputs of a graph whose gradients are given.
struct Roots<B: ComputeBackend>(Option<Tensor<B, 1>>);

impl<B: ComputeBackend> Default for Roots<B> {
    fn default() -> Self {
        Self(None)
    }
}

impl<B: ComputeBackend> Roots<B> {
    /// Adds a tensor with its gradient.
    fn add(&mut self, x: Tensor<B, 5>, gradient: Tensor<Inner<B>, 5>) {
        let root = ops::backward_with_grad(x, Tensor::from_inner(gradient));
        self.0 = Some(match self.0.take() {
            Some(sum) => sum + root,
            None => root,
        });
    }

    fn backward(self) -> B::Gradients {
        self.0.expect("a graph has an end").backward()
    }
}

/// Adds a gradient hook to the input of a layer: the gradients of its parameters are passed to the grad_hook during the
/// backward pass.
fn with_grad_hook<B: ComputeBackend>(
    network: &UNet<B>,
    grad_hook: Option<&SharedGradHook<B>>,
    x: Tensor<B, 5>,
    layer: &[usize],
) -> Tensor<B, 5> {
    let Some(grad_hook) = grad_hook else { return x };
    let parameters = layer.iter().map(|&number| (number, network.parameters()[number].tensor_primitive()));
    ops::grad_hook(x, parameters.collect(), grad_hook.clone())
}

/// Moves the gradients of the parameters from `found` to `gradients`.
fn take_gradients<B: ComputeBackend>(network: &UNet<B>, found: &mut B::Gradients, gradients: &mut Gradients<B>) {
    for (parameter, gradient) in network.parameters().iter().zip(gradients) {
        if let Some(found) = parameter.take_gradient(found) {
            *gradient = Some(found);
        }
    }
}

fn accumulate<B: NnOps>(a: Tensor<B, 5>, b: Tensor<B, 5>) -> Tensor<B, 5> {
    let sum = B::accumulate(a.into_primitive().tensor(), b.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(sum))
}
