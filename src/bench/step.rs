//! The training step: forward, loss, backward, clipping and update on one generated batch that stays in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use ndarray::{Array4, Array5};

use super::{Row, Timings, Work, measure};
use crate::backend::ComputeBackend;
use crate::dist::{CommError, Single};
use crate::loss::{self, SegmentationLoss, Target};
use crate::model::{UNet, UNetSpec};
use crate::ops::Precision;
use crate::ops::profile::{self, Entry, Operation};
use crate::optim::{Optimizer, Sgd};
use crate::plan::NetworkShape;
use crate::train::TrainStep;

/// Network and batch.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBench {
    /// `(z, y, x)`; z is 1 for a 2D network.
    pub patch: [usize; 3],
    /// Samples of a batch.
    pub batch_size: usize,
    /// Input channels.
    pub channels: usize,
    /// Output classes, background included.
    pub classes: usize,
    /// Feature maps of each stage; each stage but the first halves the resolution.
    pub features: Vec<usize>,
    /// Of activations.
    pub precision: Precision,
}

impl StepBench {
    /// The network.
    pub fn spec(&self) -> UNetSpec {
        let stages = self.features.len();
        let flat = self.patch[0] == 1;
        let along_z = |value| if flat { 1 } else { value };
        let strides = (0..stages).map(|stage| if stage == 0 { [1; 3] } else { [along_z(2), 2, 2] }).collect();
        let shape = NetworkShape {
            features: self.features.clone(),
            kernels: vec![[along_z(3), 3, 3]; stages],
            strides,
            convs_encoder: vec![2; stages],
            convs_decoder: vec![2; stages - 1],
            conv_bias: true,
            norm_eps: 1e-5,
        };
        UNetSpec { channels: self.channels, classes: self.classes, shape }
    }

    /// Times steps; `rounds` of them count.
    ///
    /// # Errors
    /// None where there is one process.
    pub fn run<B: ComputeBackend>(&self, device: B::Device, rounds: usize) -> Result<Row, CommError> {
        let mut prepared = self.prepare::<B>(device);
        let seconds = measure(rounds, || prepared.step())?;
        let work =
            Work { items: self.batch_size as f64, flops: self.flops(), precision: self.precision, ..Work::default() };
        Ok(Row { name: "step".into(), unit: "samples", work, seconds })
    }

    /// A row for each operation of one step, the longest first, with the part of its time that oneDNN's kernel took; one for
    /// what lies between them, and one for the kernels together.
    ///
    /// # Errors
    /// None where there is one process.
    pub fn profile<B: ComputeBackend>(&self, device: B::Device) -> Result<Vec<Row>, CommError> {
        let mut prepared = self.prepare::<B>(device);
        prepared.step()?;
        let began = std::time::Instant::now();
        let (result, entries) = profile::record(|| prepared.step());
        result?;
        Ok(self.rows(entries, began.elapsed()))
    }

    /// Of a step: three times those of the forward pass, as is customary; convolutions only.
    pub fn flops(&self) -> f64 {
        let spec = self.spec();
        let mut flops = 0.0;
        let mut extent = self.patch;
        let mut channels = self.channels;
        let volume = |extent: [usize; 3]| extent.iter().product::<usize>() as f64;
        let kernel = |stage: usize| volume(spec.shape.kernels[stage]);
        let mut extents = Vec::new();
        for (stage, &features) in self.features.iter().enumerate() {
            extent = std::array::from_fn(|axis| extent[axis].div_ceil(spec.shape.strides[stage][axis]));
            extents.push(extent);
            flops += volume(extent) * kernel(stage) * (channels * features + features * features) as f64;
            channels = features;
        }
        for stage in (0..self.features.len() - 1).rev() {
            let (above, features) = (self.features[stage + 1], self.features[stage]);
            flops += volume(extents[stage]) * (above * features) as f64;
            flops += volume(extents[stage]) * kernel(stage) * (3 * features * features) as f64;
            flops += volume(extents[stage]) * (features * self.classes) as f64;
        }
        3.0 * 2.0 * flops * self.batch_size as f64
    }

    fn rows(&self, entries: BTreeMap<Operation, Entry>, total: Duration) -> Vec<Row> {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.time));
        let known: Duration = entries.iter().map(|(_, entry)| entry.time).sum();
        let in_library: Duration = entries.iter().map(|(_, entry)| entry.in_library).sum();
        let flops = entries.iter().map(|(_, entry)| entry.flops).sum();
        let row = |name: String, time: Duration, flops: f64| {
            let work = Work { items: self.batch_size as f64, flops, precision: self.precision, ..Work::default() };
            Row { name, unit: "samples", work, seconds: Timings::new(vec![time.as_secs_f64()]) }
        };
        let of_operation = |(operation, entry): (Operation, Entry)| {
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
        let network = UNet::new(self.spec(), 1, &device).with_precision(self.precision);
        let head_weights = loss::weights(network.heads());
        let sgd = Sgd { momentum: 0.99, nesterov: true, weight_decay: 3e-5 };
        let loss = SegmentationLoss::new(Target::Classes, true, None);
        let step = TrainStep::new(network, Optimizer::new(sgd, Some(12.0)), loss, head_weights, device);
        let [z, y, x] = self.patch;
        let value = |index: usize| ((index as f32) * 0.37).sin();
        let shape = (self.batch_size, self.channels, z, y, x);
        let mut index = 0;
        let images = Array5::from_shape_simple_fn(shape, || {
            index += 1;
            value(index)
        });
        let labels = Array4::from_shape_fn((self.batch_size, z, y, x), |(n, k, j, i)| {
            ((n + k / 3 + j / 5 + i / 7) % self.classes) as i16
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
        self.step.run(self.images.view(), &self.targets, 0.01, &Single)?;
        Ok(())
    }
}
