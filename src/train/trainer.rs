//! The training loop.
//!
//! Read [`Trainer::train`] first: an epoch is [`Trainer::train_epoch`], [`Trainer::validate`], a line of the log and,
//! now and then, a checkpoint. Everything an epoch needs is made in `setup.rs`; one step is in `step.rs`.

use std::time::{Duration, Instant};

use super::TrainError;
use super::checkpoint::{Checkpoint, Progress};
use super::step::TrainStep;
use super::validation::{Validation, ValidationResult};
use crate::backend::ComputeBackend;
use crate::config::RunConfig;
use crate::dist::Communicator;
use crate::loader::Loader;
use crate::model::{ModelDescription, ParameterSpec};
use crate::optim::Schedule;
use crate::telemetry::{EpochRecord, IterationRecord, Observer, Observers};

/// nnU-Net's weight of the past in the moving average of the pseudo Dice.
const EMA_MOMENTUM: f64 = 0.9;

/// One rank's part in a training run.
pub struct Trainer<'a, B: ComputeBackend> {
    pub(super) config: &'a RunConfig,
    pub(super) comm: &'a dyn Communicator,
    pub(super) model: ModelDescription,
    pub(super) step: TrainStep<B>,
    pub(super) schedule: Schedule,
    pub(super) train_batches: Loader,
    /// `None` where the configuration asks for no validation batches.
    pub(super) validation_batches: Option<Loader>,
    pub(super) progress: Progress,
    /// Empty on all ranks but 0.
    pub(super) observers: Observers,
}

/// Sums over the steps of one epoch.
#[derive(Default)]
struct EpochSums {
    loss: f64,
    gradient_norm: f64,
    communication: Duration,
    data_wait: Duration,
    elapsed: Duration,
}

impl<B: ComputeBackend> Trainer<'_, B> {
    /// Trains from where the run stands to its last epoch, and leaves `checkpoint_latest`, `checkpoint_best` and
    /// `log.jsonl` in the run directory.
    ///
    /// # Errors
    /// A rank, a file or the data failed, or the loss is no longer a number.
    pub fn train(&mut self) -> Result<(), TrainError> {
        for epoch in self.progress.next_epoch..self.config.training.epochs {
            let began = Instant::now();
            let sums = self.train_epoch(epoch)?;
            let validation = self.validate()?;
            let is_best = self.advance(epoch, validation.as_ref());
            if self.comm.rank() == 0 {
                self.save(epoch, is_best)?;
                let record = self.record(epoch, &sums, validation, began.elapsed());
                self.observers.epoch_finished(&record)?;
            }
        }
        Ok(self.observers.run_finished()?)
    }

    fn train_epoch(&mut self, epoch: usize) -> Result<EpochSums, TrainError> {
        let mut sums = EpochSums::default();
        let began = Instant::now();
        for iteration in 0..self.config.training.iterations_per_epoch {
            let batch = self.train_batches.next()?;
            let targets = self.step.targets(batch.labels.view());
            let lr = self.schedule.lr(epoch, iteration);
            let metrics = self.step.run(batch.images.view(), &targets, lr, self.comm)?;
            self.train_batches.recycle(batch);
            // Loss and gradients are the global batch's: all ranks stop alike, before a checkpoint is made of it.
            if !metrics.loss.is_finite() || !metrics.gradient_norm.is_finite() {
                return Err(TrainError::Diverged {
                    epoch,
                    iteration,
                    loss: metrics.loss,
                    norm: metrics.gradient_norm,
                    lr,
                });
            }
            sums.loss += metrics.loss;
            sums.gradient_norm += metrics.gradient_norm;
            sums.communication += metrics.communication;
            self.observers.iteration(&IterationRecord { epoch, iteration, loss: metrics.loss })?;
        }
        sums.elapsed = began.elapsed();
        sums.data_wait = self.train_batches.take_wait();
        Ok(sums)
    }

    fn validate(&mut self) -> Result<Option<ValidationResult>, TrainError> {
        let Some(batches) = &mut self.validation_batches else { return Ok(None) };
        let network = self.step.network.valid();
        let TrainStep { loss, head_weights, device, .. } = &self.step;
        let mut validation = Validation::new(loss, network.spec().classes);
        for _ in 0..self.config.training.validation_iterations {
            let batch = batches.next()?;
            let images = (batch.images.view(), &batch.labels);
            validation.add(&network, loss, head_weights, images, self.comm, device)?;
            batches.recycle(batch);
        }
        Ok(Some(validation.finish(self.comm)?))
    }

    /// Takes an epoch's validation into the moving average; says whether that is the best so far.
    fn advance(&mut self, epoch: usize, validation: Option<&ValidationResult>) -> bool {
        self.progress.next_epoch = epoch + 1;
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

    fn save(&self, epoch: usize, is_best: bool) -> Result<(), TrainError> {
        let run = self.config.run_dir();
        let is_due = (epoch + 1).is_multiple_of(self.config.training.checkpoint_every);
        let is_last = epoch + 1 == self.config.training.epochs;
        if is_best {
            self.checkpoint().write(&run.checkpoint_best())?;
        }
        if is_due || is_last {
            self.checkpoint().write(&run.checkpoint_latest())?;
        }
        Ok(())
    }

    /// The run as it stands.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let specs: Vec<ParameterSpec> = self.step.network.parameters().iter().map(|p| p.spec.clone()).collect();
        Checkpoint {
            model: self.model.clone(),
            progress: self.progress.clone(),
            weights: self.step.network.state(),
            optimizer: self.step.optimizer.state(&specs),
        }
    }

    fn record(
        &self,
        epoch: usize,
        sums: &EpochSums,
        validation: Option<ValidationResult>,
        elapsed: Duration,
    ) -> EpochRecord {
        let training = &self.config.training;
        let steps = training.iterations_per_epoch as f64;
        let samples = steps * (training.batch_size * self.comm.world_size()) as f64;
        EpochRecord {
            epoch,
            train_loss: sums.loss / steps,
            val_loss: validation.as_ref().map(|validation| validation.loss),
            pseudo_dice: validation.map(|validation| validation.pseudo_dice).unwrap_or_default(),
            ema_pseudo_dice: self.progress.ema_pseudo_dice,
            lr: self.schedule.lr(epoch, 0),
            samples_per_s: samples / sums.elapsed.as_secs_f64(),
            step_s: sums.elapsed.as_secs_f64() / steps,
            data_wait_s: sums.data_wait.as_secs_f64(),
            comm_s: sums.communication.as_secs_f64(),
            epoch_s: elapsed.as_secs_f64(),
            gradient_norm: sums.gradient_norm / steps,
            world_size: self.comm.world_size(),
        }
    }
}
