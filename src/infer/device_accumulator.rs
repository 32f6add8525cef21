//! Sliding-window inference with image and accumulated logits on the device.

use std::time::Instant;

use burn::tensor::{Int, Tensor, TensorData, TensorPrimitive, ops::FloatTensor};
use ndarray::{ArrayView3, ArrayView4, CowArray, Ix4, s};

use super::accumulator::Mirroring;
use super::networks::Ensemble;
use super::sliding_window::{ForwardCall, InferenceTimings, SlidingWindow};
use super::windows::Grid;
use nnunet_nn::ops::{DeviceWindows, NnOps, SAMPLE_FIELDS, WindowAccumulateArgs, WindowPosition};

/// Bytes of logits copied to the host at a time.
const READ_BYTES: usize = 64 << 20;

impl SlidingWindow {
    /// Returns the device memory in bytes for an image `(z, y, x)` and its accumulated logits in f32.
    pub(super) fn device_bytes(&self, image: [usize; 3], channels: usize, classes: usize) -> u64 {
        let padded = (0..3).map(|axis| image[axis].max(self.window[axis]) as u64).product::<u64>();
        4 * padded * (channels + classes) as u64
    }

    /// Like [`SlidingWindow::run`], but on the device; all planes are passed to `take` at the end.
    pub(super) fn run_on_device<B: NnOps>(
        &self,
        (networks, device, ops): (&Ensemble<B>, &B::Device, &DeviceWindows<B>),
        image: ArrayView4<f32>,
        batch_size: usize,
        mut take: impl FnMut(usize, ArrayView3<f32>),
    ) -> InferenceTimings {
        let began = Instant::now();
        let classes = networks.spec().classes;
        let (channels, z, y, x) = image.dim();
        let (image, [z0, y0, x0]) = self.pad(image);
        let (_, pz, py, px) = image.dim();
        let grid = Grid::new([pz, py, px], self.window, self.step, self.blend);
        let mirrorings = self.mirrorings();
        let sample_weight = 1.0 / mirrorings.len() as f32;
        let image = upload::<B>(&image, channels, device);
        let accumulator = Tensor::<B, 4>::zeros([pz, py, px, classes], device).into_primitive().tensor();
        let (weights, weight_begins) = all_weights::<B>(&grid, device);
        for call in self.calls(&grid, &mirrorings, batch_size) {
            let samples = numbers::<B>(&call, &grid, device).into_primitive();
            let input = (ops.cut)(&image, &samples, self.window);
            let logits = networks.logits(Tensor::from_primitive(TensorPrimitive::Float(input)));
            let logits = logits.into_primitive().tensor();
            for (number, window) in call.windows.iter().enumerate() {
                let along = |axis: usize| weight_begins[axis] + window[axis] * self.window[axis];
                let position = WindowPosition {
                    origin: grid.origin(*window),
                    weights: [along(0), along(1), along(2)],
                    samples: [number * call.mirrorings.len(), call.mirrorings.len()],
                };
                let terms = WindowAccumulateArgs {
                    samples: samples.clone(),
                    weights: weights.clone(),
                    position,
                    sample_weight,
                };
                (ops.add)(&accumulator, &logits, terms);
            }
        }
        let windows = grid.windows().count();
        // Errors are reported when the accumulator is read.
        let _ = B::sync(device);
        let network_time = began.elapsed();
        let reading = Instant::now();
        let mut export = std::time::Duration::ZERO;
        let step = (READ_BYTES / (4 * py * px * classes)).max(1);
        for first in (z0..z0 + z).step_by(step) {
            let planes = first..(first + step).min(z0 + z);
            let values = read::<B>(&accumulator, [planes.clone(), y0..y0 + y, x0..x0 + x]);
            let exporting = Instant::now();
            for (plane, values) in planes.zip(values.chunks_exact(y * x * classes)) {
                let logits = ArrayView3::from_shape((y, x, classes), values).expect("a plane has its extent");
                take(plane - z0, logits);
            }
            export += exporting.elapsed();
        }
        InferenceTimings { windows, network: network_time, accumulate: reading.elapsed() - export, export }
    }
}

/// Uploads an image `(channel, z, y, x)` as `(z, y, x, channel)`.
fn upload<B: NnOps>(image: &CowArray<f32, Ix4>, channels: usize, device: &B::Device) -> FloatTensor<B> {
    let (_, z, y, x) = image.dim();
    let values: Vec<f32> = image.slice(s![.., .., .., ..]).permuted_axes([1, 2, 3, 0]).iter().copied().collect();
    let mut data = TensorData::new(values, [z, y, x, channels]);
    B::staging(std::iter::once(&mut data), device);
    Tensor::<B, 4>::from_data(data, device).into_primitive().tensor()
}

/// Returns the weights of all windows along z, then y, then x, and the offset of each axis.
fn all_weights<B: NnOps>(grid: &Grid, device: &B::Device) -> (FloatTensor<B>, [usize; 3]) {
    let mut begins = [0; 3];
    let mut weights: Vec<f32> = Vec::new();
    for (axis, begin) in grid.axes.iter().zip(&mut begins) {
        *begin = weights.len();
        weights.extend(axis.weights.iter().flatten());
    }
    (Tensor::<B, 1>::from_data(weights.as_slice(), device).into_primitive().tensor(), begins)
}

/// Returns one row of numbers per sample of a call; the samples of a window are consecutive.
fn numbers<B: NnOps>(call: &ForwardCall, grid: &Grid, device: &B::Device) -> Tensor<B, 2, Int> {
    let bits = |mirroring: Mirroring| (0..3).map(|axis| i32::from(mirroring[axis]) << axis).sum::<i32>();
    let numbers = call.samples().flat_map(|(window, mirroring)| {
        let [z, y, x] = grid.origin(window).map(|first| first as i32);
        [z, y, x, bits(mirroring)]
    });
    Tensor::from_data(TensorData::new(numbers.collect::<Vec<_>>(), [call.len(), SAMPLE_FIELDS]), device)
}

/// Copies a part of the accumulator to the host.
fn read<B: NnOps>(accumulator: &FloatTensor<B>, [z, y, x]: [std::ops::Range<usize>; 3]) -> Vec<f32> {
    let accumulator = Tensor::<B, 4>::from_primitive(TensorPrimitive::Float(accumulator.clone()));
    accumulator.slice([z, y, x]).into_data().convert::<f32>().into_vec().expect("converted to f32")
}
