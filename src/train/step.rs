//! One optimisation step: forward, loss and backward of its batches, with the gradients exchanged on the way, and the
//! update.
//!
//! Where the backend has the loss on its device, a step is only queued: what it has measured is asked for later, of
//! several steps at once ([`TrainStep::metrics`]).

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

/// Network, loss and optimiser of one rank.
pub struct TrainStep<B: ComputeBackend> {
    pub network: UNet<B>,
    pub optimizer: Optimizer<B::InnerBackend>,
    pub loss: SegmentationLoss,
    /// Weight of each head's loss, highest resolution first; heads of weight 0 are not computed.
    pub head_weights: Vec<f64>,
    /// Where the network lives.
    pub device: B::Device,
    /// Whether this rank has been asked to stop; all ranks learn of it with the next metrics.
    pub stop_requested: bool,
    /// `None` where the host computes the loss.
    device_loss: Option<DeviceLoss<B::InnerBackend>>,
    /// `None` where there is nothing to average.
    exchange: Option<Arc<dyn Exchange<B::InnerBackend>>>,
    accumulate: usize,
    /// Compute activations within the network's stages once more on the way back, rather than keep them.
    checkpointing: bool,
    /// Batches of the step so far.
    batches: usize,
    /// Of the step so far.
    current: Measured<B::InnerBackend>,
    /// Of the step's only batch, where nothing is exchanged.
    gradients: Gradients<B>,
    /// Of the updates whose metrics have not been asked for.
    pending: Vec<Measured<B::InnerBackend>>,
}

/// What a step has measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepMetrics {
    /// The deep-supervision loss of the global batch.
    pub loss: f64,
    /// Norm of the averaged gradient before clipping; not finite where the step was skipped.
    pub gradient_norm: f64,
    /// By which the loss was multiplied.
    pub loss_scale: f64,
    /// Time spent waiting in collectives.
    pub communication: Duration,
    /// Whether any rank has been asked to stop.
    pub stop_requested: bool,
}

/// What a step has measured, as far as it is known, and where the rest is.
struct Measured<B: Backend> {
    /// What the host has computed.
    loss: f64,
    communication: Duration,
    stop_requested: bool,
    /// Sums of each batch's heads on the device.
    sums: Vec<FloatTensor<B>>,
    /// Of the update.
    decision: Option<FloatTensor<B>>,
}

impl<B: Backend> Default for Measured<B> {
    fn default() -> Self {
        let (sums, decision) = (Vec::new(), None);
        Self { loss: 0.0, communication: Duration::ZERO, stop_requested: false, sums, decision }
    }
}

/// One head's activations and target on the host.
struct HostHead<'a> {
    /// Of the logits, `(n, z, y, x, c)`.
    extents: [usize; 5],
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
        let device_loss = DeviceLoss::new(&loss, network.spec().classes, &device);
        if device_loss.is_none() && Inner::<B>::device_loss().is_some() {
            tracing::warn!("the device has no {} loss: the host computes it, which takes longer", loss.name());
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

    /// The same with gradient checkpointing, or without: less memory, and a forward pass more.
    pub fn with_checkpointing(self, checkpointing: bool) -> Self {
        Self { checkpointing, ..self }
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

    /// What brings batches to where the steps take them.
    pub fn upload(&self) -> Upload<B> {
        Upload {
            spec: self.network.spec().clone(),
            head_weights: self.head_weights.clone(),
            to_device_loss: self.device_loss.is_some(),
            dtype: self.network.input_format(),
            device: self.device.clone(),
        }
    }

    /// The labels `(n, z, y, x)` at the resolution of each head that has a weight.
    pub fn targets(&self, labels: ArrayView4<i16>) -> Vec<Array4<i16>> {
        head_targets(self.network.spec(), &self.head_weights, labels)
    }

    /// Whether steps are only queued, so that their metrics come later.
    pub fn is_queued(&self) -> bool {
        self.device_loss.is_some()
    }

    /// A step of one batch, waited for: images `(n, c, z, y, x)` and their [`TrainStep::targets`].
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
        self.add(self.upload().batch_with(images, targets.to_vec()), comm)?;
        self.update(learning_rate)?;
        Ok(self.metrics(comm)?.pop().unwrap_or_default())
    }

    /// Adds the gradients of a batch, this rank's part of the global batch, to the step's.
    ///
    /// # Errors
    /// A rank is gone.
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
            // Those of the first layer; all others have been handed over on the way.
            Some(exchange) => rest.into_iter().enumerate().for_each(|(number, gradient)| {
                if let Some(gradient) = gradient {
                    exchange.ready(number, gradient);
                }
            }),
            None => self.gradients = rest,
        }
        Ok(())
    }

    /// Ends the step: waits for the averaged gradients, or queues what does, and updates the weights.
    ///
    /// # Errors
    /// A rank is gone.
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

    /// Ends the step without an update, and gives the averaged gradients, one per parameter.
    ///
    /// # Errors
    /// A rank is gone.
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

    /// Number of updates whose metrics have not been asked for.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What the updates since the last call have measured, the oldest first; waits for them. A collective.
    ///
    /// # Errors
    /// A rank is gone.
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

    /// The metrics of a step from its values.
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

    /// Lets all ranks know the mean loss, and who has been asked to stop.
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

    /// The gradients of a batch whose loss the device computes, as far as they have not gone to the exchange.
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

    /// The gradients of a batch whose loss the host computes, as far as they have not gone to the exchange. Averaged over the
    /// ranks, they are those of the global loss.
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

    /// Sums up the loss of each head that has a weight.
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

/// Does a part of the step, and in a recording waits until the device has done it too: what is only queued would be seen in
/// whichever part waits for it.
fn phase<B: ComputeBackend, T>(name: &'static str, device: &B::Device, work: impl FnOnce() -> T) -> T {
    let _span = trace::span(name);
    let result = work();
    if trace::is_on() {
        // What has failed on the device is met by whoever reads its results.
        let _ = B::sync(device);
    }
    result
}
