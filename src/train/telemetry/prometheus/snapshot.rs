//! Current state of a rank's run, as exported to Prometheus.

use crate::telemetry::{EpochRecord, IterationRecord};
use nnunet_nn::checkpoint::Progress;

/// Constant and current values of a run.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub facts: Facts,
    /// Completed steps of the run.
    pub step: u64,
    pub last_step: Option<IterationRecord>,
    pub last_epoch: Option<EpochRecord>,
    pub ema_pseudo_dice: Option<f64>,
    pub best_ema_pseudo_dice: Option<f64>,
    pub rollbacks: u64,
    pub made: Made,
}

/// Constant values of a run.
#[derive(Debug, Default)]
pub struct Facts {
    pub epochs: usize,
    pub steps_per_epoch: usize,
    /// Samples per step over all ranks.
    pub global_batch_size: usize,
    /// Names of foreground classes or regions.
    pub classes: Vec<String>,
    /// Number of earlier attempts according to the launcher.
    pub restarts: u64,
}

/// Totals of this process since its start; they never decrease.
#[derive(Debug, Default)]
pub struct Made {
    pub steps: u64,
    pub skipped_steps: u64,
    /// Time of all steps, in seconds.
    pub steps_s: f64,
    pub data_wait_s: f64,
    pub communication_s: f64,
    pub checkpoint_s: f64,
}

impl Snapshot {
    /// Sets the position at which the run starts, resumes, or continues after a rollback.
    pub fn resume_from(&mut self, progress: &Progress) {
        self.step = progress.steps(self.facts.steps_per_epoch as u64);
        self.ema_pseudo_dice = progress.ema_pseudo_dice;
        self.best_ema_pseudo_dice = progress.best_ema_pseudo_dice;
        self.rollbacks = progress.rollbacks;
    }

    /// Adds a finished step.
    pub fn iteration(&mut self, record: &IterationRecord) {
        self.step = (record.epoch * self.facts.steps_per_epoch + record.iteration + 1) as u64;
        self.made.steps += 1;
        self.made.skipped_steps += u64::from(!record.gradient_norm.is_finite());
        self.made.steps_s += record.times.total;
        self.made.data_wait_s += record.times.data_wait;
        self.made.communication_s += record.times.communication;
        self.last_step = Some(record.clone());
    }

    /// Adds a finished epoch.
    pub fn epoch_finished(&mut self, record: &EpochRecord) {
        self.made.checkpoint_s += record.checkpoint_s;
        self.ema_pseudo_dice = record.ema_pseudo_dice;
        self.best_ema_pseudo_dice =
            [self.best_ema_pseudo_dice, record.ema_pseudo_dice].into_iter().flatten().reduce(f64::max);
        self.last_epoch = Some(record.clone());
    }

    /// Returns samples per second over all ranks, from the time of this rank's last steps.
    pub fn samples_per_s(&self) -> Option<f64> {
        let total = self.last_step.as_ref()?.times.total;
        (total > 0.0).then(|| self.facts.global_batch_size as f64 / total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::StepTimes;

    #[test]
    fn what_was_done_adds_up_and_where_the_run_stands_follows_it_back() {
        let mut snapshot = Snapshot::default();
        snapshot.facts.steps_per_epoch = 10;
        snapshot.facts.global_batch_size = 4;
        let times = StepTimes { total: 0.5, data_wait: 0.125, communication: 0.25 };
        let step = |iteration, gradient_norm| IterationRecord {
            epoch: 2,
            iteration,
            gradient_norm,
            times,
            ..IterationRecord::default()
        };
        snapshot.iteration(&step(3, 1.0));
        snapshot.iteration(&step(4, f64::INFINITY));
        assert_eq!((snapshot.step, snapshot.made.steps, snapshot.made.skipped_steps), (25, 2, 1));
        assert_eq!((snapshot.made.steps_s, snapshot.made.communication_s), (1.0, 0.5));
        assert_eq!(snapshot.samples_per_s(), Some(8.0));

        snapshot.epoch_finished(&EpochRecord { ema_pseudo_dice: Some(0.5), ..EpochRecord::example(2) });
        snapshot.epoch_finished(&EpochRecord { ema_pseudo_dice: Some(0.25), ..EpochRecord::example(3) });
        assert_eq!((snapshot.ema_pseudo_dice, snapshot.best_ema_pseudo_dice), (Some(0.25), Some(0.5)));
        let progress = Progress { next_epoch: 1, rollbacks: 1, ema_pseudo_dice: Some(0.125), ..Progress::default() };
        snapshot.resume_from(&progress);
        assert_eq!((snapshot.step, snapshot.rollbacks, snapshot.ema_pseudo_dice), (10, 1, Some(0.125)));
        assert_eq!(snapshot.made.steps, 2);
    }
}
