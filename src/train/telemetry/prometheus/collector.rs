//! Conversion of a rank's state to metrics.

use std::fmt;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::snapshot::Snapshot;
use crate::telemetry::EpochRecord;

/// Measurements of the rank's GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuReading {
    /// Used (by all processes) and total memory in bytes.
    pub memory: Option<[u64; 2]>,
    /// Fraction of time in which the GPU was busy, `0..=1`.
    pub utilization: Option<f64>,
}

/// Function that reads the GPU.
pub type AskGpu = Box<dyn Fn() -> GpuReading + Send + Sync>;

/// Metrics collector of a rank.
pub struct RankCollector {
    pub snapshot: Arc<Mutex<Snapshot>>,
    /// Labels that identify the run.
    pub run: Vec<(&'static str, String)>,
    /// `None` for a rank without a GPU.
    pub gpu: Option<AskGpu>,
}

/// A value that may rise and fall: name, help, value. It is omitted while the value is unknown.
type Gauge = (&'static str, &'static str, fn(&Snapshot) -> Option<f64>);
/// A value that only grows during the lifetime of the process.
type Counter = (&'static str, &'static str, fn(&Snapshot) -> f64);

const GAUGES: [Gauge; 27] = [
    ("epochs", "Total epochs of the run", |s| Some(s.facts.epochs as f64)),
    ("steps_per_epoch", "Steps per epoch", |s| Some(s.facts.steps_per_epoch as f64)),
    ("step", "Completed steps of the run", |s| Some(s.step as f64)),
    ("epoch", "Epoch of the last step, from 0", |s| Some(s.last_step.as_ref()?.epoch as f64)),
    ("loss", "Loss of the last step over the global batch", |s| Some(s.last_step.as_ref()?.loss)),
    ("learning_rate", "Learning rate of the last step", |s| Some(s.last_step.as_ref()?.lr)),
    ("gradient_norm", "Norm of the last step's averaged gradient before clipping", |s| {
        Some(s.last_step.as_ref()?.gradient_norm)
    }),
    ("loss_scale", "Loss scale of the last step", |s| s.last_step.as_ref()?.loss_scale),
    (
        "samples_per_second",
        "Training samples per second over all ranks, from the time of this rank's last steps",
        |s| s.samples_per_s(),
    ),
    ("last_step_seconds", "Time of a step on this rank, mean of the last reported steps", |s| {
        Some(s.last_step.as_ref()?.times.total)
    }),
    ("last_data_wait_seconds", "Part of last_step_seconds spent waiting for data", |s| {
        Some(s.last_step.as_ref()?.times.data_wait)
    }),
    ("last_communication_seconds", "Part of last_step_seconds spent waiting in collectives", |s| {
        Some(s.last_step.as_ref()?.times.communication)
    }),
    ("last_epoch", "Last finished epoch, from 0; epoch_... refers to it, as in log.jsonl", |s| {
        epoch(s, |epoch| epoch.epoch as f64)
    }),
    ("epoch_loss", "Mean loss over the steps", |s| epoch(s, |epoch| epoch.train_loss)),
    ("epoch_validation_loss", "Mean loss over the validation batches", |s| s.last_epoch.as_ref()?.val_loss),
    ("epoch_samples_per_second", "Training samples per second over all ranks", |s| {
        epoch(s, |epoch| epoch.samples_per_s)
    }),
    ("epoch_step_seconds", "Mean time of a step, averaged over the ranks", |s| epoch(s, |epoch| epoch.step_s)),
    ("epoch_data_wait_seconds", "Time waiting for data in all steps, mean over the ranks", |s| {
        epoch(s, |epoch| epoch.data_wait_s)
    }),
    ("epoch_communication_seconds", "Time waiting in collectives in all steps, mean over the ranks", |s| {
        epoch(s, |epoch| epoch.comm_s)
    }),
    ("epoch_straggler_seconds", "Part of epoch_communication_seconds spent waiting for the slowest rank", |s| {
        epoch(s, |epoch| epoch.straggler_s)
    }),
    ("epoch_checkpoint_seconds", "Time that checkpoints blocked training, on rank 0", |s| {
        epoch(s, |epoch| epoch.checkpoint_s)
    }),
    ("epoch_seconds", "Time of the epoch including validation and checkpoint", |s| epoch(s, |epoch| epoch.epoch_s)),
    ("epoch_gradient_norm", "Mean norm of the averaged gradient before clipping", |s| {
        epoch(s, |epoch| epoch.gradient_norm)
    }),
    ("epoch_loss_scale", "Loss scale at the end of the epoch", |s| s.last_epoch.as_ref()?.loss_scale),
    ("epoch_skipped_steps", "Steps without an update", |s| epoch(s, |epoch| epoch.skipped_steps as f64)),
    ("ema_pseudo_dice", "Moving average of the mean pseudo Dice", |s| s.ema_pseudo_dice),
    ("best_ema_pseudo_dice", "Best value of ema_pseudo_dice so far", |s| s.best_ema_pseudo_dice),
];

const COUNTERS: [Counter; 8] = [
    ("steps", "Steps made by this process", |s| s.made.steps as f64),
    ("skipped_steps", "Steps without an update because a gradient was not finite", |s| s.made.skipped_steps as f64),
    ("step_seconds", "Time of all steps on this rank", |s| s.made.steps_s),
    ("data_wait_seconds", "Part of step_seconds spent waiting for data", |s| s.made.data_wait_s),
    ("communication_seconds", "Part of step_seconds spent waiting in collectives", |s| s.made.communication_s),
    ("checkpoint_seconds", "Time that steps waited for the checkpoint copy, on rank 0", |s| s.made.checkpoint_s),
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
        encoder.encode_descriptor("run", "Identity of the training run", None, MetricType::Info)?.encode_info(&run)?;
        self.encode_snapshot(&mut encoder)?;
        if let Some(bytes) = resident_memory() {
            gauge(&mut encoder, "resident_memory_bytes", "Resident memory of the process", bytes as f64)?;
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

/// Escapes a label value for the text format, which the encoder does not do.
pub fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Encodes the pseudo Dice of the classes that occurred in the labels or predictions.
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
        gauge(encoder, "gpu_memory_used_bytes", "Memory of the rank's GPU used by all processes", used as f64)?;
        gauge(encoder, "gpu_memory_total_bytes", "Total memory of the rank's GPU", all as f64)?;
    }
    match reading.utilization {
        Some(part) => gauge(encoder, "gpu_utilization_ratio", "Fraction of time in which the GPU was busy", part),
        None => Ok(()),
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// Returns the resident memory of this process in bytes.
fn resident_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}
