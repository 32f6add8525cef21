//! One optimisation step: forward, loss and backward of its batches, with the gradients exchanged on the way, and the
//! update.

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Tensor, TensorData, backend::AutodiffBackend, ops::FloatTensor};
use ndarray::{Array4, ArrayView4, ArrayView5};

use super::exchange::{Exchange, ExchangeOptions, exchange};
use super::sums::reduce_sums;
use crate::backend::ComputeBackend;
use crate::dist::{BucketLayout, CommError, Communicator};
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
    /// Whether this rank has been asked to stop; all ranks learn of it in the next step.
    pub stop_requested: bool,
    /// `None` where there is nothing to average.
    exchange: Option<Arc<dyn Exchange<B::InnerBackend>>>,
    accumulate: usize,
    /// Batches of the step so far.
    batches: usize,
    /// Of the step so far.
    metrics: StepMetrics,
    /// Of the step's only batch, where nothing is exchanged.
    gradients: Gradients<B>,
}

/// One gradient per parameter; `None` for those that have none.
type Gradients<B> = Vec<Option<FloatTensor<<B as AutodiffBackend>::InnerBackend>>>;

/// What a step has measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepMetrics {
    /// The deep-supervision loss of the global batch.
    pub loss: f64,
    /// Norm of the averaged gradient before clipping.
    pub gradient_norm: f64,
    /// Time spent waiting in collectives.
    pub communication: Duration,
    /// Whether any rank has been asked to stop.
    pub stop_requested: bool,
}

/// One head's logits, and on the host its activations and target.
struct Head<'a, B: ComputeBackend> {
    logits: Tensor<B, 5>,
    activations: Vec<f32>,
    labels: &'a [i16],
    sums: LossSums,
    weight: f64,
}

impl<B: ComputeBackend> TrainStep<B> {
    /// Prepares a network for training on one rank, in steps of one batch.
    pub fn new(
        network: UNet<B>,
        optimizer: Optimizer<B::InnerBackend>,
        loss: SegmentationLoss,
        head_weights: Vec<f64>,
        device: B::Device,
    ) -> Self {
        Self {
            network: network.require_gradients(),
            optimizer,
            loss,
            head_weights,
            device,
            stop_requested: false,
            exchange: None,
            accumulate: 1,
            batches: 0,
            metrics: StepMetrics::default(),
            gradients: Vec::new(),
        }
    }

    /// Averages the gradients of each step over its batches and the ranks from now on. A collective.
    ///
    /// # Errors
    /// The ranks do not agree on how, or one is gone.
    pub fn connect(mut self, options: ExchangeOptions, comm: &dyn Communicator) -> Result<Self, CommError> {
        self.accumulate = options.accumulate;
        if comm.world_size() > 1 || options.accumulate > 1 {
            let shapes = self.network.parameters().iter().map(|parameter| parameter.spec.shape.clone()).collect();
            let layout = self.bucket_layout(options.bucket_len);
            self.exchange = Some(exchange::<B::InnerBackend>(layout, shapes, options, comm, &self.device)?);
        }
        Ok(self)
    }

    /// How the gradients are packed, in buckets of at most `bucket_len` values.
    pub fn bucket_layout(&self, bucket_len: usize) -> BucketLayout {
        let lengths: Vec<_> = self.network.parameters().iter().map(|parameter| parameter.spec.len()).collect();
        let heads = self.head_weights.iter().filter(|weight| **weight > 0.0).count();
        BucketLayout::new(&lengths, &self.network.order_of_use(heads), bucket_len)
    }

    /// The labels `(n, z, y, x)` at the resolution of each head that has a weight.
    pub fn targets(&self, labels: ArrayView4<i16>) -> Vec<Array4<i16>> {
        head_targets(self.network.spec(), &self.head_weights, labels)
    }

    /// A step of one batch: [`TrainStep::add`] and [`TrainStep::update`].
    ///
    /// # Errors
    /// A rank is gone.
    pub fn run(
        &mut self,
        images: ArrayView5<f32>,
        targets: &[Array4<i16>],
        learning_rate: f64,
        comm: &dyn Communicator,
    ) -> Result<StepMetrics, CommError> {
        self.add(images, targets, comm)?;
        self.update(learning_rate)
    }

    /// Adds the gradients of a batch to the step's: this rank's part of the global batch, images `(n, c, z, y, x)` and
    /// their [`TrainStep::targets`].
    ///
    /// # Errors
    /// A rank is gone.
    pub fn add(
        &mut self,
        images: ArrayView5<f32>,
        targets: &[Array4<i16>],
        comm: &dyn Communicator,
    ) -> Result<(), CommError> {
        if let Some(exchange) = &self.exchange {
            exchange.begin(self.batches);
        }
        self.batches += 1;
        let mut gradients = self.backward(images, targets, comm)?;
        let rest = self.network.parameters().iter().map(|parameter| parameter.take_gradient(&mut gradients));
        match &self.exchange {
            // Those of the first layer; all others have been handed over on the way.
            Some(exchange) => rest.enumerate().for_each(|(number, gradient)| {
                if let Some(gradient) = gradient {
                    exchange.ready(number, gradient);
                }
            }),
            None => self.gradients = rest.collect(),
        }
        Ok(())
    }

    /// Ends the step: waits for the averaged gradients and updates the weights.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn update(&mut self, learning_rate: f64) -> Result<StepMetrics, CommError> {
        let (gradients, mut metrics) = self.end()?;
        let report = self.optimizer.step::<B>(self.network.parameters_mut(), gradients, learning_rate);
        metrics.gradient_norm = report.gradient_norm;
        Ok(metrics)
    }

    /// Ends the step without an update, and gives the averaged gradients, one per parameter.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn gradients(&mut self) -> Result<Gradients<B>, CommError> {
        Ok(self.end()?.0)
    }

    fn end(&mut self) -> Result<(Gradients<B>, StepMetrics), CommError> {
        self.batches = 0;
        let mut metrics = std::mem::take(&mut self.metrics);
        let Some(exchange) = &self.exchange else { return Ok((std::mem::take(&mut self.gradients), metrics)) };
        let start = Instant::now();
        let gradients = exchange.finish()?;
        metrics.communication += start.elapsed();
        Ok((gradients, metrics))
    }

    /// Forward, loss and backward of a batch. Averaged over the ranks, the gradients are those of the global loss.
    fn backward(
        &mut self,
        images: ArrayView5<f32>,
        targets: &[Array4<i16>],
        comm: &dyn Communicator,
    ) -> Result<B::Gradients, CommError> {
        let n = images.dim().0;
        let heads = self.heads(images, targets);
        let start = Instant::now();
        let sums: Vec<_> = heads.iter().map(|head| &head.sums).collect();
        let global = reduce_sums(&sums, self.loss.batch_dice, self.stop_requested, comm)?;
        let mut metrics = self.metrics;
        metrics.communication += start.elapsed();
        metrics.stop_requested |= global.stop_requested;

        let mut root = Tensor::<B, 1>::zeros([1], &self.device);
        for (head, global) in heads.into_iter().zip(global.heads) {
            metrics.loss += head.weight * self.loss.value(&global).total / self.accumulate as f64;
            let sums = GlobalSums { local: head.sums, global, world_size: comm.world_size() };
            let mut values = head.activations;
            self.loss.gradient(&mut values, head.labels, n, &sums, head.weight);
            let gradient = Tensor::from_data(TensorData::new(values, head.logits.dims()), &self.device);
            root = root + ops::seed_gradient(head.logits, gradient);
        }
        self.metrics = metrics;
        Ok(root.backward())
    }

    /// Runs the network and sums up the loss of each head that has a weight.
    fn heads<'a>(&self, images: ArrayView5<f32>, targets: &'a [Array4<i16>]) -> Vec<Head<'a, B>> {
        let n = images.dim().0;
        let weights = self.head_weights.iter().copied().filter(|weight| *weight > 0.0);
        let images = batch_tensor(images, &self.device);
        let logits = match &self.exchange {
            Some(exchange) => self.network.forward_tapped(images, targets.len(), &|x, layer| {
                let parameters =
                    layer.iter().map(|&number| (number, self.network.parameters()[number].tensor_primitive()));
                ops::tap(x, parameters.collect(), exchange.clone())
            }),
            None => self.network.forward(images, targets.len()),
        };
        logits
            .into_iter()
            .zip(targets)
            .zip(weights)
            .map(|((logits, labels), weight)| {
                let mut values =
                    logits.clone().inner().into_data().convert::<f32>().into_vec().expect("converted to f32");
                let labels = labels.as_slice().expect("targets are made in C order");
                let sums = self.loss.sums(&mut values, labels, n);
                Head { logits, activations: values, labels, sums, weight }
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
