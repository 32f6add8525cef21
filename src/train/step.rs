//! One optimization step: forward pass, loss and backward pass of its batches, with overlapped gradient reduction, and
//! the weight update.
//!
//! If the backend computes the loss on the device, a step is only queued, and the metrics of several steps are read
//! later at once ([`TrainStep::metrics`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Tensor, TensorData, backend::Backend, ops::FloatTensor};
use ndarray::{Array4, ArrayView4, ArrayView5};

use super::batch::{DeviceBatch, Inner, Targets, Upload, head_targets};
use super::device_loss::{DeviceLoss, host_all};
use super::exchange::{Exchange, ExchangeOptions, exchange};
use super::pass::{Gradients, Pass, Sink};
use super::sums::reduce_sums;
use nnunet_comm::distributed::{BucketLayout, CommError, Communicator, ReduceOp};
use nnunet_core::trace;
use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::loss::{GlobalSums, LossSums, SegmentationLoss};
use nnunet_nn::model::UNet;
use nnunet_nn::ops::{NnOps, UpdateDecision};
use nnunet_nn::optim::Optimizer;

/// Network, loss and optimizer of one rank.
pub struct TrainStep<B: ComputeBackend> {
    pub network: UNet<B>,
    pub optimizer: Optimizer<B::InnerBackend>,
    pub loss: SegmentationLoss,
    /// Weight of each head's loss, highest resolution first; heads of weight 0 are not computed.
    pub head_weights: Vec<f64>,
    /// Device of the network.
    pub device: B::Device,
    /// Whether this rank has been asked to stop; communicated to all ranks with the next metrics.
    pub stop_requested: bool,
    /// `None` if the host computes the loss.
    device_loss: Option<DeviceLoss<B::InnerBackend>>,
    /// `None` if there is nothing to average: one rank and no gradient accumulation.
    exchange: Option<Arc<dyn Exchange<B::InnerBackend>>>,
    accumulate: usize,
    /// Gradient checkpointing: recompute activations within the network's stages in the backward pass.
    checkpointing: bool,
    /// Number of batches of the current step so far.
    batches: usize,
    /// Measurements of the current step.
    current: Measured<B::InnerBackend>,
    /// Gradients of the step's only batch, if there is nothing to average.
    gradients: Gradients<B>,
    /// Updates whose metrics have not been read yet.
    pending: Vec<Measured<B::InnerBackend>>,
}

/// Metrics of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepMetrics {
    /// The deep-supervision loss of the global batch.
    pub loss: f64,
    /// L2 norm of the averaged gradient before clipping; not finite if the step was skipped.
    pub gradient_norm: f64,
    /// Loss scale.
    pub loss_scale: f64,
    /// Time spent waiting in collectives.
    pub communication: Duration,
    /// Whether any rank has been asked to stop.
    pub stop_requested: bool,
}

/// Measurements of a step: values known on the host, and tensors on the device.
struct Measured<B: Backend> {
    /// Loss computed by the host.
    loss: f64,
    communication: Duration,
    stop_requested: bool,
    /// Loss sums of each batch's heads on the device.
    sums: Vec<FloatTensor<B>>,
    /// Update decision, with the gradient norm.
    decision: Option<FloatTensor<B>>,
}

impl<B: Backend> Default for Measured<B> {
    fn default() -> Self {
        let (sums, decision) = (Vec::new(), None);
        Self { loss: 0.0, communication: Duration::ZERO, stop_requested: false, sums, decision }
    }
}

/// Activations and target of one head on the host.
struct HostHead<'a> {
    /// Extents of the logits, `(n, z, y, x, c)`.
    extents: [usize; 5],
    activations: Vec<f32>,
    labels: &'a [i16],
    sums: LossSums,
    weight: f64,
}

impl<B: ComputeBackend> TrainStep<B> {
    /// Prepares a network for training on one rank, with one batch per step.
    pub fn new(
        network: UNet<B>,
        optimizer: Optimizer<B::InnerBackend>,
        loss: SegmentationLoss,
        head_weights: Vec<f64>,
        device: B::Device,
    ) -> Self {
        let device_loss = DeviceLoss::new(&loss, network.spec().classes, &device);
        if device_loss.is_none() && Inner::<B>::device_loss().is_some() {
            tracing::warn!("the device has no {} loss: computing it on the host, which is slower", loss.name());
        }
        Self {
            device_loss,
            network: network.require_gradients(),
            optimizer,
            loss,
            head_weights,
            device,
            stop_requested: false,
            exchange: None,
            accumulate: 1,
            checkpointing: false,
            batches: 0,
            current: Measured::default(),
            gradients: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Enables or disables gradient checkpointing, which saves memory but costs another forward pass.
    pub fn with_checkpointing(self, checkpointing: bool) -> Self {
        Self { checkpointing, ..self }
    }

    /// Enables averaging of the gradients over the batches of a step and the ranks. A collective.
    ///
    /// # Errors
    /// Returns an error if the options differ between ranks, or a rank is lost.
    pub fn connect(mut self, options: ExchangeOptions, comm: &dyn Communicator) -> Result<Self, CommError> {
        self.accumulate = options.accumulate;
        if comm.world_size() > 1 || options.accumulate > 1 {
            let shapes = self.network.parameters().iter().map(|parameter| parameter.spec.shape.clone()).collect();
            let layout = self.bucket_layout(options.bucket_len);
            self.exchange = Some(exchange::<B::InnerBackend>(layout, shapes, options, comm, &self.device)?);
        }
        Ok(self)
    }

    /// Returns the layout of the gradients in buckets of at most `bucket_len` values.
    pub fn bucket_layout(&self, bucket_len: usize) -> BucketLayout {
        let lengths: Vec<_> = self.network.parameters().iter().map(|parameter| parameter.spec.len()).collect();
        let heads = self.head_weights.iter().filter(|weight| **weight > 0.0).count();
        BucketLayout::new(&lengths, &self.network.order_of_use(heads), bucket_len)
    }

    /// Returns the uploader of batches to the device of the network.
    pub fn upload(&self) -> Upload<B> {
        Upload {
            spec: self.network.spec().clone(),
            head_weights: self.head_weights.clone(),
            to_device_loss: self.device_loss.is_some(),
            dtype: self.network.input_format(),
            device: self.device.clone(),
        }
    }

    /// Returns the labels `(n, z, y, x)` at the resolution of each head with a non-zero weight.
    pub fn targets(&self, labels: ArrayView4<i16>) -> Vec<Array4<i16>> {
        head_targets(self.network.spec(), &self.head_weights, labels)
    }

    /// Returns whether steps are only queued, so that their metrics are available later.
    pub fn is_queued(&self) -> bool {
        self.device_loss.is_some()
    }

    /// Runs a step with one batch and waits for it: images `(n, c, z, y, x)` and their [`TrainStep::targets`].
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn run(
        &mut self,
        images: ArrayView5<f32>,
        targets: &[Array4<i16>],
        learning_rate: f64,
        comm: &dyn Communicator,
    ) -> Result<StepMetrics, CommError> {
        self.add(self.upload().batch_with(images, targets.to_vec()), comm)?;
        self.update(learning_rate)?;
        Ok(self.metrics(comm)?.pop().unwrap_or_default())
    }

    /// Runs forward and backward pass on a batch, this rank's part of the global batch, and adds its gradients to the
    /// step.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn add(&mut self, batch: DeviceBatch<B::InnerBackend>, comm: &dyn Communicator) -> Result<(), CommError> {
        if let Some(exchange) = &self.exchange {
            exchange.begin(self.batches);
        }
        self.batches += 1;
        let rest = match &batch.targets {
            Targets::Host(targets) => self.host_pass(batch.images, targets, comm)?,
            Targets::Device(targets) => self.queued_pass(batch.images, targets, comm)?,
        };
        match &self.exchange {
            // Gradients of the first layer; all others have been passed on during the backward pass.
            Some(exchange) => rest.into_iter().enumerate().for_each(|(number, gradient)| {
                if let Some(gradient) = gradient {
                    exchange.ready(number, gradient);
                }
            }),
            None => self.gradients = rest,
        }
        Ok(())
    }

    /// Ends the step: waits for the averaged gradients, or queues this on the device, and updates the weights.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn update(&mut self, learning_rate: f64) -> Result<(), CommError> {
        let gradients = self.end()?;
        let device = self.device.clone();
        let decision = phase::<B, _>("update", &device, || {
            self.optimizer.step::<B>(self.network.parameters_mut(), gradients, learning_rate, &self.device)
        });
        self.current.decision = Some(decision);
        self.pending.push(std::mem::take(&mut self.current));
        Ok(())
    }

    /// Ends the step without an update and returns the averaged gradients, one per parameter.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn gradients(&mut self) -> Result<Gradients<B>, CommError> {
        let gradients = self.end();
        self.current = Measured::default();
        gradients
    }

    fn end(&mut self) -> Result<Gradients<B>, CommError> {
        self.batches = 0;
        let Some(exchange) = &self.exchange else { return Ok(std::mem::take(&mut self.gradients)) };
        let start = Instant::now();
        let gradients = phase::<B, _>("wait for gradients", &self.device, || exchange.finish())?;
        self.current.communication += start.elapsed();
        Ok(gradients)
    }

    /// Returns the number of updates whose metrics have not been read yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Waits for the updates since the last call and returns their metrics, oldest first. A collective.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn metrics(&mut self, comm: &dyn Communicator) -> Result<Vec<StepMetrics>, CommError> {
        let pending = std::mem::take(&mut self.pending);
        let mut values =
            host_all::<Inner<B>>(pending.iter().flat_map(|step| step.sums.iter().chain(&step.decision))).into_iter();
        let mut metrics: Vec<_> = pending.iter().map(|step| self.metrics_of(step, &mut values)).collect();
        if self.is_queued() && comm.world_size() > 1 {
            self.agree(&mut metrics, comm)?;
        }
        Ok(metrics)
    }

    /// Computes the metrics of a step from its values.
    fn metrics_of(&self, step: &Measured<B::InnerBackend>, values: &mut impl Iterator<Item = Vec<f32>>) -> StepMetrics {
        let weights: Vec<f64> = self.head_weights.iter().copied().filter(|weight| *weight > 0.0).collect();
        let mut loss = step.loss;
        if let Some(device_loss) = &self.device_loss {
            let channels = self.network.spec().classes;
            for (sums, weight) in values.by_ref().take(step.sums.len()).zip(weights.iter().cycle()) {
                let value = self.loss.value(&device_loss.loss_sums(&sums, channels));
                loss += weight * value.total / self.accumulate as f64;
            }
        }
        let decision = values.next().map(|values| UpdateDecision::from_values(&values));
        StepMetrics {
            loss,
            gradient_norm: decision.map_or(0.0, |decision| f64::from(decision.norm)),
            loss_scale: decision.map_or(1.0, |decision| f64::from(decision.scale)),
            communication: step.communication,
            stop_requested: step.stop_requested || (self.is_queued() && self.stop_requested),
        }
    }

    /// Averages the losses over the ranks, and distributes stop requests to all ranks.
    fn agree(&self, metrics: &mut [StepMetrics], comm: &dyn Communicator) -> Result<(), CommError> {
        let mut values: Vec<f64> = metrics.iter().map(|metrics| metrics.loss).collect();
        values.push(f64::from(u8::from(self.stop_requested)));
        comm.all_reduce_f64(&mut values, ReduceOp::Mean, "losses")?;
        let stop_requested = values.pop().is_some_and(|share| share > 0.0);
        for (metrics, loss) in metrics.iter_mut().zip(values) {
            metrics.loss = loss;
            metrics.stop_requested = stop_requested;
        }
        Ok(())
    }

    /// Runs a batch whose loss is computed on the device. Returns the gradients that have not been passed to the
    /// reducer.
    fn queued_pass(
        &mut self,
        images: Tensor<B::InnerBackend, 5>,
        targets: &[Tensor<B::InnerBackend, 4, burn::tensor::Int>],
        comm: &dyn Communicator,
    ) -> Result<Gradients<B>, CommError> {
        let scaler = self.optimizer.scaler(&self.device);
        let sink = self.exchange.clone().map(|exchange| exchange as Sink<B>);
        let device = self.device.clone();
        let forward = || Pass::new(&self.network, images, targets.len(), sink, self.checkpointing);
        let pass = phase::<B, _>("forward", &device, forward);
        let Some(loss) = &self.device_loss else { unreachable!("targets are on the device where the loss is") };
        let heads: Vec<_> = phase::<B, _>("loss", &device, || {
            pass.logits().into_iter().zip(targets).map(|(logits, labels)| loss.sums(logits, labels.clone())).collect()
        });
        let start = Instant::now();
        let globals = phase::<B, _>("sum of losses over ranks", &device, || loss.all_ranks(&heads, comm))?;
        self.current.communication += start.elapsed();
        self.current.sums.extend(heads.iter().zip(&globals).map(|(head, global)| loss.logged(head, global)));
        let weights = self.head_weights.iter().copied().filter(|weight| *weight > 0.0);
        let heads = heads.into_iter().zip(globals).zip(weights);
        let gradients = heads
            .map(|((head, global), weight)| loss.gradient(head, global, scaler.clone(), weight, comm.world_size()))
            .collect();
        Ok(phase::<B, _>("backward", &device, || pass.backward(gradients)))
    }

    /// Runs a batch whose loss is computed on the host. Returns the gradients that have not been passed to the reducer.
    /// Averaged over the ranks, the gradients are those of the global loss.
    fn host_pass(
        &mut self,
        images: Tensor<B::InnerBackend, 5>,
        targets: &[Array4<i16>],
        comm: &dyn Communicator,
    ) -> Result<Gradients<B>, CommError> {
        let n = images.dims()[0];
        let loss_scale = self.optimizer.loss_scale(&self.device);
        let sink = self.exchange.clone().map(|exchange| exchange as Sink<B>);
        let device = self.device.clone();
        let forward = || Pass::new(&self.network, images, targets.len(), sink, self.checkpointing);
        let pass = phase::<B, _>("forward", &device, forward);
        let mut heads = phase::<B, _>("loss", &device, || self.host_heads(pass.logits(), targets));
        let start = Instant::now();
        let mut sums: Vec<_> = heads.iter_mut().map(|head| &mut head.sums).collect();
        let stop = self.stop_requested;
        let sum_over_ranks = || reduce_sums(&self.loss, &mut sums, stop, comm);
        let global = phase::<B, _>("sum of losses over ranks", &device, sum_over_ranks)?;
        self.current.communication += start.elapsed();
        self.current.stop_requested |= global.stop_requested;

        let gradient_span = trace::span("gradient of the loss");
        let mut gradients = Vec::with_capacity(heads.len());
        for (head, global) in heads.into_iter().zip(global.heads) {
            self.current.loss += head.weight * self.loss.value(&global).total / self.accumulate as f64;
            let sums = GlobalSums { local: head.sums, global, world_size: comm.world_size() };
            let mut values = head.activations;
            self.loss.gradient(&mut values, head.labels, n, &sums, loss_scale * head.weight);
            gradients.push(Tensor::from_data(TensorData::new(values, head.extents), &self.device));
        }
        drop(gradient_span);
        Ok(phase::<B, _>("backward", &device, || pass.backward(gradients)))
    }

    /// Computes the loss sums of each head with a non-zero weight.
    fn host_heads<'a>(&self, logits: Vec<Tensor<B::InnerBackend, 5>>, targets: &'a [Array4<i16>]) -> Vec<HostHead<'a>> {
        let weights = self.head_weights.iter().copied().filter(|weight| *weight > 0.0);
        let heads = logits.into_iter().zip(targets).zip(weights).map(|((logits, labels), weight)| {
            let extents = logits.dims();
            let mut activations = logits.into_data().convert::<f32>().into_vec().expect("converted to f32");
            let labels = labels.as_slice().expect("targets are made in C order");
            let sums = self.loss.sums(&mut activations, labels, extents[0]);
            HostHead { extents, activations, labels, sums, weight }
        });
        heads.collect()
    }
}

/// Runs a part of the step in a trace span. While recording, also waits for the device; otherwise the time of queued
/// work would be attributed to the part that waits for it.
fn phase<B: ComputeBackend, T>(name: &'static str, device: &B::Device, work: impl FnOnce() -> T) -> T {
    let _span = trace::span(name);
    let result = work();
    if trace::is_on() {
        // An error on the device is reported when its results are read.
        let _ = B::sync(device);
    }
    result
}
