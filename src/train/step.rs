//! One optimization step: forward pass, loss and backward pass of its batches, with overlapped gradient reduction, and
//! the weight update.
//!
//! If the backend computes the loss on the device, a step is only queued, and the metrics of several steps are read
//! later at once ([`TrainStep::metrics`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{backend::Backend, ops::FloatTensor};
use ndarray::{Array4, ArrayView4, ArrayView5};

use super::batch::{BatchUploader, DeviceBatch, Inner, head_targets};

use super::forward_backward::{ForwardBackward, Gradients, SharedGradHook};
use super::gradient_reducer::{GradientReducer, GradientReducerOptions, build_reducer};
use super::loss_engine::{LossEngine, ReportedLoss, read_all};
use nnunet_comm::distributed::{BucketLayout, CommError, Communicator, ReduceOp};
use nnunet_core::trace;
use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::loss::SegmentationLoss;
use nnunet_nn::model::UNet;
use nnunet_nn::ops::UpdateDecision;
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
    loss_engine: LossEngine<B::InnerBackend>,
    /// `None` if there is nothing to average: one rank and no gradient accumulation.
    reducer: Option<Arc<dyn GradientReducer<B::InnerBackend>>>,
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

impl<B: ComputeBackend> TrainStep<B> {
    /// Prepares a network for training on one rank, with one batch per step.
    pub fn new(
        network: UNet<B>,
        optimizer: Optimizer<B::InnerBackend>,
        loss: SegmentationLoss,
        head_weights: Vec<f64>,
        device: B::Device,
    ) -> Self {
        let loss_engine = LossEngine::new(loss.clone(), &head_weights, network.spec().classes, &device);
        if loss_engine.lacks_kernels() {
            tracing::warn!("the device has no {} loss: computing it on the host, which is slower", loss.name());
        }
        Self {
            loss_engine,
            network: network.require_gradients(),
            optimizer,
            loss,
            head_weights,
            device,
            stop_requested: false,
            reducer: None,
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
    pub fn connect(mut self, options: GradientReducerOptions, comm: &dyn Communicator) -> Result<Self, CommError> {
        self.accumulate = options.accumulate;
        if comm.world_size() > 1 || options.accumulate > 1 {
            let shapes = self.network.parameters().iter().map(|parameter| parameter.spec.shape.clone()).collect();
            let layout = self.bucket_layout(options.bucket_len);
            self.reducer = Some(build_reducer::<B::InnerBackend>(layout, shapes, options, comm, &self.device)?);
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
    pub fn uploader(&self) -> BatchUploader<B> {
        BatchUploader {
            spec: self.network.spec().clone(),
            head_weights: self.head_weights.clone(),
            to_device_loss: self.loss_engine.is_queued(),
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
        self.loss_engine.is_queued()
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
        self.add(self.uploader().batch_with(images, targets.to_vec()), comm)?;
        self.update(learning_rate)?;
        Ok(self.metrics(comm)?.pop().unwrap_or_default())
    }

    /// Runs forward and backward pass on a batch, this rank's part of the global batch, and adds its gradients to the
    /// step.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn add(&mut self, batch: DeviceBatch<B::InnerBackend>, comm: &dyn Communicator) -> Result<(), CommError> {
        if let Some(reducer) = &self.reducer {
            reducer.begin(self.batches);
        }
        self.batches += 1;
        let rest = self.forward_backward(batch, comm)?;
        match &self.reducer {
            // Gradients of the first layer; all others have been passed on during the backward pass.
            Some(reducer) => rest.into_iter().enumerate().for_each(|(number, gradient)| {
                if let Some(gradient) = gradient {
                    reducer.ready(number, gradient);
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
        let Some(reducer) = &self.reducer else { return Ok(std::mem::take(&mut self.gradients)) };
        let start = Instant::now();
        let gradients = phase::<B, _>("wait for gradients", &self.device, || reducer.finish())?;
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
            read_all::<Inner<B>>(pending.iter().flat_map(|step| step.sums.iter().chain(&step.decision))).into_iter();
        let mut metrics: Vec<_> = pending.iter().map(|step| self.metrics_of(step, &mut values)).collect();
        if self.is_queued() && comm.world_size() > 1 {
            self.agree(&mut metrics, comm)?;
        }
        Ok(metrics)
    }

    /// Computes the metrics of a step from its values.
    fn metrics_of(&self, step: &Measured<B::InnerBackend>, values: &mut impl Iterator<Item = Vec<f32>>) -> StepMetrics {
        let heads = self.loss_engine.heads();
        let sums: Vec<_> = values.by_ref().take(step.sums.len()).collect();
        let queued: f64 = sums.chunks(heads).map(|heads| self.loss_engine.value(heads)).sum();
        let loss = step.loss + queued / self.accumulate as f64;
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

    /// Runs forward pass, loss and backward pass on a batch. Returns the gradients that have not been passed to the
    /// reducer. Averaged over the ranks, the gradients are those of the global loss.
    fn forward_backward(
        &mut self,
        batch: DeviceBatch<B::InnerBackend>,
        comm: &dyn Communicator,
    ) -> Result<Gradients<B>, CommError> {
        let device = self.device.clone();
        let scaler = self.optimizer.scaler(&device);
        let grad_hook = self.reducer.clone().map(|reducer| reducer as SharedGradHook<B>);
        let engine = &self.loss_engine;
        let forward =
            || ForwardBackward::new(&self.network, batch.images, engine.heads(), grad_hook, self.checkpointing);
        let pass = phase::<B, _>("forward", &device, forward);
        let mut loss = phase::<B, _>("loss", &device, || engine.sums(pass.logits(), &batch.targets));
        let start = Instant::now();
        let all_reduce = || engine.all_reduce(&mut loss, self.stop_requested, comm);
        self.current.stop_requested |= phase::<B, _>("sum of losses over ranks", &device, all_reduce)?;
        self.current.communication += start.elapsed();
        match engine.reported(&loss) {
            ReportedLoss::Known(loss) => self.current.loss += loss / self.accumulate as f64,
            ReportedLoss::Queued(sums) => self.current.sums.extend(sums),
        }
        let gradients =
            phase::<B, _>("gradient of the loss", &device, || engine.gradients(loss, scaler, comm.world_size()));
        Ok(phase::<B, _>("backward", &device, || pass.backward(gradients)))
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
