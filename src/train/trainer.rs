//! The training loop.
//!
//! Start reading at [`Trainer::train`]: an epoch is [`Trainer::train_epoch`], [`Trainer::validate`], a line in the log
//! and, if due, a checkpoint. `trainer_builder.rs` creates the trainer, `step.rs` makes a single step.

use std::time::{Duration, Instant};

use super::TrainError;
use super::checkpoint_writer::AsyncCheckpointWriter;
use super::context::TrainingContext;
use super::device_prefetcher::DevicePrefetcher;
use super::nan_dump::NanDump;
use super::non_finite::{MAX_CONSECUTIVE_SKIPS, MAX_DUMPS};
use super::preview::ValidationPreview;
use super::profile::{Profile, STEP};
use super::step::{StepMetrics, TrainStep};
use super::stop::StopRequest;
use super::stragglers::{JobTimes, RankTimes};
use super::validation::{Validation, ValidationResult};
use super::weight_check::check_weights;
use crate::config::{OnNan, RunConfig};
use crate::telemetry::{EpochRecord, IterationRecord, Observer, Observers, RunState, StepTimes};
use nnunet_comm::distributed::Communicator;
use nnunet_core::trace;
use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::checkpoint::{Checkpoint, Progress, Training};
use nnunet_nn::model::ParameterSpec;
use nnunet_nn::optim::Schedule;

/// Number of steps queued on a device before their losses are read.
const QUEUED_STEPS: u64 = 10;
/// Epochs between two preview images of a validation patch; new best epochs have one, too.
const PICTURE_EVERY: usize = 10;
/// Weight of the previous value in the moving average of the pseudo Dice, as in nnU-Net.
const EMA_MOMENTUM: f64 = 0.9;

/// Training loop of one rank.
pub struct Trainer<'a, B: ComputeBackend> {
    pub(super) context: &'a TrainingContext<'a>,
    pub(super) config: &'a RunConfig,
    pub(super) comm: &'a dyn Communicator,
    pub(super) step: TrainStep<B>,
    pub(super) schedule: Schedule,
    pub(super) train_batches: DevicePrefetcher<B>,
    /// `None` without validation batches.
    pub(super) validation_batches: Option<DevicePrefetcher<B>>,
    pub(super) progress: Progress,
    pub(super) stop_request: StopRequest,
    /// Fingerprint of the preprocessed cases.
    pub(super) data: String,
    pub(super) profile: Profile,
    /// Skipped steps: consecutive ones, and all of this process.
    pub(super) skipped: [usize; 2],
    /// `None` on all ranks except 0.
    pub(super) checkpoint_writer: Option<AsyncCheckpointWriter>,
    /// Observers; those that write files are only on rank 0.
    pub(super) observers: Observers,
}

/// Reason for the end of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// All epochs are complete.
    Finished,
    /// Stopped on request; the checkpoint is written.
    Stopped,
}

/// Times of the training steps of an epoch.
struct EpochTimes {
    began: Instant,
    /// Steps made by this process; fewer than in an epoch if it was resumed within one.
    steps: usize,
    communication: Duration,
    data_wait: Duration,
    /// Time up to the last reported steps.
    elapsed: Duration,
}

impl EpochTimes {
    fn begin() -> Self {
        let zero = Duration::ZERO;
        Self { began: Instant::now(), steps: 0, communication: zero, data_wait: zero, elapsed: zero }
    }

    /// Records the time of `steps` steps since the last call; returns the mean times per step, without communication.
    fn record_interval(&mut self, data_wait: Duration, steps: usize) -> StepTimes {
        let elapsed = self.began.elapsed();
        let total = elapsed - self.elapsed;
        (self.elapsed, self.data_wait) = (elapsed, self.data_wait + data_wait);
        let per_step = |duration: Duration| duration.as_secs_f64() / steps.max(1) as f64;
        StepTimes { total: per_step(total), data_wait: per_step(data_wait), communication: 0.0 }
    }
}

impl<B: ComputeBackend> Trainer<'_, B> {
    /// Trains from the current position to the last epoch, or until it is asked to stop. Writes `checkpoint_latest`,
    /// `checkpoint_best` and `log.jsonl` to the run directory.
    ///
    /// # Errors
    /// Returns an error if a rank, a file or the data fails, or the loss is NaN or infinite.
    pub fn train(&mut self) -> Result<StopReason, TrainError> {
        for epoch in self.progress.next_epoch..self.config.training.epochs {
            let began = Instant::now();
            let Some(times) = self.train_epoch(epoch)? else { return self.stop() };
            self.comm.enter_phase(&format!("validation of epoch {}", epoch + 1));
            let validation = self.validate()?;
            let times = self.gather(&times)?;
            let record = self.record(epoch, &times, validation.as_ref(), began.elapsed());
            let is_best = self.update_ema(epoch, validation.as_ref());
            if is_best || epoch.is_multiple_of(PICTURE_EVERY) {
                self.log_image(epoch, validation.and_then(|validation| validation.preview))?;
            }
            if self.comm.rank() == 0 {
                self.comm.enter_unbounded(&format!("checkpoint of epoch {}", epoch + 1));
            }
            let checkpoint_s = self.save(is_best).as_secs_f64();
            let ema_pseudo_dice = self.progress.ema_pseudo_dice;
            self.observers.epoch_finished(&EpochRecord { ema_pseudo_dice, checkpoint_s, ..record })?;
        }
        self.profile.finish(self.comm)?;
        self.finish_saving("the last checkpoint")?;
        Ok(StopReason::Finished)
    }

    /// Runs the steps of an epoch; returns `None` if all ranks have stopped before its end.
    fn train_epoch(&mut self, epoch: usize) -> Result<Option<EpochTimes>, TrainError> {
        let mut times = EpochTimes::begin();
        let iterations = self.config.training.iterations_per_epoch;
        for iteration in self.progress.next_iteration..iterations {
            self.comm.enter_phase(&format!("epoch {}, step {}", epoch + 1, iteration + 1));
            self.profile.before_step(self.comm)?;
            self.train_step(epoch, iteration)?;
            self.profile.after_step(self.comm)?;
            self.progress.next_iteration = iteration + 1;
            let steps = (epoch * iterations + iteration + 1) as u64;
            let every = self.config.dist.weight_check_interval as u64;
            if every > 0 && steps.is_multiple_of(every) {
                check_weights(&self.step.network, steps, self.comm)?;
            }
            // Metrics of queued steps are read at intervals, at the same steps on all ranks.
            let is_due = !self.step.is_queued() || steps.is_multiple_of(QUEUED_STEPS) || iteration + 1 == iterations;
            if is_due && self.report(epoch, &mut times)? {
                return Ok(None);
            }
            // Until here the longer timeout applies, since in its first step a process may wait for others to start and
            // tune kernels.
            self.comm.set_timeout(Duration::from_secs_f64(self.config.dist.timeout_s));
        }
        times.elapsed = times.began.elapsed();
        Ok(Some(times))
    }

    /// Runs or queues one step with its batches.
    pub(super) fn train_step(&mut self, epoch: usize, iteration: usize) -> Result<(), TrainError> {
        let _span = trace::span_with_detail(STEP, || format!("epoch {}, step {}", epoch + 1, iteration + 1));
        self.step.stop_requested = self.stop_request.is_set();
        for _ in 0..self.config.training.gradient_accumulation_steps {
            self.step.add(self.train_batches.next()?, self.comm)?;
        }
        self.step.update(self.schedule.lr(epoch, iteration))?;
        Ok(())
    }

    /// Waits for the steps made so far and adds their metrics to the epoch's record; returns whether all ranks must
    /// stop.
    fn report(&mut self, epoch: usize, times: &mut EpochTimes) -> Result<bool, TrainError> {
        let metrics = self.finished_steps()?;
        let count = metrics.len();
        let mean = times.record_interval(self.train_batches.take_wait(), count);
        let first = self.progress.next_iteration - count;
        let mut stop_requested = false;
        for (number, metrics) in metrics.iter().enumerate() {
            let iteration = first + number;
            if self.is_sound(metrics) {
                self.skipped[0] = 0;
                self.progress.loss_sum += metrics.loss;
            } else {
                self.handle_non_finite(self.nan_dump(epoch, iteration, metrics, count - 1 - number))?;
                self.progress.nan_steps += 1;
            }
            self.progress.loss_scale = metrics.loss_scale;
            match metrics.gradient_norm.is_finite() {
                true => self.progress.gradient_norm_sum += metrics.gradient_norm,
                false => self.progress.skipped_steps += 1,
            }
            times.steps += 1;
            times.communication += metrics.communication;
            self.observers.iteration(&self.iteration_record(epoch, iteration, metrics, mean))?;
            stop_requested |= metrics.stop_requested;
        }
        Ok(stop_requested)
    }

    /// Waits for the steps since the last call and returns their metrics.
    pub(super) fn finished_steps(&mut self) -> Result<Vec<StepMetrics>, TrainError> {
        let metrics = self.step.metrics(self.comm)?;
        // The values are on the host, so the GPUs have completed the reduction. This check is required because an
        // aborted reduction lets them continue with whatever their memory holds.
        if let Some(collectives) = self.comm.device_collectives() {
            collectives.check()?;
        }
        Ok(metrics)
    }

    /// Creates the observers' record of a step, with the mean times of the steps reported together.
    fn iteration_record(
        &self,
        epoch: usize,
        iteration: usize,
        metrics: &StepMetrics,
        mean: StepTimes,
    ) -> IterationRecord {
        let communication = metrics.communication.as_secs_f64();
        IterationRecord {
            epoch,
            iteration,
            loss: metrics.loss,
            lr: self.schedule.lr(epoch, iteration),
            gradient_norm: metrics.gradient_norm,
            loss_scale: self.config.precision.scales_loss().then_some(metrics.loss_scale),
            times: StepTimes { communication, ..mean },
        }
    }

    /// Returns whether loss and gradient are finite. They are those of the global batch, so all ranks agree.
    fn is_sound(&self, metrics: &StepMetrics) -> bool {
        let StepMetrics { loss, gradient_norm, loss_scale, .. } = *metrics;
        // A gradient may overflow because of its loss scale, which is then reduced; with a scale of at most 1 that is
        // not the cause.
        let is_overflow = self.config.precision.scales_loss() && loss_scale > 1.0;
        loss.is_finite() && (gradient_norm.is_finite() || is_overflow)
    }

    /// Describes a step for its dump.
    fn nan_dump(&self, epoch: usize, iteration: usize, metrics: &StepMetrics, later_steps: usize) -> NanDump {
        NanDump {
            epoch,
            iteration,
            loss: Some(metrics.loss).filter(|loss| loss.is_finite()),
            gradient_norm: Some(metrics.gradient_norm).filter(|norm| norm.is_finite()),
            lr: self.schedule.lr(epoch, iteration),
            later_steps,
            cases: Vec::new(),
        }
    }

    /// Handles a step whose loss or gradient is NaN or infinite: dumps it for a replay, and ends the training unless
    /// such steps are skipped. The weights are unchanged by the step. A collective.
    fn handle_non_finite(&mut self, dump: NanDump) -> Result<(), TrainError> {
        let is_skipped = self.config.training.on_nan == OnNan::Skip;
        self.skipped = self.skipped.map(|count| count + 1);
        let [consecutive, total] = self.skipped;
        if is_skipped && consecutive <= MAX_CONSECUTIVE_SKIPS && total > MAX_DUMPS {
            return Ok(());
        }
        let (dump, folder) = self.context.dump_step(dump, || self.checkpoint(false), &self.progress)?;
        let error = TrainError::Diverged { dump: Box::new(dump), folder };
        if !is_skipped || consecutive > MAX_CONSECUTIVE_SKIPS {
            return Err(error);
        }
        if self.comm.rank() == 0 {
            tracing::warn!("{error}; the step is skipped");
        }
        Ok(())
    }

    /// Saves a checkpoint for resuming.
    fn stop(&mut self) -> Result<StopReason, TrainError> {
        let Progress { next_epoch, next_iteration, .. } = self.progress;
        if let Some(writer) = &self.checkpoint_writer {
            writer.save(self.steps_done(), self.checkpoint(false));
        }
        self.finish_saving("the checkpoint of a stopped run")?;
        if self.comm.rank() == 0 {
            self.observers.run_is(RunState::Stopped)?;
            tracing::info!(
                "stopped by a signal after epoch {}, step {next_iteration}; checkpoint saved; continue with --resume",
                next_epoch + 1
            );
        }
        Ok(StopReason::Stopped)
    }

    /// Waits on all ranks until rank 0 has written its checkpoints.
    fn finish_saving(&self, what: &str) -> Result<(), TrainError> {
        if let Some(writer) = &self.checkpoint_writer {
            self.comm.enter_unbounded(what);
            writer.finish()?;
        }
        Ok(self.comm.barrier(what)?)
    }

    /// Gathers the times of the epoch from all ranks, and warns about a slow rank.
    fn gather(&self, times: &EpochTimes) -> Result<JobTimes, TrainError> {
        let steps = times.steps.max(1);
        let per_step = |duration: Duration| duration.as_secs_f64() / steps as f64;
        let own = RankTimes {
            total: per_step(times.elapsed),
            data_wait: per_step(times.data_wait),
            communication: per_step(times.communication),
        };
        let times = JobTimes::gather(own, self.comm)?;
        if self.comm.rank() == 0
            && let Some(complaint) = times.complaint()
        {
            tracing::warn!("{complaint}");
        }
        Ok(times)
    }

    fn validate(&mut self) -> Result<Option<ValidationResult>, TrainError> {
        let Some(batches) = &mut self.validation_batches else { return Ok(None) };
        let _span = trace::span("validation");
        let network = self.step.network.valid();
        let TrainStep { loss, head_weights, device, .. } = &self.step;
        let has_preview = self.comm.rank() == 0 && self.config.telemetry.tensorboard;
        let mut validation = Validation::new(&network, loss, head_weights, device).with_preview(has_preview);
        for _ in 0..self.config.training.validation_iterations {
            validation.add(batches.next()?, self.comm)?;
        }
        Ok(Some(validation.finish(self.comm)?))
    }

    /// Passes the preview of a validation patch to the observers.
    fn log_image(&mut self, epoch: usize, preview: Option<ValidationPreview>) -> Result<(), TrainError> {
        match preview.map(|preview| preview.render(epoch)) {
            Some(Ok(picture)) => Ok(self.observers.picture(&picture)?),
            // A failed preview must not end the training.
            Some(Err(defect)) => {
                tracing::debug!("no picture of epoch {}: {defect}", epoch + 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Updates the moving average with an epoch's validation; returns whether it is a new best.
    fn update_ema(&mut self, epoch: usize, validation: Option<&ValidationResult>) -> bool {
        let Progress { ema_pseudo_dice, best_ema_pseudo_dice, .. } = self.progress;
        let rollbacks = self.progress.rollbacks;
        let next_epoch = epoch + 1;
        self.progress =
            Progress { next_epoch, rollbacks, ema_pseudo_dice, best_ema_pseudo_dice, ..Progress::default() };
        let Some(validation) = validation else { return false };
        let dice = validation.mean_pseudo_dice();
        let ema = self.progress.ema_pseudo_dice.map_or(dice, |ema| EMA_MOMENTUM * ema + (1.0 - EMA_MOMENTUM) * dice);
        self.progress.ema_pseudo_dice = Some(ema);
        let is_best = self.progress.best_ema_pseudo_dice.is_none_or(|best| ema > best);
        if is_best {
            self.progress.best_ema_pseudo_dice = Some(ema);
        }
        is_best
    }

    /// Queues a checkpoint after an epoch if one is due, or if an earlier one could not be written. Returns the time by
    /// which the next step is delayed.
    fn save(&self, is_best: bool) -> Duration {
        let Some(writer) = &self.checkpoint_writer else { return Duration::ZERO };
        let began = Instant::now();
        let _span = trace::span("copy for the checkpoint");
        let epochs = self.progress.next_epoch;
        let is_due = epochs.is_multiple_of(self.config.training.checkpoint_every);
        let is_last = epochs == self.config.training.epochs;
        if is_best || is_due || is_last || writer.has_failed() {
            writer.save(self.steps_done(), self.checkpoint(is_best));
        }
        began.elapsed()
    }

    /// Returns the number of steps since the start of the run.
    fn steps_done(&self) -> u64 {
        self.progress.steps(self.config.training.iterations_per_epoch as u64)
    }

    /// Returns a checkpoint of the current state.
    pub(super) fn checkpoint(&self, is_best: bool) -> Checkpoint {
        let specs: Vec<ParameterSpec> = self.step.network.parameters().iter().map(|p| p.spec.clone()).collect();
        Checkpoint {
            model: self.context.model.clone(),
            training: Training {
                progress: self.progress.clone(),
                is_best,
                world_size: self.comm.world_size(),
                config: self.config.to_toml(),
                threads: rayon::current_num_threads(),
                data: self.data.clone(),
            },
            weights: self.step.network.state(),
            optimizer: self.step.optimizer.state(&specs),
        }
    }

    /// Creates the epoch's log record, without the moving average and the checkpoint time.
    fn record(
        &self,
        epoch: usize,
        times: &JobTimes,
        validation: Option<&ValidationResult>,
        elapsed: Duration,
    ) -> EpochRecord {
        let training = &self.config.training;
        let steps = training.iterations_per_epoch as f64;
        let samples = (training.batch_size * training.gradient_accumulation_steps * self.comm.world_size()) as f64;
        EpochRecord {
            epoch,
            train_loss: self.progress.loss_sum / (steps - self.progress.nan_steps as f64).max(1.0),
            val_loss: validation.map(|validation| validation.loss),
            pseudo_dice: validation.map(|validation| validation.pseudo_dice.clone()).unwrap_or_default(),
            ema_pseudo_dice: None,
            lr: self.schedule.lr(epoch, 0),
            samples_per_s: samples / times.mean.total,
            step_s: times.mean.total,
            data_wait_s: times.mean.data_wait * steps,
            comm_s: times.mean.communication * steps,
            straggler_s: times.straggling * steps,
            checkpoint_s: 0.0,
            epoch_s: elapsed.as_secs_f64(),
            gradient_norm: self.progress.gradient_norm_sum / (steps - self.progress.skipped_steps as f64).max(1.0),
            loss_scale: self.config.precision.scales_loss().then_some(self.progress.loss_scale),
            skipped_steps: self.progress.skipped_steps,
            world_size: self.comm.world_size(),
        }
    }
}
