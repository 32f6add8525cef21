//! Progress on standard error: a bar on a terminal, otherwise a line from time to time.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar as Bar, ProgressStyle};

use super::{EpochRecord, IterationRecord, Observer, RunState, TelemetryError};

/// Time between two progress lines of an epoch without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// Shows loss, samples per second and remaining time.
pub struct ProgressBar {
    epochs: usize,
    iterations_per_epoch: usize,
    /// Samples per step over all ranks.
    global_batch_size: usize,
    first_epoch: usize,
    began: Instant,
    epoch_began: Instant,
    last_line: Instant,
    /// `None` if standard error is not a terminal.
    bar: Option<Bar>,
}

impl ProgressBar {
    /// Creates a bar that starts at `first_epoch` of `epochs`.
    pub fn new(first_epoch: usize, epochs: usize, iterations_per_epoch: usize, global_batch_size: usize) -> Self {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}");
        let bar = std::io::stderr().is_terminal().then(|| {
            Bar::new(iterations_per_epoch as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Self {
            epochs,
            iterations_per_epoch,
            global_batch_size,
            first_epoch,
            began: now,
            epoch_began: now,
            last_line: now,
            bar,
        }
    }

    /// Estimates the remaining time from the mean time of the steps so far.
    fn left(&self, record: &IterationRecord) -> Duration {
        let done = (record.epoch - self.first_epoch) * self.iterations_per_epoch + record.iteration + 1;
        let all = (self.epochs - self.first_epoch) * self.iterations_per_epoch;
        self.began.elapsed().mul_f64((all - done) as f64 / done as f64)
    }

    fn message(&self, record: &IterationRecord) -> String {
        let samples = ((record.iteration + 1) * self.global_batch_size) as f64;
        let rate = samples / self.epoch_began.elapsed().as_secs_f64().max(1e-9);
        format!("loss {:.4}, {rate:.2} samples/s, {} left", record.loss, HumanDuration(self.left(record)))
    }
}

impl Observer for ProgressBar {
    fn iteration(&mut self, record: &IterationRecord) -> Result<(), TelemetryError> {
        if record.iteration == 0 {
            // The start time of the first step is not known exactly; the error of less than one step is negligible.
            self.last_line = Instant::now();
        }
        let prefix = format!("epoch {}/{}", record.epoch + 1, self.epochs);
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(prefix);
                bar.set_message(self.message(record));
                bar.set_position(record.iteration as u64 + 1);
            }
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                self.last_line = Instant::now();
                let (step, steps) = (record.iteration + 1, self.iterations_per_epoch);
                tracing::info!("{prefix}, step {step}/{steps}: {}", self.message(record));
            }
            None => {}
        }
        Ok(())
    }

    fn epoch_finished(&mut self, record: &EpochRecord) -> Result<(), TelemetryError> {
        let optional = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let dice: Vec<String> = record.pseudo_dice.iter().map(|dice| optional(*dice)).collect();
        let line = format!(
            "epoch {}/{}: train loss {:.4}, val loss {}, pseudo Dice [{}] (EMA {}), lr {:.2e}, {:.2} samples/s, {:.1} s",
            record.epoch + 1,
            self.epochs,
            record.train_loss,
            optional(record.val_loss),
            dice.join(", "),
            optional(record.ema_pseudo_dice),
            record.lr,
            record.samples_per_s,
            record.epoch_s,
        );
        match &self.bar {
            Some(bar) => bar.suspend(|| tracing::info!("{line}")),
            None => tracing::info!("{line}"),
        }
        self.epoch_began = Instant::now();
        Ok(())
    }

    fn run_is(&mut self, _: RunState) -> Result<(), TelemetryError> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        Ok(())
    }
}
