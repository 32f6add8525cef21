//! From what a rank knows to metrics.

use std::fmt;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::snapshot::Snapshot;
use crate::telemetry::EpochRecord;

/// What is asked of the rank's GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuReading {
    /// Bytes in use by whomever, and all of them.
    pub memory: Option<[u64; 2]>,
    /// Part of the time in which it computed, `0..=1`.
    pub utilization: Option<f64>,
}

/// Asks the GPU.
pub type AskGpu = Box<dyn Fn() -> GpuReading + Send + Sync>;

/// The metrics of a rank.
pub struct RankCollector {
    pub snapshot: Arc<Mutex<Snapshot>>,
    /// What run it is, by labels.
    pub run: Vec<(&'static str, String)>,
    /// `None` for a rank without one.
    pub gpu: Option<AskGpu>,
}

/// A number that may go up and down: name, help, value, which is left out while there is none.
type Gauge = (&'static str, &'static str, fn(&Snapshot) -> Option<f64>);
/// A number that only grows while the process lives.
type Counter = (&'static str, &'static str, fn(&Snapshot) -> f64);

const GAUGES: [Gauge; 27] = [
    ("epochs", "Epochs that the run is to have", |s| Some(s.facts.epochs as f64)),
    ("steps_per_epoch", "Steps of an epoch", |s| Some(s.facts.steps_per_epoch as f64)),
    ("step", "Steps of the run that are done", |s| Some(s.step as f64)),
    ("epoch", "Epoch of the last step, from 0", |s| Some(s.last_step.as_ref()?.epoch as f64)),
    ("loss", "Loss of the last step, of the global batch", |s| Some(s.last_step.as_ref()?.loss)),
    ("learning_rate", "Learning rate of the last step", |s| Some(s.last_step.as_ref()?.lr)),
    ("gradient_norm", "Norm of the last step's averaged gradient before clipping", |s| {
        Some(s.last_step.as_ref()?.gradient_norm)
    }),
    ("loss_scale", "Factor of the last step's loss", |s| s.last_step.as_ref()?.loss_scale),
    ("samples_per_second", "Training samples over all ranks, by the time of this rank's last steps", |s| {
        s.samples_per_s()
    }),
    ("last_step_seconds", "Time of a step on this rank, mean of the last that were reported", |s| {
        Some(s.last_step.as_ref()?.times.total)
    }),
    ("last_data_wait_seconds", "The part of it that was waiting for data", |s| {
        Some(s.last_step.as_ref()?.times.data_wait)
    }),
    ("last_communication_seconds", "The part of it that was waiting in collectives", |s| {
        Some(s.last_step.as_ref()?.times.communication)
    }),
    ("last_epoch", "Last epoch that is over, from 0; epoch_... is of it, as in log.jsonl", |s| {
        epoch(s, |epoch| epoch.epoch as f64)
    }),
    ("epoch_loss", "Mean loss of the steps", |s| epoch(s, |epoch| epoch.train_loss)),
    ("epoch_validation_loss", "Mean loss of the validation batches", |s| s.last_epoch.as_ref()?.val_loss),
    ("epoch_samples_per_second", "Training samples over all ranks", |s| epoch(s, |epoch| epoch.samples_per_s)),
    ("epoch_step_seconds", "Mean time of a step, mean of the ranks", |s| epoch(s, |epoch| epoch.step_s)),
    ("epoch_data_wait_seconds", "Waiting for data in all steps, mean of the ranks", |s| {
        epoch(s, |epoch| epoch.data_wait_s)
    }),
    ("epoch_communication_seconds", "Waiting in collectives in all steps, mean of the ranks", |s| {
        epoch(s, |epoch| epoch.comm_s)
    }),
    ("epoch_straggler_seconds", "The part of it that was waiting for the slowest rank", |s| {
        epoch(s, |epoch| epoch.straggler_s)
    }),
    ("epoch_checkpoint_seconds", "Time until the next step could be made, on rank 0, which saves", |s| {
        epoch(s, |epoch| epoch.checkpoint_s)
    }),
    ("epoch_seconds", "Time of the epoch with validation and checkpoint", |s| epoch(s, |epoch| epoch.epoch_s)),
    ("epoch_gradient_norm", "Mean norm of the averaged gradient before clipping", |s| {
        epoch(s, |epoch| epoch.gradient_norm)
    }),
    ("epoch_loss_scale", "Factor of the loss at the end", |s| s.last_epoch.as_ref()?.loss_scale),
    ("epoch_skipped_steps", "Steps without an update", |s| epoch(s, |epoch| epoch.skipped_steps as f64)),
    ("ema_pseudo_dice", "Moving average of the mean pseudo Dice", |s| s.ema_pseudo_dice),
    ("best_ema_pseudo_dice", "The best that it has been", |s| s.best_ema_pseudo_dice),
];

const COUNTERS: [Counter; 8] = [
    ("steps", "Steps made by this process", |s| s.made.steps as f64),
    ("skipped_steps", "Those without an update, as a gradient was not finite", |s| s.made.skipped_steps as f64),
    ("step_seconds", "Time of all steps on this rank", |s| s.made.steps_s),
    ("data_wait_seconds", "The part of it that was waiting for data", |s| s.made.data_wait_s),
    ("communication_seconds", "The part of it that was waiting in collectives", |s| s.made.communication_s),
    ("checkpoint_seconds", "Steps waiting for the copy that is saved, on rank 0", |s| s.made.checkpoint_s),
    ("rollbacks", "Returns of the run to an earlier checkpoint", |s| s.rollbacks as f64),
    ("restarts", "Attempts of nnunet-launch before this one", |s| s.facts.restarts as f64),
];

fn epoch(snapshot: &Snapshot, value: fn(&EpochRecord) -> f64) -> Option<f64> {
    snapshot.last_epoch.as_ref().map(value)
}

impl fmt::Debug for RankCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RankCollector").field("run", &self.run).finish_non_exhaustive()
    }
}

impl Collector for RankCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let run = self.run.as_slice();
        encoder.encode_descriptor("run", "What is trained", None, MetricType::Info)?.encode_info(&run)?;
        self.encode_snapshot(&mut encoder)?;
        if let Some(bytes) = resident_memory() {
            gauge(&mut encoder, "resident_memory_bytes", "Memory of the process", bytes as f64)?;
        }
        self.gpu.as_ref().map_or(Ok(()), |ask| encode_gpu(&mut encoder, ask()))
    }
}

impl RankCollector {
    fn encode_snapshot(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, value) in GAUGES {
            if let Some(value) = value(&snapshot) {
                gauge(encoder, name, help, value)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, f64, f64>(&value(&snapshot), None)?;
        }
        encode_pseudo_dice(encoder, &snapshot)
    }
}

/// As a label's value stands in the text format; the encoder leaves it as it is.
pub fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Of the classes that there were, or that were predicted.
fn encode_pseudo_dice(encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
    let values = snapshot.last_epoch.iter().flat_map(|epoch| &epoch.pseudo_dice);
    let known =
        snapshot.facts.classes.iter().zip(values).filter_map(|(class, value)| Some((escaped(class), (*value)?)));
    let known: Vec<_> = known.collect();
    if known.is_empty() {
        return Ok(());
    }
    let help = "Dice over all voxels of the last epoch's validation patches";
    let mut metric = encoder.encode_descriptor("pseudo_dice", help, None, MetricType::Gauge)?;
    for (class, value) in known {
        metric.encode_family(&[("class", class.as_str())])?.encode_gauge(&value)?;
    }
    Ok(())
}

fn encode_gpu(encoder: &mut DescriptorEncoder, reading: GpuReading) -> fmt::Result {
    if let Some([used, all]) = reading.memory {
        gauge(encoder, "gpu_memory_used_bytes", "Memory of the rank's GPU in use, by whomever", used as f64)?;
        gauge(encoder, "gpu_memory_total_bytes", "Memory of the rank's GPU", all as f64)?;
    }
    match reading.utilization {
        Some(part) => gauge(encoder, "gpu_utilization_ratio", "Part of the time in which the GPU computed", part),
        None => Ok(()),
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// Bytes of memory that this process has.
fn resident_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}
