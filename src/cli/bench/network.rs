//! Benchmarks of a network: `nnunet-dist bench step`, `conv` and `memory`, with the flags they share.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use nnunet_comm::distributed::{CommError, Single};
use nnunet_data::dataset::DatasetJson;
use nnunet_data::work::WorkDir;
use nnunet_nn::Device;
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};
use nnunet_nn::model::UNetSpec;
use serde_json::json;

use crate::bench::{Peak, Report, StepBench, StepMemory, plain_network};
use crate::cli::plans::{self, PlansFlag};
use crate::cli::precision::PrecisionFlags;

/// Network from plans or from its parts; the default is the one that nnU-Net plans for MSD Hippocampus.
#[derive(Debug, Args)]
pub struct NetworkFlags {
    /// Work folder with the plans that define network, patch size and batch size.
    #[arg(short, long, value_name = "DIR", requires = "configuration")]
    work: Option<PathBuf>,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configuration of the plans in the work folder.
    #[arg(short, long, value_name = "NAME", requires = "work")]
    configuration: Option<String>,

    /// Patch size z,y,x; two numbers for a 2D network [default: 40,56,40 or the plans'].
    #[arg(long, value_name = "N,N,N", value_parser = extents)]
    patch: Option<[usize; 3]>,

    /// Samples per batch [default: 9 or the plans'].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,

    /// Input channels.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "work")]
    channels: usize,

    /// Number of classes, including background.
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "work")]
    classes: usize,

    /// Feature maps per stage.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "32,64,128,256", conflicts_with = "work")]
    features: Vec<usize>,

    #[command(flatten)]
    precision: PrecisionFlags,

    /// Recompute activations in the backward pass instead of keeping them.
    #[arg(long)]
    gradient_checkpointing: bool,

    /// Compute device.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(super) device: Device,
}

impl NetworkFlags {
    /// Builds the benchmark from the flags.
    ///
    /// # Errors
    /// Returns an error if the plans cannot be read or the device does not support the precision.
    pub(super) fn bench(&self) -> anyhow::Result<StepBench> {
        let precision = self.precision.resolve(self.device)?;
        let gradient_checkpointing = self.gradient_checkpointing;
        let batch_size = self.batch_size.map(|number| number as usize);
        if let (Some(work), Some(name)) = (&self.work, &self.configuration) {
            let work = self.plans.in_work(WorkDir::new(work));
            let configuration = plans::load(&work)?.configuration(name)?;
            let dataset = DatasetJson::load(&work.dataset_json())?;
            let shape = configuration.network_shape().with_context(|| format!("{}", work.plans().display()))?;
            let (channels, classes) = (configuration.num_input_channels(&dataset), dataset.num_segmentation_heads());
            return Ok(StepBench {
                network: UNetSpec { channels, classes, shape },
                patch: self.patch.unwrap_or(configuration.patch_size3()),
                batch_size: batch_size.unwrap_or(configuration.batch_size),
                precision,
                gradient_checkpointing,
            });
        }
        let patch = self.patch.unwrap_or([40, 56, 40]);
        let network = plain_network(patch, self.channels, self.classes, &self.features);
        let batch_size = batch_size.unwrap_or(9);
        Ok(StepBench { network, patch, batch_size, precision, gradient_checkpointing })
    }
}

/// Parses `z,y,x` or `y,x`; the latter has a z extent of 1.
fn extents(text: &str) -> Result<[usize; 3], String> {
    let extents: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    match extents.as_deref() {
        Ok(&[y, x]) if y > 0 && x > 0 => Ok([1, y, x]),
        Ok(&[z, y, x]) if z > 0 && y > 0 && x > 0 => Ok([z, y, x]),
        _ => Err("must be two or three numbers above 0, separated by commas".into()),
    }
}

/// MeasureStep a training step on one generated batch: forward, loss, backward, clipping, update.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench step
  nnunet-dist bench step --patch 64,64,64 --channels 4 --features 32,64,128,256,320,320 --batch-size 2 --profile
  nnunet-dist bench step -w hippocampus -c 3d_fullres --device cuda --amp")]
pub(super) struct Step {
    #[command(flatten)]
    network: NetworkFlags,

    /// Also measure each operation.
    #[arg(long)]
    profile: bool,
}

impl Step {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let (bench, device) = (self.network.bench()?, self.network.device);
        let precision = bench.precision;
        on_device(device, precision, &Single, MeasureStep { bench, rounds, profile: self.profile, device })?
    }
}

struct MeasureStep {
    bench: StepBench,
    rounds: usize,
    profile: bool,
    device: Device,
}

impl OnDevice for MeasureStep {
    type Output = anyhow::Result<Report>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let mut rows = self.bench.run::<B>(device.clone(), self.rounds)?;
        if self.profile {
            rows.extend(self.bench.profile::<B>(device.clone())?);
        }
        Ok(match self.device {
            Device::Cpu => Report::new("step", rows),
            Device::Cuda => Report::with_peak("step", rows, Peak::measure_gpu::<B::InnerBackend>(&device)),
        })
    }
}

/// MeasureConv each convolution layer of the network and each of its passes separately.
///
/// On a GPU the kernels come from the autotuning table: cuDNN's or, with --burn, the faster of cuDNN's and Burn's. The
/// choice of --burn is recorded for all later runs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench conv --patch 64,64,64 --batch-size 2
  nnunet-dist bench conv -w hippocampus -c 3d_fullres --device cuda --amp --burn")]
pub(super) struct Conv {
    #[command(flatten)]
    network: NetworkFlags,

    /// MeasureConv Burn's kernels, too.
    #[arg(long)]
    burn: bool,
}

impl Conv {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let (bench, device) = (self.network.bench()?, self.network.device);
        let precision = bench.precision;
        Ok(on_device(device, precision, &Single, MeasureConv { bench, rounds, burn: self.burn, device })?)
    }
}

struct MeasureConv {
    bench: StepBench,
    rounds: usize,
    burn: bool,
    device: Device,
}

impl OnDevice for MeasureConv {
    type Output = Report;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Report {
        let timings = self.bench.convolutions::<B::InnerBackend>(&device, self.rounds, self.burn);
        #[cfg(feature = "cuda")]
        timings.iter().for_each(|timing| timing.record_burn_timing(0));
        let rows = timings.into_iter().flat_map(|timing| [Some(timing.ours), timing.burn]).flatten().collect();
        match self.device {
            Device::Cpu => Report::new("conv", rows),
            Device::Cuda => Report::with_peak("conv", rows, Peak::measure_gpu::<B::InnerBackend>(&device)),
        }
    }
}

/// MeasureMemory the memory of training steps, next to the planner's estimate.
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
        let memory = on_device(device, bench.precision, &Single, MeasureMemory { bench: &bench, device })??;
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

struct MeasureMemory<'a> {
    bench: &'a StepBench,
    device: Device,
}

impl OnDevice for MeasureMemory<'_> {
    type Output = Result<StepMemory, CommError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        self.bench.memory::<B>(self.device, device)
    }
}
