//! One optimisation step: forward, loss, backward, gradient exchange, update.

use std::time::{Duration, Instant};

use burn::tensor::{
    Tensor, TensorData,
    ops::{FloatTensor, FloatTensorOps},
};
use ndarray::{Array4, ArrayView4, ArrayView5};

use super::sums::reduce_sums;
use crate::backend::ComputeBackend;
use crate::dist::{CommError, Communicator, ReduceOp};
use crate::loss::{self, GlobalSums, LossSums, SegmentationLoss};
use crate::model::{UNet, UNetSpec, batch_tensor};
use crate::ops;
use crate::optim::Optimizer;

/// Network, loss and optimiser of one rank.
pub struct TrainStep<B: ComputeBackend> {
    pub network: UNet<B>,
    pub optimizer: Optimizer<B::InnerBackend>,
    pub loss: SegmentationLoss,
    /// Weight of each head's loss, highest resolution first; heads of weight 0 are not computed.
    pub head_weights: Vec<f64>,
    /// Where the network lives.
    pub device: B::Device,
}

/// What a step has measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepMetrics {
    /// The deep-supervision loss of the global batch.
    pub loss: f64,
    /// Norm of the averaged gradient before clipping.
    pub gradient_norm: f64,
    /// Time spent in collectives.
    pub communication: Duration,
}

/// One head's logits on the host with its target.
struct Head<'a, B: ComputeBackend> {
    logits: Tensor<B, 5>,
    values: Vec<f32>,
    labels: &'a [i16],
    sums: LossSums,
    weight: f64,
}

impl<B: ComputeBackend> TrainStep<B> {
    /// Prepares a network for training.
    pub fn new(
        network: UNet<B>,
        optimizer: Optimizer<B::InnerBackend>,
        loss: SegmentationLoss,
        head_weights: Vec<f64>,
        device: B::Device,
    ) -> Self {
        Self { network: network.require_gradients(), optimizer, loss, head_weights, device }
    }

    /// The labels `(n, z, y, x)` at the resolution of each head that has a weight.
    pub fn targets(&self, labels: ArrayView4<i16>) -> Vec<Array4<i16>> {
        head_targets(self.network.spec(), &self.head_weights, labels)
    }

    /// One step on this rank's part of the global batch: images `(n, c, z, y, x)` and their [`TrainStep::targets`].
    pub fn run(
        &mut self,
        images: ArrayView5<f32>,
        targets: &[Array4<i16>],
        learning_rate: f64,
        comm: &dyn Communicator,
    ) -> Result<StepMetrics, CommError> {
        let mut metrics = StepMetrics::default();
        let mut gradients = self.gradients(images, targets, comm, &mut metrics)?;
        let start = Instant::now();
        exchange::<B>(&self.network, &mut gradients, comm, &self.device)?;
        metrics.communication += start.elapsed();
        let report = self.optimizer.step::<B>(self.network.parameters_mut(), gradients, learning_rate);
        metrics.gradient_norm = report.gradient_norm;
        Ok(metrics)
    }

    /// This rank's gradients, one per parameter; their mean over the ranks is the gradient of the global loss.
    pub fn gradients(
        &self,
        images: ArrayView5<f32>,
        targets: &[Array4<i16>],
        comm: &dyn Communicator,
        metrics: &mut StepMetrics,
    ) -> Result<Vec<Option<FloatTensor<B::InnerBackend>>>, CommError> {
        let n = images.dim().0;
        let heads = self.heads(images, targets);
        let start = Instant::now();
        let sums: Vec<_> = heads.iter().map(|head| &head.sums).collect();
        let global = reduce_sums(&sums, self.loss.batch_dice, comm)?;
        metrics.communication += start.elapsed();

        let mut root = Tensor::<B, 1>::zeros([1], &self.device);
        for (head, global) in heads.into_iter().zip(global) {
            metrics.loss += head.weight * self.loss.value(&global).total;
            let sums = GlobalSums { local: head.sums, global, world_size: comm.world_size() };
            let gradient = self.loss.gradient(&head.values, head.labels, n, &sums, head.weight);
            let gradient = Tensor::from_data(TensorData::new(gradient, head.logits.dims()), &self.device);
            root = root + ops::seed_gradient(head.logits, gradient);
        }
        let mut gradients = root.backward();
        Ok(self.network.parameters().iter().map(|parameter| parameter.take_gradient(&mut gradients)).collect())
    }

    /// Runs the network and sums up the loss of each head that has a weight.
    fn heads<'a>(&self, images: ArrayView5<f32>, targets: &'a [Array4<i16>]) -> Vec<Head<'a, B>> {
        let n = images.dim().0;
        let weights = self.head_weights.iter().copied().filter(|weight| *weight > 0.0);
        let logits = self.network.forward(batch_tensor(images, &self.device), targets.len());
        logits
            .into_iter()
            .zip(targets)
            .zip(weights)
            .map(|((logits, labels), weight)| {
                let values = logits.clone().inner().into_data().convert::<f32>().into_vec().expect("converted to f32");
                let labels = labels.as_slice().expect("targets are made in C order");
                let sums = self.loss.sums(&values, labels, n);
                Head { logits, values, labels, sums, weight }
            })
            .collect()
    }
}

/// Labels `(n, z, y, x)` at the resolution of each head that has a weight, highest first.
pub fn head_targets(spec: &UNetSpec, head_weights: &[f64], labels: ArrayView4<i16>) -> Vec<Array4<i16>> {
    let (_, z, y, x) = labels.dim();
    let weighted = spec.head_extents([z, y, x]).into_iter().zip(head_weights).filter(|(_, weight)| **weight > 0.0);
    weighted.map(|(extent, _)| loss::downsample_labels(labels, extent)).collect()
}

/// Averages the gradients over the ranks through one flat buffer.
fn exchange<B: ComputeBackend>(
    network: &UNet<B>,
    gradients: &mut [Option<FloatTensor<B::InnerBackend>>],
    comm: &dyn Communicator,
    device: &B::Device,
) -> Result<(), CommError> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let mut flat = Vec::with_capacity(network.num_values());
    for gradient in gradients.iter().flatten() {
        let data = burn::tensor::read_sync(B::InnerBackend::float_into_data(gradient.clone()))
            .expect("gradients can be read back");
        flat.extend_from_slice(data.as_slice::<f32>().expect("gradients are f32"));
    }
    comm.all_reduce(&mut flat, ReduceOp::Mean, "gradients")?;
    let mut offset = 0;
    for (gradient, parameter) in gradients.iter_mut().zip(network.parameters()) {
        if gradient.is_some() {
            let values = flat[offset..offset + parameter.spec.len()].to_vec();
            offset += parameter.spec.len();
            let data = TensorData::new(values, parameter.spec.shape.clone());
            *gradient = Some(B::InnerBackend::float_from_data(data, device));
        }
    }
    Ok(())
}
