//! Status of a run.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use indexmap::IndexMap;
use serde::Serialize;

use super::RunFiles;
use super::format;
use nnunet_train::telemetry::{EpochRecord, RunState};

/// Time without a write after which an active run is considered silent; normally a run writes every second.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// Number of recent epochs used to estimate the remaining time.
const RECENT_EPOCHS: usize = 5;

/// Status of a run, in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunStatus {
    pub run: PathBuf,
    /// Configuration and fold.
    pub name: String,
    /// `None` before the first step.
    pub state: Option<RunState>,
    /// Seconds since the last write by the run.
    pub silent_s: Option<u64>,
    /// Active according to its state, but without a write for more than five minutes.
    pub is_silent: bool,
    /// Finished epochs, and the total.
    pub epochs_done: usize,
    pub epochs: Option<usize>,
    /// Finished steps, and the total.
    pub step: u64,
    pub steps: Option<u64>,
    /// Estimated seconds to the end of the last epoch, at the speed of the last five.
    pub left_s: Option<f64>,
    /// Values of the last epoch, up to `communication`.
    pub train_loss: Option<f64>,
    pub val_loss: Option<f64>,
    /// Pseudo Dice by class.
    pub pseudo_dice: IndexMap<String, Option<f64>>,
    pub ema_pseudo_dice: Option<f64>,
    /// Best so far, and the number of epochs finished at that time.
    pub best_ema_pseudo_dice: Option<f64>,
    pub best_epoch: Option<usize>,
    pub lr: Option<f64>,
    pub samples_per_s: Option<f64>,
    pub step_s: Option<f64>,
    /// Fractions of the step time, 0 to 1.
    pub data_wait: Option<f64>,
    pub communication: Option<f64>,
    pub world_size: Option<usize>,
    /// Steps without an update, since the start.
    pub skipped_steps: usize,
    pub checkpoint: Option<LastCheckpoint>,
    /// Dice of the held-out cases; `None` until they are predicted.
    pub validated: Option<Validated>,
    /// Per epoch: validation loss (training loss if there is none), and the moving average of the pseudo Dice.
    #[serde(skip)]
    pub losses: Vec<f64>,
    #[serde(skip)]
    pub dice: Vec<f64>,
}

/// The newest checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LastCheckpoint {
    pub path: PathBuf,
    /// Steps since the start of the run.
    pub step: Option<u64>,
    pub age_s: Option<u64>,
}

/// Dice of the held-out cases.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validated {
    pub cases: usize,
    /// Mean over the classes.
    pub mean_dice: f64,
    pub dice: IndexMap<String, f64>,
}

impl RunStatus {
    /// Status as of `now`.
    pub fn from_run(run: &RunFiles, now: SystemTime) -> Self {
        let status = run.status.as_ref();
        let last = run.log.last();
        let state = status.map(|status| status.state);
        let silent = run.last_write().map(|written| now.duration_since(written).unwrap_or_default());
        let is_at_work = matches!(state, Some(RunState::Training | RunState::Stopping | RunState::Predicting));
        let is_silent = is_at_work && silent.is_some_and(|silent| silent > SILENCE_LIMIT);
        let steps_per_epoch = run.steps_per_epoch();
        let epochs_done = last.map_or(0, |last| last.epoch + 1);
        let epochs = status.map(|status| status.epochs).or(run.config.as_ref().map(|config| config.training.epochs));
        let logged = steps_per_epoch.map_or(0, |steps| epochs_done as u64 * steps as u64);
        let step = status.map_or(logged, |status| status.step);
        let steps = epochs.zip(steps_per_epoch).map(|(epochs, per_epoch)| epochs as u64 * per_epoch as u64);
        let left_s = steps.filter(|_| state == Some(RunState::Training) && !is_silent).and_then(|steps| {
            let recent: Vec<f64> = run.log.iter().rev().take(RECENT_EPOCHS).map(|record| record.epoch_s).collect();
            let mean = recent.iter().sum::<f64>() / recent.len() as f64;
            let epochs = steps.saturating_sub(step) as f64 / steps_per_epoch? as f64;
            Some(mean * epochs).filter(|seconds| seconds.is_finite())
        });
        let best = run.log.iter().filter_map(|record| Some((record.ema_pseudo_dice?, record.epoch + 1)));
        let best = best.fold(None, |best: Option<(f64, usize)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        });
        let part = |seconds: fn(&EpochRecord) -> f64| {
            let last = last?;
            Some(seconds(last) / (last.step_s * steps_per_epoch? as f64)).filter(|part| part.is_finite())
        };
        Self {
            run: run.dir.root().to_owned(),
            name: run.name(),
            state,
            silent_s: silent.map(|silent| silent.as_secs()),
            is_silent,
            epochs_done,
            epochs,
            step,
            steps,
            left_s,
            train_loss: last.map(|last| last.train_loss),
            val_loss: last.and_then(|last| last.val_loss),
            pseudo_dice: last.map(|last| pseudo_dice(run, last)).unwrap_or_default(),
            ema_pseudo_dice: last.and_then(|last| last.ema_pseudo_dice),
            best_ema_pseudo_dice: best.map(|best| best.0),
            best_epoch: best.map(|best| best.1),
            lr: last.map(|last| last.lr),
            samples_per_s: last.map(|last| last.samples_per_s),
            step_s: last.map(|last| last.step_s),
            data_wait: part(|record| record.data_wait_s),
            communication: part(|record| record.comm_s),
            world_size: status.map(|status| status.world_size).or(last.map(|last| last.world_size)),
            skipped_steps: run.log.iter().map(|record| record.skipped_steps).sum(),
            checkpoint: last_checkpoint(run, now),
            validated: run.summary.as_ref().map(|summary| Validated {
                cases: summary.metric_per_case.len(),
                mean_dice: summary.mean_dice(),
                dice: summary.mean.iter().map(|(key, metrics)| (run.class_name(key), metrics.dice)).collect(),
            }),
            losses: run.log.iter().map(|record| record.val_loss.unwrap_or(record.train_loss)).collect(),
            dice: run.log.iter().filter_map(|record| record.ema_pseudo_dice).collect(),
        }
    }

    /// State in words.
    pub fn state_text(&self) -> String {
        match self.state {
            _ if self.is_silent => format!("no update for {}", format::duration(self.silent_s.unwrap_or(0) as f64)),
            Some(RunState::Training) => "training".to_owned(),
            Some(RunState::Stopping) => "stopping, saves a checkpoint".to_owned(),
            Some(RunState::Predicting) => "predicting the held-out cases".to_owned(),
            Some(RunState::Finished) => "finished".to_owned(),
            Some(RunState::Stopped) => "stopped, can be resumed".to_owned(),
            None if self.epochs_done > 0 => "unknown: no status.json".to_owned(),
            None => "not started".to_owned(),
        }
    }

    /// Fraction of the steps that are finished.
    pub fn progress(&self) -> f64 {
        self.steps.filter(|steps| *steps > 0).map_or(0.0, |steps| (self.step as f64 / steps as f64).min(1.0))
    }

    /// Whether the run has finished or stopped.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, Some(RunState::Finished | RunState::Stopped))
    }
}

/// Pseudo Dice of an epoch by class name.
fn pseudo_dice(run: &RunFiles, record: &EpochRecord) -> IndexMap<String, Option<f64>> {
    run.class_names(record.pseudo_dice.len()).into_iter().zip(record.pseudo_dice.iter().copied()).collect()
}

fn last_checkpoint(run: &RunFiles, now: SystemTime) -> Option<LastCheckpoint> {
    let listed = run.checkpoints.iter().rfind(|listed| listed.is_latest)?;
    let progress =
        listed.contents.as_ref().and_then(|contents| contents.training.as_ref()).map(|training| &training.progress);
    Some(LastCheckpoint {
        path: listed.path.clone(),
        step: progress.zip(run.steps_per_epoch()).map(|(progress, per_epoch)| progress.steps(per_epoch as u64)),
        age_s: listed.written.map(|written| now.duration_since(written).unwrap_or_default().as_secs()),
    })
}
