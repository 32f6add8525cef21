//! Construction of a trainer: network and optimizer from scratch or from a checkpoint, schedule, batches and outputs.

use super::TrainError;
use super::checkpoint_writer::AsyncCheckpointWriter;
use super::context::TrainingContext;
use super::device_prefetcher::DevicePrefetcher;
use super::gradient_reducer::GradientReducerOptions;
use super::loss_and_optimizer::{build_loss, build_optimizer};
use super::profile::Profile;
use super::step::TrainStep;
use super::stop::StopRequest;
use super::trainer::Trainer;
use crate::config::{DistConfig, RunConfig};
use crate::telemetry::{MetricsEndpoint, Observers, RunState, StatusHandle};
use nnunet_core::rng::Purpose;
use nnunet_interop::{Pretrained, load_pretrained};
use nnunet_nn::Device;
use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::checkpoint::{Checkpoint, CheckpointManager, RetentionPolicy, Training};
use nnunet_nn::loss::head_weights;
use nnunet_nn::model::{TensorFileError, TensorState, UNet};
use nnunet_nn::optim::{Optimizer, Schedule};

/// Outputs of a run.
#[derive(Default)]
pub struct Outputs {
    pub observers: Observers,
    /// `None` on all ranks except 0.
    pub checkpoint_writer: Option<AsyncCheckpointWriter>,
    /// Access to `status.json`; `None` on all ranks except 0.
    pub status: Option<StatusHandle>,
}

impl Outputs {
    /// Adds the Prometheus observer of this rank.
    pub fn with_metrics(self, endpoint: Option<&MetricsEndpoint>) -> Self {
        match endpoint {
            Some(endpoint) => Self { observers: self.observers.with(endpoint.observer()), ..self },
            None => self,
        }
    }
}

/// State that a trainer starts with.
struct InitialState<B: ComputeBackend> {
    network: UNet<B>,
    optimizer: Optimizer<B::InnerBackend>,
    training: Training,
}

impl<'a> TrainingContext<'a> {
    /// Builds this rank's trainer, from scratch or, with `resume`, from `checkpoint_latest`. With `rollbacks`, the
    /// samples are those after this number of rollbacks, instead of the number in the checkpoint. A collective.
    ///
    /// # Errors
    /// Returns an error if the plans are not supported, or the checkpoint does not match them.
    pub fn build_trainer<B: ComputeBackend>(
        &'a self,
        resume: bool,
        rollbacks: Option<u64>,
        device: B::Device,
        outputs: impl FnOnce(&Training) -> Result<Outputs, TrainError>,
    ) -> Result<Trainer<'a, B>, TrainError> {
        let Self { config, comm, .. } = *self;
        let loss = build_loss(&config.loss, &self.model.dataset)?;
        let InitialState { network, optimizer, training } = match resume {
            true => self.state_from_checkpoint(&device)?,
            false => self.new_state(&device)?,
        };
        let head_weights = head_weights(network.heads(), config.deep_supervision);
        let Outputs { observers, checkpoint_writer, status } = outputs(&training)?;
        let mut progress = training.progress;
        progress.rollbacks = rollbacks.unwrap_or(progress.rollbacks);
        let step = TrainStep::new(network.with_precision(config.precision), optimizer, loss, head_weights, device)
            .with_checkpointing(config.training.gradient_checkpointing)
            .connect(reducer_options(config), comm)?;
        let prefetcher =
            |purpose| Ok::<_, TrainError>(DevicePrefetcher::start(self.loader(purpose, &progress)?, step.uploader())?);
        let train_batches = prefetcher(Purpose::TrainSample)?;
        // A split may have no validation cases.
        let has_validation = config.training.validation_iterations > 0 && !self.validation_cases.is_empty();
        let validation_batches = has_validation.then(|| prefetcher(Purpose::ValSample)).transpose()?;
        let (epochs, iterations) = (config.training.epochs, config.training.iterations_per_epoch);
        Ok(Trainer {
            context: self,
            config,
            comm,
            step,
            schedule: Schedule::new(&config.schedule, config.optimizer.lr, epochs, iterations),
            train_batches,
            validation_batches,
            progress,
            stop_request: StopRequest::listen(move || announce_stop(status.as_ref())),
            profile: Profile::new(0, config.run_dir().trace()),
            data: self.store.fingerprint()?,
            skipped: [0; 2],
            checkpoint_writer,
            observers,
        })
    }

    /// Loads `checkpoint_latest`.
    fn state_from_checkpoint<B: ComputeBackend>(&self, device: &B::Device) -> Result<InitialState<B>, TrainError> {
        let path = self.config.run_dir().checkpoint_latest();
        let checkpoint = Checkpoint::read(&path, self.comm)?;
        let misfit = |error| TrainError::Checkpoint { path: path.clone(), defect: format!("{error}") };
        if let Some(difference) = self.model.first_difference(&checkpoint.model)? {
            let defect = format!("was trained with a different {difference} than in the plans");
            return Err(TrainError::Checkpoint { path, defect });
        }
        self.check_data(&checkpoint);
        let spec = self.model.network_spec()?;
        let network = UNet::<B>::with_state(spec, &checkpoint.weights, device).map_err(misfit)?;
        let specs: Vec<_> = network.parameters().iter().map(|parameter| parameter.spec.clone()).collect();
        let mut optimizer = self.new_optimizer();
        optimizer.load_state(&specs, &checkpoint.optimizer, device).map_err(misfit)?;
        Ok(InitialState { network, optimizer, training: checkpoint.training })
    }

    /// Initializes the weights on rank 0, at random or from pretrained ones, and broadcasts them.
    fn new_state<B: ComputeBackend>(&self, device: &B::Device) -> Result<InitialState<B>, TrainError> {
        let spec = self.model.network_spec()?;
        let mut weights = UNet::<B>::new(spec.clone(), self.config.seed, device).state();
        if self.comm.rank() == 0 {
            self.load_pretrained_into(&mut weights)?;
        }
        for tensor in &mut weights {
            self.comm.broadcast(&mut tensor.values, 0, &tensor.spec.name)?;
        }
        let network = UNet::with_state(spec, &weights, device).expect("the state of such a network");
        Ok(InitialState { network, optimizer: self.new_optimizer(), training: Training::default() })
    }

    fn new_optimizer<B: nnunet_nn::ops::NnOps>(&self) -> Optimizer<B> {
        let optimizer = build_optimizer(&self.config.optimizer);
        if self.config.precision.scales_loss() { optimizer.with_dynamic_scale() } else { optimizer }
    }

    /// Warns if the cases have been preprocessed again since the checkpoint, or the number of threads differs: the run
    /// may continue, but its result differs.
    fn check_data(&self, checkpoint: &Checkpoint) {
        let (before, now) = (checkpoint.training.threads, rayon::current_num_threads());
        if self.comm.rank() == 0 && self.config.device == Device::Cpu && before != 0 && before != now {
            tracing::warn!("resuming with {now} threads instead of {before}: the last bits of the results may differ");
        }
        let is_other = self.store.fingerprint().is_ok_and(|data| data != checkpoint.training.data);
        if self.comm.rank() == 0 && is_other {
            let folder = self.folder.display();
            tracing::warn!(
                "{folder}: the cases differ from those used so far in this run; training continues with these"
            );
        }
    }

    /// Starts the checkpoint writer of the run.
    pub(super) fn checkpoint_writer(
        &self,
        resume: bool,
        training: &Training,
    ) -> Result<AsyncCheckpointWriter, TrainError> {
        let Self { config, .. } = self;
        let iterations = config.training.iterations_per_epoch as u64;
        let retention = RetentionPolicy {
            newest: config.training.keep_checkpoints,
            every: config.training.keep_every as u64 * iterations,
        };
        let manager = CheckpointManager::open(&config.run_dir(), retention, resume)?;
        if resume {
            manager.resume_from(training.progress.steps(iterations), training.is_best)?;
        }
        AsyncCheckpointWriter::start(manager).map_err(|error| TensorFileError::new(&config.run_dir, error).into())
    }

    /// Replaces random weights by those of the pretrained weights file, if the configuration names one.
    fn load_pretrained_into(&self, state: &mut [TensorState]) -> Result<(), TrainError> {
        let path = &self.config.training.pretrained_weights;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let Pretrained { taken, kept } = load_pretrained(path, state)?;
        tracing::info!("{}: loaded {taken} of {} tensors", path.display(), state.len());
        if !kept.is_empty() {
            tracing::warn!("reinitialized, since the number of classes differs: {}", kept.join(", "));
        }
        Ok(())
    }
}

/// Returns the options of the gradient reducer.
pub(super) fn reducer_options(config: &RunConfig) -> GradientReducerOptions {
    let DistConfig { bucket_mb, compression, overlap, .. } = config.dist;
    // The bucket size is in f32 values, whatever the transfer format.
    let bucket_len = (bucket_mb * f64::from(1 << 20) / size_of::<f32>() as f64) as usize;
    GradientReducerOptions {
        bucket_len,
        comm_dtype: compression,
        overlap,
        accumulate: config.training.gradient_accumulation_steps,
    }
}

/// Reports a stop request at once, since the step in progress may take long.
fn announce_stop(status: Option<&StatusHandle>) {
    let Some(status) = status else { return };
    tracing::warn!("stopping after this step, with a checkpoint; a second signal ends the process at once");
    status.set_state(RunState::Stopping);
}
