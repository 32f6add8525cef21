//! `nnunet-dist bench memory`

use clap::Args;
use serde_json::json;

use super::network::NetworkFlags;
use crate::bench::{StepBench, StepMemory};
use nnunet_comm::distributed::{CommError, Single};
use nnunet_nn::Device;
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};

/// Measure the memory of training steps, next to the planner's estimate.
///
/// On a GPU: all memory in use after some steps, including that of the driver and the libraries; no other process may
/// use the GPU. On the CPU: the peak memory of the process.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench memory -w hippocampus -c 3d_fullres
  nnunet-dist bench memory --patch 128,128,128 --batch-size 2 --features 32,64,128,256,320,320 --device cuda --amp")]
pub(super) struct Memory {
    #[command(flatten)]
    network: NetworkFlags,
}

impl Memory {
    /// Runs the benchmark and returns the line to print.
    pub(super) fn run(&self, as_json: bool) -> anyhow::Result<String> {
        let (bench, device) = (self.network.bench()?, self.network.device);
        let memory = on_device(device, bench.precision, &Single, Measure { bench: &bench, device })??;
        Ok(if as_json { json(&bench, &memory) } else { line(&bench, &memory) })
    }
}

fn json(bench: &StepBench, memory: &StepMemory) -> String {
    let StepBench { patch, batch_size, precision, gradient_checkpointing, .. } = bench;
    let StepMemory { peak_bytes, before_bytes, planned_gb, steps } = memory;
    let seconds = steps.first().map(|row| row.seconds.median());
    json!({
        "bench": "memory",
        "patch": patch,
        "batch_size": batch_size,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing,
        "peak_bytes": peak_bytes,
        "before_bytes": before_bytes,
        "planned_gb": planned_gb,
        "seconds_per_step": seconds,
    })
    .to_string()
}

fn line(bench: &StepBench, memory: &StepMemory) -> String {
    let gigabytes =
        |bytes: Option<u64>| bytes.map_or("unknown".into(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
    let [z, y, x] = bench.patch;
    let checkpointing = if bench.gradient_checkpointing { ", gradient checkpointing" } else { "" };
    format!(
        "patch {z}x{y}x{x}, batch {}, {:?}{checkpointing}: peak {}, before {}; the planner estimates {:.2} GB",
        bench.batch_size,
        bench.precision,
        gigabytes(memory.peak_bytes),
        gigabytes(memory.before_bytes),
        memory.planned_gb,
    )
}

struct Measure<'a> {
    bench: &'a StepBench,
    device: Device,
}

impl OnDevice for Measure<'_> {
    type Output = Result<StepMemory, CommError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        self.bench.memory::<B>(self.device, device)
    }
}
