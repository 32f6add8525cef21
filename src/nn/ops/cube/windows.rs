//! On-device sliding windows: cuts windows out of an image and accumulates their logits.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::runtime::{Zyx, allocate, contiguous, elementwise, zyx};
use crate::ops::{SAMPLE_FIELDS, WindowAccumulateArgs, WindowPosition};

/// Returns a position, mirrored if the bit of the axis is set.
#[cube]
fn mirrored(position: usize, extent: usize, bits: u32, #[comptime] axis: u32) -> usize {
    select((bits >> comptime!(axis)) & 1u32 == 1u32, extent - 1 - position, position)
}

/// One unit per voxel of a sample.
#[cube(launch)]
fn cut_samples(
    image: &Array<f32>,
    samples: &Array<i32>,
    windows: &mut Array<f32>,
    image_extent: Zyx,
    window: Zyx,
    channels: usize,
) {
    let voxel = ABSOLUTE_POS;
    if voxel * channels >= windows.len() {
        terminate!();
    }
    let sample = voxel / (window.z * window.y * window.x) * comptime!(SAMPLE_FIELDS);
    let bits = samples[sample + 3] as u32;
    let k = samples[sample] as usize + mirrored(voxel / (window.y * window.x) % window.z, window.z, bits, 0u32);
    let j = samples[sample + 1] as usize + mirrored(voxel / window.x % window.y, window.y, bits, 1u32);
    let i = samples[sample + 2] as usize + mirrored(voxel % window.x, window.x, bits, 2u32);
    let from = ((k * image_extent.y + j) * image_extent.x + i) * channels;
    for channel in 0..channels {
        windows[voxel * channels + channel] = image[from + channel];
    }
}

/// Position of a window in the sums, its weights, and its samples in a call.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct WindowGeometry {
    image: Zyx,
    extent: Zyx,
    /// First voxel in the image.
    origin: Zyx,
    /// Start of the weights along each axis.
    weights: Zyx,
    first_sample: usize,
    sample_count: usize,
}

/// One unit per voxel of the window.
#[cube(launch)]
fn add_samples(
    sums: &mut Array<f32>,
    logits: &Array<f32>,
    samples: &Array<i32>,
    weights: &Array<f32>,
    window: WindowGeometry,
    classes: usize,
    sample_weight: f32,
) {
    let voxel = ABSOLUTE_POS;
    let extent = window.extent;
    if voxel >= extent.z * extent.y * extent.x {
        terminate!();
    }
    let k = voxel / (extent.y * extent.x);
    let j = voxel / extent.x % extent.y;
    let i = voxel % extent.x;
    let along_z = weights[window.weights.z + k];
    let along_y = weights[window.weights.y + j];
    let along_x = weights[window.weights.x + i];
    let weight = along_z * along_y * along_x * sample_weight;
    let row = (window.origin.z + k) * window.image.y + window.origin.y + j;
    let to = (row * window.image.x + window.origin.x + i) * classes;
    for class in 0..classes {
        let mut sum = 0.0f32;
        for sample in window.first_sample..window.first_sample + window.sample_count {
            let bits = samples[sample * comptime!(SAMPLE_FIELDS) + 3] as u32;
            let plane = sample * extent.z + mirrored(k, extent.z, bits, 0u32);
            let row = plane * extent.y + mirrored(j, extent.y, bits, 1u32);
            sum += logits[(row * extent.x + mirrored(i, extent.x, bits, 2u32)) * classes + class];
        }
        sums[to + class] += weight * sum;
    }
}

/// See [`crate::ops::DeviceWindows::cut`].
pub fn cut<R: CubeRuntime>(image: &CubeTensor<R>, samples: &CubeTensor<R>, window: [usize; 3]) -> CubeTensor<R> {
    let [image_z, image_y, image_x, channels] = image.shape().dims();
    let [z, y, x] = window;
    let number = samples.shape()[0];
    let windows = allocate(image, [number, z, y, x, channels], DType::F32);
    let (count, dim) = elementwise(number * z * y * x);
    cut_samples::launch::<R>(
        &image.client,
        count,
        dim,
        contiguous(image.clone()).into_array_arg(),
        contiguous(samples.clone()).into_array_arg(),
        windows.clone().into_array_arg(),
        zyx([image_z, image_y, image_x]),
        zyx(window),
        channels,
    );
    windows
}

/// See [`crate::ops::DeviceWindows::add`]; `sums` must be contiguous.
pub fn add<R: CubeRuntime, BT: BoolElement>(
    sums: &CubeTensor<R>,
    logits: &CubeTensor<R>,
    args: WindowAccumulateArgs<CubeBackend<R, f32, i32, BT>>,
) {
    let [image_z, image_y, image_x, classes] = sums.shape().dims();
    let [_, z, y, x, _] = logits.shape().dims::<5>();
    let WindowAccumulateArgs { samples, weights, position, sample_weight } = args;
    let WindowPosition { origin, weights: weight_starts, samples: [first, number] } = position;
    let (count, dim) = elementwise(z * y * x);
    add_samples::launch::<R>(
        &sums.client,
        count,
        dim,
        sums.clone().into_array_arg(),
        contiguous(logits.clone()).into_array_arg(),
        contiguous(samples).into_array_arg(),
        weights.into_array_arg(),
        WindowGeometryLaunch::new(
            zyx([image_z, image_y, image_x]),
            zyx([z, y, x]),
            zyx(origin),
            zyx(weight_starts),
            first,
            number,
        ),
        classes,
        sample_weight,
    );
}
