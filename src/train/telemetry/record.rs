//! The records of a run.

use serde::{Deserialize, Serialize};

/// What a run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Training,
    /// Predicting the held-out cases.
    Predicting,
    Finished,
    /// On request, to be resumed.
    Stopped,
}

/// One step, as this rank saw it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IterationRecord {
    /// Both from 0.
    pub epoch: usize,
    pub iteration: usize,
    /// Loss of the global batch.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the averaged gradient before clipping; not finite where the step made no update.
    pub gradient_norm: f64,
    /// By which the loss was multiplied; `None` where it is not.
    pub loss_scale: Option<f64>,
    pub times: StepTimes,
}

/// What a step took on this rank, in seconds; of steps that a device had queued, each has the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// All of it.
    pub total: f64,
    /// Waiting for data.
    pub data_wait: f64,
    /// Waiting in collectives.
    pub communication: f64,
}

/// A picture of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureRecord {
    /// From 0.
    pub epoch: usize,
    /// What it is of.
    pub name: &'static str,
    /// A file with so many pixels, width and height.
    pub png: Vec<u8>,
    pub size: [u32; 2],
}

/// One epoch: an object of `log.jsonl`, keys in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 0.
    pub epoch: usize,
    /// Mean loss over the steps, of the global batches.
    pub train_loss: f64,
    /// Mean loss over the validation batches; null without any.
    pub val_loss: Option<f64>,
    /// Per foreground class or region; null for one that did not occur.
    pub pseudo_dice: Vec<Option<f64>>,
    /// Exponential moving average of the mean pseudo Dice.
    pub ema_pseudo_dice: Option<f64>,
    /// Learning rate of the first step.
    pub lr: f64,
    /// Training samples per second, over all ranks, validation left out.
    pub samples_per_s: f64,
    /// Mean time of a training step in seconds.
    pub step_s: f64,
    /// Time the steps of this epoch waited for data, in seconds, mean over the ranks.
    pub data_wait_s: f64,
    /// Time the steps of this epoch waited in collectives, in seconds, mean over the ranks: communication that was not
    /// hidden behind the computation, and waiting for slower ranks.
    pub comm_s: f64,
    /// The part of it that ranks waited for the slowest rank.
    pub straggler_s: f64,
    /// Time that the steps waited for the copy of the weights that is written as a checkpoint.
    #[serde(default)]
    pub checkpoint_s: f64,
    /// Wall time of the epoch, validation and checkpoint included, in seconds.
    pub epoch_s: f64,
    /// Mean norm of the averaged gradient before clipping.
    pub gradient_norm: f64,
    /// By which the loss is multiplied; null where it is not.
    #[serde(default)]
    pub loss_scale: Option<f64>,
    /// Steps without an update, because a gradient was not finite.
    #[serde(default)]
    pub skipped_steps: usize,
    /// Number of processes.
    pub world_size: usize,
}

#[cfg(test)]
impl EpochRecord {
    /// A plausible record.
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
