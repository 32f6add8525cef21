//! Benchmark of the training step: time, memory, and time per operation.
//!
//! A step is forward, loss, backward, clipping and update on one generated batch in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use ndarray::{Array4, Array5};

use super::measure::memory_in_use;
use super::{Row, Timings, Work, measure};
use nnunet_comm::distributed::{CommError, Single};
use nnunet_data::plan::{NetworkShape, PLAIN_CONV_UNET, estimate_memory_gb};
use nnunet_nn::Device;
use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::loss::{self, SegmentationLoss, Target};
use nnunet_nn::model::{UNet, UNetSpec};
use nnunet_nn::ops::Precision;
use nnunet_nn::ops::profile::{self, OpStats, Operation};
use nnunet_nn::optim::{Optimizer, Sgd};
use nnunet_train::TrainStep;

const LEARNING_RATE: f64 = 0.01;
/// Steps that are queued before their metrics are read, as in training.
const QUEUED: usize = 10;

/// Network and batch of the benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBench {
    pub network: UNetSpec,
    /// Patch size `(z, y, x)`; z is 1 for a 2D network.
    pub patch: [usize; 3],
    /// Samples per batch.
    pub batch_size: usize,
    /// Precision of activations.
    pub precision: Precision,
    /// Whether activations within stages are recomputed in the backward pass.
    pub gradient_checkpointing: bool,
}

/// Memory of training steps, and the planner's estimate.
#[derive(Clone, Debug)]
pub struct StepMemory {
    /// Bytes in use on the device after some steps; a peak, because Burn's pool does not release memory. On the CPU,
    /// the peak of the process. `None` if the system does not report it.
    pub peak_bytes: Option<u64>,
    /// Bytes in use on the device before the steps.
    pub before_bytes: Option<u64>,
    pub planned_gb: f64,
    /// Times of the steps.
    pub steps: Vec<Row>,
}

/// nnU-Net's plain U-Net with two convolutions of kernel size 3 per stage; each stage except the first halves the
/// resolution.
///
/// `features` are the numbers of feature maps per stage; `classes` includes the background. A patch of z extent 1 gives
/// a 2D network.
pub fn plain_network(patch: [usize; 3], channels: usize, classes: usize, features: &[usize]) -> UNetSpec {
    let stages = features.len();
    let along_z = |value| if patch[0] == 1 { 1 } else { value };
    let strides = (0..stages).map(|stage| if stage == 0 { [1; 3] } else { [along_z(2), 2, 2] }).collect();
    let shape = NetworkShape {
        network: &PLAIN_CONV_UNET,
        features: features.to_vec(),
        kernels: vec![[along_z(3), 3, 3]; stages],
        strides,
        blocks_encoder: vec![2; stages],
        convs_decoder: vec![2; stages - 1],
        conv_bias: true,
        norm_eps: 1e-5,
    };
    UNetSpec { channels, classes, shape }
}

impl StepBench {
    /// Times `rounds` rounds after a warm-up. On devices with a queue, a round is several steps, waited for at its end
    /// as in training, and a second row excludes the transfer of the batch to the device.
    ///
    /// # Errors
    /// Never returns an error with a single process.
    pub fn run<B: ComputeBackend>(&self, device: B::Device, rounds: usize) -> Result<Vec<Row>, CommError> {
        let mut prepared = self.prepare::<B>(device);
        if !prepared.step.is_queued() {
            return Ok(vec![self.row("step", 1, measure(rounds, || prepared.step())?)]);
        }
        // Warm-up: selects convolution algorithms and allocates memory.
        prepared.steps(3)?;
        let whole = measure(rounds, || prepared.steps(QUEUED))?;
        let resident = measure(rounds, || prepared.resident_steps(QUEUED))?;
        Ok(vec![self.row("step", QUEUED, whole), self.row("step, batch on the device", QUEUED, resident)])
    }

    /// Row per step, from the seconds of `steps` steps.
    fn row(&self, name: &str, steps: usize, seconds: Timings) -> Row {
        let work =
            Work { items: self.batch_size as f64, flops: self.flops(), precision: self.precision, ..Work::default() };
        Row { name: name.into(), unit: "samples", work, seconds: seconds.divided_by(steps) }
    }

    /// Runs a few steps and measures their memory.
    ///
    /// # Errors
    /// Never returns an error with a single process.
    pub fn memory<B: ComputeBackend>(&self, kind: Device, device: B::Device) -> Result<StepMemory, CommError> {
        let before_bytes = memory_in_use(kind);
        let steps = self.run::<B>(device, 1)?;
        let Self { network, patch, batch_size, .. } = self;
        let planned_gb = estimate_memory_gb(&network.shape, *patch, network.classes, *batch_size);
        Ok(StepMemory { peak_bytes: memory_in_use(kind), before_bytes, planned_gb, steps })
    }

    /// One row per operation of a step, longest first, with the share of its time in oneDNN; one for the time between
    /// operations, and one for all oneDNN kernels.
    ///
    /// # Errors
    /// Never returns an error with a single process.
    pub fn profile<B: ComputeBackend>(&self, device: B::Device) -> Result<Vec<Row>, CommError> {
        let mut prepared = self.prepare::<B>(device);
        prepared.step()?;
        let began = std::time::Instant::now();
        let (result, entries) = profile::record(|| prepared.step());
        result?;
        Ok(self.rows(entries, began.elapsed()))
    }

    /// Floating-point operations of the convolutions of a step: three times those of the forward pass, by convention.
    pub fn flops(&self) -> f64 {
        3.0 * self.layers().iter().map(|(layer, count)| *count as f64 * layer.flops()).sum::<f64>()
    }

    fn rows(&self, entries: BTreeMap<Operation, OpStats>, total: Duration) -> Vec<Row> {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.time));
        let known: Duration = entries.iter().map(|(_, entry)| entry.time).sum();
        let in_library: Duration = entries.iter().map(|(_, entry)| entry.in_library).sum();
        let flops = entries.iter().map(|(_, entry)| entry.flops).sum();
        let row = |name: String, time: Duration, flops: f64| {
            let work = Work { items: self.batch_size as f64, flops, precision: self.precision, ..Work::default() };
            Row { name, unit: "samples", work, seconds: Timings::new(vec![time.as_secs_f64()]) }
        };
        let of_operation = |(operation, entry): (Operation, OpStats)| {
            let Operation { name, shape } = operation;
            let share = 100.0 * entry.in_library.as_secs_f64() / entry.time.as_secs_f64();
            let library = if share > 0.0 { format!(", {share:.0} % oneDNN") } else { String::new() };
            row(format!("{name} {shape} x{}{library}", entry.calls), entry.time, entry.flops)
        };
        let mut rows: Vec<_> = entries.into_iter().map(of_operation).collect();
        rows.push(row("between operations".into(), total.saturating_sub(known), 0.0));
        rows.push(row("oneDNN's kernels together".into(), in_library, flops));
        rows
    }

    fn prepare<B: ComputeBackend>(&self, device: B::Device) -> Prepared<B> {
        let network = UNet::new(self.network.clone(), 1, &device).with_precision(self.precision);
        let head_weights = loss::head_weights(network.heads(), true);
        let sgd = Sgd { momentum: 0.99, nesterov: true, weight_decay: 3e-5 };
        let loss = SegmentationLoss::new(Target::Classes, true, None);
        let step = TrainStep::new(network, Optimizer::new(sgd, Some(12.0)), loss, head_weights, device)
            .with_checkpointing(self.gradient_checkpointing);
        let [z, y, x] = self.patch;
        let value = |index: usize| ((index as f32) * 0.37).sin();
        let shape = (self.batch_size, self.network.channels, z, y, x);
        let mut index = 0;
        let images = Array5::from_shape_simple_fn(shape, || {
            index += 1;
            value(index)
        });
        let labels = Array4::from_shape_fn((self.batch_size, z, y, x), |(n, k, j, i)| {
            ((n + k / 3 + j / 5 + i / 7) % self.network.classes) as i16
        });
        let targets = step.targets(labels.view());
        Prepared { step, images, targets }
    }
}

struct Prepared<B: ComputeBackend> {
    step: TrainStep<B>,
    images: Array5<f32>,
    targets: Vec<Array4<i16>>,
}

impl<B: ComputeBackend> Prepared<B> {
    fn step(&mut self) -> Result<(), CommError> {
        self.step.run(self.images.view(), &self.targets, LEARNING_RATE, &Single)?;
        Ok(())
    }

    /// Queues steps and waits for their metrics.
    fn steps(&mut self, number: usize) -> Result<(), CommError> {
        let upload = self.step.uploader();
        for _ in 0..number {
            self.step.add(upload.batch_with(self.images.view(), self.targets.clone()), &Single)?;
            self.step.update(LEARNING_RATE)?;
        }
        self.step.metrics(&Single).map(drop)
    }

    /// Same, with a batch that is already on the device.
    fn resident_steps(&mut self, number: usize) -> Result<(), CommError> {
        let batch = self.step.uploader().batch_with(self.images.view(), self.targets.clone());
        for _ in 0..number {
            self.step.add(batch.clone(), &Single)?;
            self.step.update(LEARNING_RATE)?;
        }
        self.step.metrics(&Single).map(drop)
    }
}
