//! Records passed to observers.

use serde::{Deserialize, Serialize};

/// State of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Training,
    /// Asked to stop: saves a checkpoint after the step in progress.
    Stopping,
    /// Predicts the held-out cases.
    Predicting,
    Finished,
    /// Stopped on request; can be resumed.
    Stopped,
}

/// One step, as seen by this rank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IterationRecord {
    /// Epoch, from 0; `iteration` is the step within it, from 0.
    pub epoch: usize,
    pub iteration: usize,
    /// Loss of the global batch.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// L2 norm of the averaged gradient before clipping; not finite if the step was skipped.
    pub gradient_norm: f64,
    /// Loss scale; `None` without loss scaling.
    pub loss_scale: Option<f64>,
    pub times: StepTimes,
}

/// Times of a step on this rank, in seconds. Steps that were queued on a device together each have their mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Total time.
    pub total: f64,
    /// Time waiting for data.
    pub data_wait: f64,
    /// Time waiting in collectives.
    pub communication: f64,
}

/// An image for an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureRecord {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Title of the image.
    pub name: &'static str,
    /// PNG file; `size` is its width and height in pixels.
    pub png: Vec<u8>,
    pub size: [u32; 2],
}

/// One epoch, as an object of `log.jsonl`; keys have this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Mean loss over the steps, for the global batches.
    pub train_loss: f64,
    /// Mean loss over the validation batches; null without validation.
    pub val_loss: Option<f64>,
    /// Pseudo Dice per foreground class or region; null for a class that did not occur.
    pub pseudo_dice: Vec<Option<f64>>,
    /// Exponential moving average of the mean pseudo Dice.
    pub ema_pseudo_dice: Option<f64>,
    /// Learning rate of the first step.
    pub lr: f64,
    /// Training samples per second over all ranks, excluding validation.
    pub samples_per_s: f64,
    /// Mean time of a training step in seconds.
    pub step_s: f64,
    /// Time that the steps of this epoch waited for data, in seconds, mean over the ranks.
    pub data_wait_s: f64,
    /// Time that the steps of this epoch waited in collectives, in seconds, mean over the ranks: communication that did
    /// not overlap computation, and waiting for slower ranks.
    pub comm_s: f64,
    /// Part of `comm_s` spent waiting for the slowest rank.
    pub straggler_s: f64,
    /// Time that the steps waited for the copy of the weights that is written as a checkpoint, in seconds.
    #[serde(default)]
    pub checkpoint_s: f64,
    /// Wall time of the epoch including validation and checkpoint, in seconds.
    pub epoch_s: f64,
    /// Mean norm of the averaged gradient before clipping.
    pub gradient_norm: f64,
    /// Loss scale; null without loss scaling.
    #[serde(default)]
    pub loss_scale: Option<f64>,
    /// Steps without an update because a gradient was not finite.
    #[serde(default)]
    pub skipped_steps: usize,
    /// Number of processes.
    pub world_size: usize,
}

#[cfg(test)]
impl EpochRecord {
    /// Returns a plausible record.
    pub(super) fn example(epoch: usize) -> Self {
        let progress = epoch as f64 / 10.0;
        Self {
            epoch,
            train_loss: 0.5 - progress,
            val_loss: Some(0.6 - progress),
            pseudo_dice: vec![Some(0.2 + progress / 2.0), None],
            ema_pseudo_dice: Some(0.1 + progress / 2.0),
            lr: 0.01 * (1.0 - progress / 2.0),
            samples_per_s: 2.0,
            step_s: 1.0,
            data_wait_s: 0.01,
            comm_s: 0.0,
            straggler_s: 0.0,
            checkpoint_s: 0.0,
            epoch_s: 100.0 + 10.0 * (epoch % 3) as f64,
            gradient_norm: 1.0,
            loss_scale: None,
            skipped_steps: 0,
            world_size: 1,
        }
    }
}
