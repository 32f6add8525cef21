//! Metrics of a rank, recorded from its state.

use std::fs;

use metrics::{counter, describe_counter, describe_gauge, gauge};

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

/// A value that may rise and fall: name, help, value. It is omitted while the value is unknown.
type Gauge = (&'static str, &'static str, fn(&Snapshot) -> Option<f64>);
/// A number that only grows during the lifetime of the process.
type Counter = (&'static str, &'static str, fn(&Snapshot) -> u64);
/// A time in seconds that only grows during the lifetime of the process. The facade's counters are integers, so these are
/// exported as gauges.
type Seconds = (&'static str, &'static str, fn(&Snapshot) -> f64);

const GAUGES: [Gauge; 28] = [
    ("onednn", "1 if oneDNN computes convolutions on the CPU, 0 if it is missing", |_| {
        Some(f64::from(u8::from(nnunet_nn::ops::cpu::onednn::library().is_some())))
    }),
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

const COUNTERS: [Counter; 4] = [
    ("steps_total", "Steps made by this process", |s| s.made.steps),
    ("skipped_steps_total", "Steps without an update because a gradient was not finite", |s| s.made.skipped_steps),
    ("rollbacks_total", "Returns of the run to an earlier checkpoint", |s| s.rollbacks),
    ("restarts_total", "Attempts of nnunet-launch before this one", |s| s.facts.restarts),
];

const SECONDS: [Seconds; 4] = [
    ("step_seconds_total", "Time of all steps on this rank", |s| s.made.steps_s),
    ("data_wait_seconds_total", "Part of step_seconds_total spent waiting for data", |s| s.made.data_wait_s),
    ("communication_seconds_total", "Part of step_seconds_total spent waiting in collectives", |s| {
        s.made.communication_s
    }),
    ("checkpoint_seconds_total", "Time that steps waited for the checkpoint copy, on rank 0", |s| s.made.checkpoint_s),
];

fn epoch(snapshot: &Snapshot, value: fn(&EpochRecord) -> f64) -> Option<f64> {
    snapshot.last_epoch.as_ref().map(value)
}

/// Help of the metrics that are not in the tables.
const OTHER_GAUGES: [(&str, &str); 6] = [
    ("run_info", "Identity of the training run"),
    ("pseudo_dice", "Dice over all voxels of the last epoch's validation patches; NaN if the class did not occur"),
    ("resident_memory_bytes", "Resident memory of the process"),
    ("gpu_memory_used_bytes", "Memory of the rank's GPU used by all processes"),
    ("gpu_memory_total_bytes", "Total memory of the rank's GPU"),
    ("gpu_utilization_ratio", "Fraction of time in which the GPU was busy"),
];

/// Prefix of all metric names.
pub const PREFIX: &str = "nnunet_train_";

fn full(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Records the help of every metric, and the `labels` that identify the run.
pub fn describe(labels: &[(&'static str, String)]) {
    let gauges = GAUGES.iter().map(|(name, help, _)| (*name, *help));
    let seconds = SECONDS.iter().map(|(name, help, _)| (*name, *help));
    for (name, help) in gauges.chain(seconds).chain(OTHER_GAUGES) {
        describe_gauge!(full(name), help);
    }
    for (name, help, _) in COUNTERS {
        describe_counter!(full(name), help);
    }
    gauge!(full("run_info"), labels).set(1.0);
}

/// Records the state of a run. A value that is not known yet has no sample.
pub fn record(snapshot: &Snapshot) {
    for (name, _, value) in GAUGES {
        if let Some(value) = value(snapshot) {
            gauge!(full(name)).set(value);
        }
    }
    for (name, _, value) in SECONDS {
        gauge!(full(name)).set(value(snapshot));
    }
    for (name, _, value) in COUNTERS {
        counter!(full(name)).absolute(value(snapshot));
    }
    let values = snapshot.last_epoch.iter().flat_map(|epoch| &epoch.pseudo_dice);
    for (class, value) in snapshot.facts.classes.iter().zip(values) {
        gauge!(full("pseudo_dice"), "class" => class.clone()).set(value.unwrap_or(f64::NAN));
    }
}

/// Records the measurements of the process and its GPU.
pub fn record_machine(gpu: Option<GpuReading>) {
    if let Some(bytes) = resident_memory() {
        gauge!(full("resident_memory_bytes")).set(bytes as f64);
    }
    let Some(gpu) = gpu else { return };
    if let Some([used, total]) = gpu.memory {
        gauge!(full("gpu_memory_used_bytes")).set(used as f64);
        gauge!(full("gpu_memory_total_bytes")).set(total as f64);
    }
    if let Some(utilization) = gpu.utilization {
        gauge!(full("gpu_utilization_ratio")).set(utilization);
    }
}

/// Returns the resident memory of this process in bytes.
fn resident_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}
