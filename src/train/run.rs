//! A complete training run on this rank.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::TrainError;
use super::context::TrainingContext;
use super::final_validation::{FinalValidationOptions, evaluate_held_out};
use super::nan_dump::NanDump;
use super::non_finite::MAX_ROLLBACKS;
use super::profile::Profile;
use super::trainer::{StopReason, Trainer};
use super::trainer_builder::Outputs;
use super::truth;
use crate::config::{OnNan, RunConfig};
use crate::telemetry::{
    JsonLines, MetricsEndpoint, Observer, Observers, ProgressBar, ProgressPlot, RunState, StatusFile, TelemetryError,
    TensorBoard, read_log,
};
use nnunet_comm::distributed::Communicator;
use nnunet_core::lock::FolderLock;
use nnunet_data::work::WorkDir;
use nnunet_eval::Summary;
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};
use nnunet_nn::checkpoint::{Checkpoint, Progress, Training};
use nnunet_nn::model::{TensorFileError, UNet};
use nnunet_nn::ops::NnOps;

/// Name of the lock of a run directory.
const LOCK: &str = ".nnunet-dist.lock";

/// Whether a run resumes from `checkpoint_latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Resume {
    /// Start from scratch.
    Never,
    /// Fail if there is no checkpoint.
    Always,
    /// Start from scratch if there is no checkpoint.
    Auto,
}

/// Options of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    pub resume: Resume,
    /// Move an earlier run in the same directory aside, instead of refusing to start from scratch.
    pub overwrite: bool,
    pub held_out: FinalValidationOptions,
    /// Number of steps whose timeline is written to `trace.json`.
    pub profile: usize,
    /// Called on rank 0 with the resolved configuration, once the run is open and about to train.
    pub announce: fn(&RunConfig),
}

impl Default for RunOptions {
    /// Starts from scratch and writes label maps only.
    fn default() -> Self {
        Self {
            resume: Resume::Never,
            overwrite: false,
            held_out: FinalValidationOptions::default(),
            profile: 0,
            announce: |_| {},
        }
    }
}

/// Result of a run.
#[derive(Debug)]
pub enum Outcome {
    /// All epochs are complete. Rank 0 has the evaluation of the held-out cases, if there are any.
    Finished(Option<Box<Summary>>),
    /// Stopped on request; the checkpoint is written.
    Stopped,
}

/// Trains one fold to its last epoch, resuming from `checkpoint_latest` depending on the options, then predicts and
/// evaluates its held-out cases. All ranks of the job must call this with the same arguments.
///
/// # Errors
/// Returns an error on one or several ranks. The caller must end the job, so that the other ranks do not wait forever.
pub fn run(
    config: &RunConfig,
    work: &WorkDir,
    comm: &dyn Communicator,
    options: RunOptions,
) -> Result<Outcome, TrainError> {
    on_device(config.device, config.precision, comm, Run { config, work, comm, options })?
}

/// Predicts and evaluates the held-out cases of a completely trained run (nnU-Net's `--val`). Returns the evaluation on
/// rank 0. All ranks of the job must call this with the same arguments.
///
/// # Errors
/// Same as [`run`]; also if there is no such run, or it is not finished.
pub fn validate(
    config: &RunConfig,
    work: &WorkDir,
    comm: &dyn Communicator,
    held_out: FinalValidationOptions,
) -> Result<Option<Summary>, TrainError> {
    on_device(config.device, config.precision, comm, Validate { config, work, comm, held_out })?
}

struct Run<'a> {
    config: &'a RunConfig,
    work: &'a WorkDir,
    comm: &'a dyn Communicator,
    options: RunOptions,
}

impl OnDevice for Run<'_> {
    type Output = Result<Outcome, TrainError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let Self { config, work, comm, options } = self;
        comm.set_timeout(Duration::from_secs_f64(config.dist.first_timeout_s.max(config.dist.timeout_s)));
        let context = TrainingContext::open(config, work, comm)?;
        truth::check(&context, work)?;
        let _lock = open_run_dir(config, comm, &options)?;
        let mut session = Session::<B> {
            endpoint: MetricsEndpoint::of_run(config, class_names(&context), comm),
            context: &context,
            device: device.clone(),
        };
        let resume = is_resumed(config, comm, options.resume)?;
        let (reason, trainer) = session.train(resume, options)?;
        if reason == StopReason::Stopped {
            return Ok(Outcome::Stopped);
        }
        let Trained { network, mut observers } = Trained::from_trainer(trainer)?;
        let network = match options.held_out.with_best {
            true => load::<B::InnerBackend>(&context, &config.run_dir().checkpoint_best(), &device)?,
            false => network,
        };
        let summary = evaluate_held_out(&context, work, network, device, options.held_out)?;
        observers.run_is(RunState::Finished)?;
        Ok(Outcome::Finished(summary.map(Box::new)))
    }
}

/// Training of a run in this process, over all its rollbacks.
struct Session<'a, B: ComputeBackend> {
    context: &'a TrainingContext<'a>,
    endpoint: Option<MetricsEndpoint>,
    device: B::Device,
}

impl<'a, B: ComputeBackend> Session<'a, B> {
    /// Trains to the last epoch, or until the run is stopped. With `on_nan = rollback`, a step whose loss or gradient is
    /// NaN or infinite restarts the training from the latest checkpoint with different samples. The first
    /// steps are recorded if `options` ask for it.
    fn train(&mut self, resume: bool, options: RunOptions) -> Result<(StopReason, Trainer<'a, B>), TrainError> {
        let config = self.context.config;
        let mut trainer = self.build_trainer(resume, None)?;
        if self.context.comm.rank() == 0 {
            (options.announce)(config);
        }
        announce(self.context, &trainer.progress);
        trainer.profile = Profile::new(options.profile, config.run_dir().trace());
        let mut rollbacks = Rollbacks::default();
        loop {
            match trainer.train() {
                Ok(reason) => return Ok((reason, trainer)),
                Err(TrainError::Diverged { dump, folder }) if rollbacks.allows_another(config, &dump) => {
                    trainer = self.roll_back(trainer, &TrainError::Diverged { dump, folder })?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Restarts from the latest checkpoint, or from scratch if there is none yet.
    fn roll_back(&mut self, trainer: Trainer<'a, B>, cause: &TrainError) -> Result<Trainer<'a, B>, TrainError> {
        let TrainingContext { config, comm, .. } = *self.context;
        let rollbacks = trainer.progress.rollbacks + 1;
        // Dropping the trainer completes the pending checkpoint writes.
        drop(trainer);
        let resume = exists(&config.run_dir().checkpoint_latest(), comm)?;
        let trainer = self.build_trainer(resume, Some(rollbacks))?;
        if comm.rank() == 0 {
            let epoch = trainer.progress.next_epoch + 1;
            tracing::warn!("{cause}; rolling back to the start of epoch {epoch}, with different samples");
        }
        Ok(trainer)
    }

    fn build_trainer(&self, resume: bool, rollbacks: Option<u64>) -> Result<Trainer<'a, B>, TrainError> {
        let outputs = |training: &Training| {
            let outputs = match self.context.comm.rank() {
                0 => outputs(self.context, resume, training)?,
                _ => Outputs::default(),
            };
            Ok(outputs.with_metrics(self.endpoint.as_ref()))
        };
        let trainer = self.context.build_trainer::<B>(resume, rollbacks, self.device.clone(), outputs)?;
        if let Some(endpoint) = &self.endpoint {
            endpoint.resume_from(&trainer.progress);
        }
        Ok(trainer)
    }
}

/// Parts of a trainer that remain after training.
struct Trained<B: NnOps> {
    network: UNet<B>,
    observers: Observers,
}

impl<B: NnOps> Trained<B> {
    /// Frees the loader threads and buffers before the final validation.
    fn from_trainer<A: ComputeBackend<InnerBackend = B>>(mut trainer: Trainer<A>) -> Result<Self, TrainError> {
        trainer.observers.run_is(RunState::Predicting)?;
        Ok(Self { network: trainer.step.network.valid(), observers: std::mem::take(&mut trainer.observers) })
    }
}

struct Validate<'a> {
    config: &'a RunConfig,
    work: &'a WorkDir,
    comm: &'a dyn Communicator,
    held_out: FinalValidationOptions,
}

impl OnDevice for Validate<'_> {
    type Output = Result<Option<Summary>, TrainError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let Self { config, work, comm, held_out } = self;
        let context = TrainingContext::open(config, work, comm)?;
        check_is_over(config, comm)?;
        let run = config.run_dir();
        let _lock = match comm.rank() {
            0 => Some(FolderLock::acquire(run.root(), LOCK)?),
            _ => None,
        };
        let path = if held_out.with_best { run.checkpoint_best() } else { run.checkpoint_latest() };
        let network = load::<B::InnerBackend>(&context, &path, &device)?;
        evaluate_held_out(&context, work, network, device, held_out)
    }
}

/// Loads the network of a checkpoint of this run.
fn load<B: NnOps>(context: &TrainingContext, path: &Path, device: &B::Device) -> Result<UNet<B>, TrainError> {
    if !exists(path, context.comm)? {
        let defect = "not found: training ran no validation batches".to_owned();
        return Err(TrainError::Untrained { path: path.to_owned(), defect });
    }
    let checkpoint = Checkpoint::read(path, context.comm)?;
    let misfit = |defect: String| TrainError::Checkpoint { path: path.to_owned(), defect };
    if let Some(difference) = context.model.first_difference(&checkpoint.model)? {
        return Err(misfit(format!("was trained with a different {difference} than in the plans")));
    }
    let network = UNet::with_state(context.model.network_spec()?, &checkpoint.weights, device);
    Ok(network.map_err(|error| misfit(error.to_string()))?.with_precision(context.config.precision))
}

/// Returns whether a file exists, as seen by rank 0.
fn exists(path: &Path, comm: &dyn Communicator) -> Result<bool, TrainError> {
    // If the link's target is gone, the checkpoint before it is used.
    let mut exists = [u8::from(path.exists() || path.is_symlink())];
    comm.broadcast_bytes(&mut exists, 0, "existence of a checkpoint")?;
    Ok(exists[0] > 0)
}

/// Returns an error unless the run has been trained to its last epoch, according to its own `config.toml`.
fn check_is_over(config: &RunConfig, comm: &dyn Communicator) -> Result<(), TrainError> {
    let run = config.run_dir();
    let path = run.checkpoint_latest();
    if !exists(&path, comm)? {
        let defect = "not found: the run has not been trained; train without --val first".to_owned();
        return Err(TrainError::Untrained { path, defect });
    }
    let done = Checkpoint::read(&path, comm)?.training.progress.next_epoch;
    let epochs = if comm.rank() == 0 { RunConfig::load(&run.config())?.training.epochs } else { 0 };
    let mut epochs = (epochs as u64).to_le_bytes();
    comm.broadcast_bytes(&mut epochs, 0, "number of epochs")?;
    match u64::from_le_bytes(epochs) {
        epochs if done as u64 >= epochs => Ok(()),
        epochs => {
            let defect = format!("has {done} of {epochs} epochs: the run is not finished; continue with --resume");
            Err(TrainError::Untrained { path, defect })
        }
    }
}

/// Counts the rollbacks caused by one step.
#[derive(Default)]
struct Rollbacks {
    count: u64,
    /// Furthest failed step, by epoch and iteration.
    step: Option<(usize, usize)>,
}

impl Rollbacks {
    /// Returns whether to roll back again instead of ending the run.
    fn allows_another(&mut self, config: &RunConfig, dump: &NanDump) -> bool {
        let step = Some((dump.epoch, dump.iteration));
        // A later step starts a new count.
        self.count = if step > self.step { 1 } else { self.count + 1 };
        self.step = self.step.max(step);
        config.training.on_nan == OnNan::Rollback && self.count <= MAX_ROLLBACKS
    }
}

/// Locks the run directory on rank 0 for this process. An earlier run that will not be resumed is moved aside if the
/// options ask for it.
///
/// # Errors
/// Returns an error if another process works in the directory, or if it holds a run that would be lost.
fn open_run_dir(
    config: &RunConfig,
    comm: &dyn Communicator,
    options: &RunOptions,
) -> Result<Option<FolderLock>, TrainError> {
    if comm.rank() > 0 {
        comm.barrier("opening of the run directory")?;
        return Ok(None);
    }
    let run = config.run_dir();
    let lock = FolderLock::acquire(run.root(), LOCK)?;
    let is_resumed = match options.resume {
        Resume::Never => false,
        Resume::Always => true,
        Resume::Auto => run.checkpoint_latest().is_symlink() || run.checkpoint_latest().exists(),
    };
    let lock = match earlier_run(config).filter(|_| !is_resumed) {
        None => lock,
        Some(_) if options.overwrite => {
            drop(lock);
            let aside = move_aside(run.root()).map_err(|error| TelemetryError::io(run.root(), error))?;
            tracing::info!("the earlier run is now {}", aside.display());
            FolderLock::acquire(run.root(), LOCK)?
        }
        Some(found) => return Err(TrainError::Exists { path: run.root().to_owned(), found }),
    };
    comm.barrier("opening of the run directory")?;
    Ok(Some(lock))
}

/// Describes the run in the directory, if it has made progress that would be lost.
fn earlier_run(config: &RunConfig) -> Option<String> {
    let run = config.run_dir();
    let epochs = read_log(&run.log()).ok().and_then(|log| Some(log.last()?.epoch + 1)).unwrap_or(0);
    if epochs == 0 && !run.checkpoint_latest().is_symlink() && !run.checkpoint_latest().exists() {
        return None;
    }
    let planned = RunConfig::load(&run.config()).map(|config| config.training.epochs);
    let dice = Summary::load(&run.validation().join("summary.json")).map(|summary| summary.mean_dice());
    let of = planned.map_or_else(|_| String::new(), |planned| format!(" of {planned}"));
    let dice = dice.map_or_else(|_| String::new(), |dice| format!(", Dice {dice:.4}"));
    Some(format!("trained, {epochs}{of} epochs{dice}"))
}

/// Renames a folder to the first free name of `FOLDER.1`, `FOLDER.2`, …
fn move_aside(folder: &Path) -> io::Result<PathBuf> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let candidates = (1..).map(|number| folder.with_file_name(format!("{name}.{number}")));
    let aside = candidates.into_iter().find(|path| !path.exists()).expect("there are more numbers than folders");
    std::fs::rename(folder, &aside).map(|()| aside)
}

/// Returns whether to resume from a checkpoint, as seen by rank 0.
fn is_resumed(config: &RunConfig, comm: &dyn Communicator, resume: Resume) -> Result<bool, TrainError> {
    let path = config.run_dir().checkpoint_latest();
    match (resume, exists(&path, comm)?) {
        (Resume::Never, _) | (Resume::Auto, false) => Ok(false),
        (_, true) => Ok(true),
        (Resume::Always, false) => {
            Err(TensorFileError::new(&path, "nothing to resume from; train without --resume").into())
        }
    }
}

/// Prepares the run directory and its output files.
fn outputs(context: &TrainingContext, resume: bool, training: &Training) -> Result<Outputs, TrainError> {
    let TrainingContext { config, comm, .. } = context;
    let progress = &training.progress;
    let run = config.run_dir();
    config.save().map_err(|error| TelemetryError::io(&run.config(), error))?;
    let checkpoint_writer = context.checkpoint_writer(resume, training)?;
    let training = &config.training;
    let global_batch_size = training.batch_size * training.gradient_accumulation_steps * comm.world_size();
    let (epochs, iterations) = (training.epochs, training.iterations_per_epoch);
    if let Err(error) = nnunet_core::run_log::open(&run.text_log()) {
        tracing::warn!("{}: {error}; training continues without this log", run.text_log().display());
    }
    let status = StatusFile::new(&run.status(), epochs, iterations, comm.world_size());
    let status_handle = status.handle();
    let log = JsonLines::open(&run.log(), progress.next_epoch)?;
    let observers = Observers::default()
        .with(status)
        .with(log)
        .with(ProgressPlot::new(&run.progress(), &run.log())?)
        .with(ProgressBar::new(progress.next_epoch, epochs, iterations, global_batch_size));
    let board = config.telemetry.tensorboard.then(|| {
        TensorBoard::begin(&run.tensorboard(), progress.steps(iterations as u64), iterations, class_names(context))
    });
    let observers = match board.flatten() {
        Some(board) => observers.with(board),
        None => observers,
    };
    Ok(Outputs { observers, checkpoint_writer: Some(checkpoint_writer), status: Some(status_handle) })
}

/// Returns the names of the classes that have a pseudo Dice.
fn class_names(context: &TrainingContext) -> Vec<String> {
    context.model.dataset.foreground().iter().map(|class| class.name.to_owned()).collect()
}

fn announce(context: &TrainingContext, progress: &Progress) {
    let TrainingContext { config, comm, train_cases, validation_cases, .. } = context;
    if comm.rank() > 0 {
        return;
    }
    let (per_rank, ranks) =
        (config.training.batch_size * config.training.gradient_accumulation_steps, comm.world_size());
    tracing::info!(
        "fold {}: {} training and {} validation cases; batch {per_rank} per rank on {ranks} rank(s), {} in total",
        config.fold,
        train_cases.len(),
        validation_cases.len(),
        per_rank * ranks,
    );
    match progress.next_epoch {
        0 if progress.next_iteration == 0 => {}
        done if done >= config.training.epochs => {
            tracing::info!("all {done} epochs are complete; evaluating the held-out cases")
        }
        done => tracing::info!("resuming at epoch {}, step {}", done + 1, progress.next_iteration + 1),
    }
}
