//! Learning-rate schedules.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Learning rate schedule. Keys that the kind does not use are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    pub kind: ScheduleKind,
    /// Warm-up steps, in which the rate rises to the initial one before the schedule starts.
    pub warmup_steps: usize,
    /// Exponent of `poly`.
    pub power: f64,
    /// Final rate of `cosine` and `cosine_annealing`.
    pub min_lr: f64,
    /// Steps of the first cycle of `cosine_annealing`; each later cycle is twice as long.
    pub t_0: usize,
    /// Ratio of the peak rates of two successive cycles of `cosine_annealing`.
    pub peak_decay: f64,
}

/// Shape of the learning rate schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", value(rename_all = "snake_case"))]
pub enum ScheduleKind {
    /// `lr * (1 - progress) ^ power`.
    Poly,
    /// Constant.
    None,
    /// Half a cosine from `lr` to `min_lr`.
    Cosine,
    /// Cosines with warm restarts (Loshchilov and Hutter 2017).
    CosineAnnealing,
}

/// Learning rate of every step of a run.
///
/// Steps are counted over the whole run, so the schedule depends neither on the number of ranks nor on restarts.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    config: ScheduleConfig,
    base: f64,
    epochs: usize,
    iterations_per_epoch: usize,
}

impl Schedule {
    /// Creates the schedule of a run with base learning rate `base`.
    pub fn new(config: &ScheduleConfig, base: f64, epochs: usize, iterations_per_epoch: usize) -> Self {
        Self { config: config.clone(), base, epochs, iterations_per_epoch }
    }

    /// Returns the learning rate of a step; `epoch` and `iteration` count from 0.
    ///
    /// `poly` changes once per epoch, as in nnU-Net v2 (`polylr.py`). The cosine schedules change every step, as in
    /// NVIDIA's nnU-Net (`tf.keras.optimizers.schedules.CosineDecay` and `CosineDecayRestarts`). During warm-up the
    /// rate rises linearly; the schedule then covers the remaining steps (nnU-Net's `PolyLRScheduler_offset`).
    pub fn lr(&self, epoch: usize, iteration: usize) -> f64 {
        let warmup = self.config.warmup_steps as f64;
        let in_run = (epoch * self.iterations_per_epoch + iteration) as f64;
        if in_run < warmup {
            return self.base * (in_run + 1.0) / warmup;
        }
        let steps = ((self.epochs * self.iterations_per_epoch) as f64 - warmup).max(1.0);
        let step = in_run - warmup;
        match self.config.kind {
            ScheduleKind::None => self.base,
            ScheduleKind::Poly => {
                let at_epoch = ((epoch * self.iterations_per_epoch) as f64 - warmup).max(0.0);
                self.base * (1.0 - at_epoch / steps).max(0.0).powf(self.config.power)
            }
            ScheduleKind::Cosine => self.between(half_cosine(step / steps)),
            ScheduleKind::CosineAnnealing => {
                let (cycle, part) = cycle(step / self.config.t_0 as f64);
                self.between(self.config.peak_decay.powi(cycle) * half_cosine(part))
            }
        }
    }

    /// Interpolates from `min_lr` at 0 to the base rate at 1.
    fn between(&self, part: f64) -> f64 {
        self.config.min_lr + (self.base - self.config.min_lr) * part
    }
}

/// Half a cosine period, from 1 at 0 to 0 at 1.
fn half_cosine(part: f64) -> f64 {
    0.5 * (1.0 + (PI * part.min(1.0)).cos())
}

/// Returns the index of the cycle at `time`, measured in lengths of the first cycle, and the fraction of it that has
/// passed. Each cycle is twice as long as the previous one.
fn cycle(time: f64) -> (i32, f64) {
    let number = (time + 1.0).log2().floor();
    let length = number.exp2();
    (number as i32, (time - (length - 1.0)) / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        let config = ScheduleConfig { kind, warmup_steps: 0, power: 0.9, min_lr: 0.1, t_0: 10, peak_decay: 0.5 };
        Schedule::new(&config, 1.1, 7, 10)
    }

    #[test]
    fn a_warm_up_comes_before_every_schedule() {
        for kind in [ScheduleKind::None, ScheduleKind::Poly, ScheduleKind::Cosine, ScheduleKind::CosineAnnealing] {
            let shorter = schedule(kind);
            let mut warmed = schedule(kind);
            warmed.config.warmup_steps = 20;
            warmed.epochs += 2;
            for (epoch, iteration, part) in [(0, 0, 0.05), (0, 9, 0.5), (1, 9, 1.0)] {
                assert!((warmed.lr(epoch, iteration) - 1.1 * part).abs() < 1e-12, "{kind:?}");
            }
            for (epoch, iteration) in [(0, 0), (0, 9), (3, 4), (6, 9)] {
                let (late, early) = (warmed.lr(epoch + 2, iteration), shorter.lr(epoch, iteration));
                assert!((late - early).abs() < 1e-12, "{kind:?}: {late} instead of {early}");
            }
        }
    }

    #[test]
    fn cosines_fall_to_the_end_and_restart_lower() {
        let cosine = schedule(ScheduleKind::Cosine);
        assert_eq!(cosine.lr(0, 0), 1.1);
        assert!((cosine.lr(3, 5) - 0.6).abs() < 1e-12 && cosine.lr(7, 0) == 0.1);

        let annealing = schedule(ScheduleKind::CosineAnnealing);
        // Cycles of 10, 20 and 40 steps, with peaks of 1, 1/2 and 1/4 above the final rate.
        for (epoch, iteration, expected) in [(0, 0, 1.1), (0, 5, 0.6), (1, 0, 0.6), (2, 0, 0.35), (3, 0, 0.35)] {
            let lr = annealing.lr(epoch, iteration);
            assert!((lr - expected).abs() < 1e-12, "{lr} in epoch {epoch}");
        }
        assert_eq!(schedule(ScheduleKind::None).lr(5, 3), 1.1);
    }
}
