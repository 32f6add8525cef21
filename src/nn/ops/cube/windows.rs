//! On-device sliding windows: cuts windows out of an image and accumulates their logits.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{allocate, contiguous, elementwise};
use crate::ops::{SAMPLE_FIELDS, WindowPosition};

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
    image_y: usize,
    image_x: usize,
    z: usize,
    y: usize,
    x: usize,
    channels: usize,
) {
    let voxel = ABSOLUTE_POS;
    if voxel * channels >= windows.len() {
        terminate!();
    }
    let numbers = voxel / (z * y * x) * comptime!(SAMPLE_FIELDS);
    let bits = samples[numbers + 3] as u32;
    let k = samples[numbers] as usize + mirrored(voxel / (y * x) % z, z, bits, 0u32);
    let j = samples[numbers + 1] as usize + mirrored(voxel / x % y, y, bits, 1u32);
    let i = samples[numbers + 2] as usize + mirrored(voxel % x, x, bits, 2u32);
    let from = ((k * image_y + j) * image_x + i) * channels;
    for channel in 0..channels {
        windows[voxel * channels + channel] = image[from + channel];
    }
}

/// One unit per voxel of the window.
#[cube(launch)]
fn add_samples(
    sums: &mut Array<f32>,
    logits: &Array<f32>,
    samples: &Array<i32>,
    weights: &Array<f32>,
    image_y: usize,
    image_x: usize,
    z: usize,
    y: usize,
    x: usize,
    classes: usize,
    origin_z: usize,
    origin_y: usize,
    origin_x: usize,
    weights_z: usize,
    weights_y: usize,
    weights_x: usize,
    first: usize,
    number: usize,
    sample_weight: f32,
) {
    let voxel = ABSOLUTE_POS;
    if voxel >= z * y * x {
        terminate!();
    }
    let k = voxel / (y * x);
    let j = voxel / x % y;
    let i = voxel % x;
    let weight = weights[weights_z + k] * weights[weights_y + j] * weights[weights_x + i] * sample_weight;
    let to = (((origin_z + k) * image_y + origin_y + j) * image_x + origin_x + i) * classes;
    for class in 0..classes {
        let mut sum = 0.0f32;
        for sample in first..first + number {
            let bits = samples[sample * comptime!(SAMPLE_FIELDS) + 3] as u32;
            let row = (sample * z + mirrored(k, z, bits, 0u32)) * y + mirrored(j, y, bits, 1u32);
            sum += logits[(row * x + mirrored(i, x, bits, 2u32)) * classes + class];
        }
        sums[to + class] += weight * sum;
    }
}

/// See [`crate::ops::DeviceWindows::cut`].
pub fn cut<R: CubeRuntime>(image: &CubeTensor<R>, samples: &CubeTensor<R>, [z, y, x]: [usize; 3]) -> CubeTensor<R> {
    let [_, image_y, image_x, channels] = image.shape().dims();
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
        image_y,
        image_x,
        z,
        y,
        x,
        channels,
    );
    windows
}

/// See [`crate::ops::DeviceWindows::add`]; `sums` must be contiguous.
pub fn add<R: CubeRuntime>(
    sums: &CubeTensor<R>,
    logits: &CubeTensor<R>,
    samples: &CubeTensor<R>,
    weights: &CubeTensor<R>,
    position: WindowPosition,
    sample_weight: f32,
) {
    let [_, image_y, image_x, classes] = sums.shape().dims();
    let [_, z, y, x, _] = logits.shape().dims::<5>();
    let WindowPosition { origin, weights: along, samples: [first, number] } = position;
    let (count, dim) = elementwise(z * y * x);
    add_samples::launch::<R>(
        &sums.client,
        count,
        dim,
        sums.clone().into_array_arg(),
        contiguous(logits.clone()).into_array_arg(),
        contiguous(samples.clone()).into_array_arg(),
        weights.clone().into_array_arg(),
        image_y,
        image_x,
        z,
        y,
        x,
        classes,
        origin[0],
        origin[1],
        origin[2],
        along[0],
        along[1],
        along[2],
        first,
        number,
        sample_weight,
    );
}
