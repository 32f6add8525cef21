//! A forward pass of the network, and the way back.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorPrimitive, backend::AutodiffBackend, ops::FloatTensor};

use super::batch::Inner;
use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::model::UNet;
use nnunet_nn::ops::{self, GradHook, NnOps};

/// One gradient per parameter; `None` for those that have none.
pub(super) type Gradients<B> = Vec<Option<FloatTensor<<B as AutodiffBackend>::InnerBackend>>>;

/// Where gradients go while the backward pass goes on.
pub(super) type Sink<B> = Arc<dyn GradHook<Inner<B>>>;

/// A forward pass that awaits the gradients of its logits.
pub(super) struct Pass<'a, B: ComputeBackend> {
    network: &'a UNet<B>,
    sink: Option<Sink<B>>,
    kept: Kept<B>,
}

/// What is kept for the way back.
enum Kept<B: ComputeBackend> {
    /// All that the gradients need, in the graph that ends in these logits.
    Graph(Vec<Tensor<B, 5>>),
    /// What the stages hand to each other; all else is computed once more when it is needed (gradient checkpointing, Chen et
    /// al. 2016, with the network's stages as segments).
    Stages(Stages<Inner<B>>),
}

/// The activations between stages.
struct Stages<B: NnOps> {
    input: Tensor<B, 5>,
    /// Of each encoder stage, highest resolution first.
    encoded: Vec<Tensor<B, 5>>,
    /// Of each decoder stage, lowest resolution first.
    decoded: Vec<Tensor<B, 5>>,
    /// Highest resolution first.
    logits: Vec<Tensor<B, 5>>,
}

impl<'a, B: ComputeBackend> Pass<'a, B> {
    /// Runs the network on images `(n, z, y, x, c)`, as far as the first `heads` need it. Gradients go to `sink` on the way
    /// back, if there is one. With `checkpointing` only the activations between stages are kept.
    pub(super) fn new(
        network: &'a UNet<B>,
        images: Tensor<Inner<B>, 5>,
        heads: usize,
        sink: Option<Sink<B>>,
        checkpointing: bool,
    ) -> Self {
        let kept = match checkpointing {
            true => Kept::Stages(Stages::new(&network.valid(), images, heads)),
            false => {
                let images = Tensor::from_inner(images);
                Kept::Graph(network.forward_tapped(images, heads, &|x, layer| tapped(network, sink.as_ref(), x, layer)))
            }
        };
        Self { network, sink, kept }
    }

    /// The logits `(n, z, y, x, classes)` of each head, highest resolution first.
    pub(super) fn logits(&self) -> Vec<Tensor<Inner<B>, 5>> {
        match &self.kept {
            Kept::Graph(logits) => logits.iter().map(|logits| logits.clone().inner()).collect(),
            Kept::Stages(stages) => stages.logits.clone(),
        }
    }

    /// The gradients of the parameters, those of the logits given, as far as the sink has not taken them.
    pub(super) fn backward(self, of_logits: Vec<Tensor<Inner<B>, 5>>) -> Gradients<B> {
        let Self { network, sink, kept } = self;
        let mut gradients = vec![None; network.parameters().len()];
        match kept {
            Kept::Graph(logits) => {
                let mut roots = Roots::<B>::default();
                logits.into_iter().zip(of_logits).for_each(|(logits, gradient)| roots.add(logits, gradient));
                let mut found = roots.backward();
                take_gradients(network, &mut found, &mut gradients);
            }
            Kept::Stages(stages) => stages.backward(network, sink.as_ref(), of_logits, &mut gradients),
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
        // Nothing is computed from the features at the highest resolution.
        decoded.pop();
        Self { input, encoded, decoded, logits }
    }

    /// Computes stage after stage once more, last to first, and its gradients.
    fn backward<A: ComputeBackend<InnerBackend = B>>(
        self,
        network: &UNet<A>,
        sink: Option<&Sink<A>>,
        of_logits: Vec<Tensor<B, 5>>,
        gradients: &mut Gradients<A>,
    ) {
        let tap = |x: Tensor<A, 5>, layer: &[usize]| tapped(network, sink, x, layer);
        let leaf = |x: Tensor<B, 5>| Tensor::<A, 5>::from_inner(x).require_grad();
        let Self { input, mut encoded, mut decoded, logits } = self;
        let heads = logits.len();
        drop(logits);
        let mut of_logits = of_logits.into_iter();
        let mut of_skips = Vec::new();
        let mut of_features: Option<Tensor<B, 5>> = None;
        let bottom = encoded.pop().expect("an encoder has stages");
        decoded.insert(0, bottom);
        // The decoder's stages, each with the skip that enters it: the highest resolution has the last stage.
        for (stage, skip) in (0..network.heads()).rev().zip(&encoded) {
            let below = leaf(decoded.pop().expect("one input per stage"));
            let skip = leaf(skip.clone());
            let features = network.decoder_stage(stage, below.clone(), skip.clone(), &tap);
            let mut roots = Roots::<A>::default();
            if let (true, Some(gradient)) = (network.has_head(stage, heads), of_logits.next()) {
                roots.add(network.head(stage, features.clone(), &tap), gradient);
            }
            if let Some(gradient) = of_features {
                roots.add(features, gradient);
            }
            let mut found = roots.backward();
            take_gradients(network, &mut found, gradients);
            of_features = below.grad_remove(&mut found);
            of_skips.push(skip.grad_remove(&mut found));
        }
        for stage in (0..=network.heads()).rev() {
            let x = match stage.checked_sub(1).map(|before| encoded.swap_remove(before)) {
                Some(x) => leaf(x),
                // Nobody asks for the gradient of the images.
                None => Tensor::from_inner(input.clone()),
            };
            let mut roots = Roots::<A>::default();
            let features = network.encoder_stage(stage, x.clone(), &tap);
            let of_skip = of_skips.get_mut(stage).and_then(Option::take);
            let gradient = match (of_features, of_skip) {
                (Some(a), Some(b)) => Some(accumulate(a, b)),
                (one, other) => one.or(other),
            };
            roots.add(features, gradient.expect("every stage's features are used"));
            let mut found = roots.backward();
            take_gradients(network, &mut found, gradients);
            of_features = if stage == 0 { None } else { x.grad_remove(&mut found) };
        }
    }
}

/// The ends of a graph.
struct Roots<B: ComputeBackend>(Option<Tensor<B, 1>>);

impl<B: ComputeBackend> Default for Roots<B> {
    fn default() -> Self {
        Self(None)
    }
}

impl<B: ComputeBackend> Roots<B> {
    /// Adds a tensor whose gradient is known.
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

/// The activations that enter a layer, whose gradients go to the sink on the way back.
fn tapped<B: ComputeBackend>(
    network: &UNet<B>,
    sink: Option<&Sink<B>>,
    x: Tensor<B, 5>,
    layer: &[usize],
) -> Tensor<B, 5> {
    let Some(sink) = sink else { return x };
    let parameters = layer.iter().map(|&number| (number, network.parameters()[number].tensor_primitive()));
    ops::grad_hook(x, parameters.collect(), sink.clone())
}

/// Puts the parameters' gradients that are among those found where they belong.
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
