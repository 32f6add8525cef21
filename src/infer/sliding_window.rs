//! The network moved over an image.

use ndarray::{Array4, ArrayView4, ArrayViewMut4, Axis, CowArray, Ix4, s};
use rayon::prelude::*;

use super::gaussian::Blend;
use super::steps::window_steps;
use crate::model::{UNet, batch_tensor};
use crate::ops::NnOps;

/// How the network is moved over an image (nnU-Net v2, `predict_sliding_window_return_logits`).
#[derive(Clone, Debug, PartialEq)]
pub struct SlidingWindow {
    /// Extent of the window, `(z, y, x)`: the patch size of training.
    pub window: [usize; 3],
    /// Largest distance of neighbouring windows as a part of the window; nnU-Net's is 0.5.
    pub step: f64,
    pub blend: Blend,
    /// Every subset of these axes is mirrored, and the results averaged (test-time augmentation); may be empty.
    pub mirror_axes: Vec<usize>,
}

impl SlidingWindow {
    /// Logits `(class, z, y, x)` of an image `(channel, z, y, x)`.
    ///
    /// Memory: one accumulator of classes times voxels. The weights need none, since the windows form a grid: their sum
    /// at a voxel is the product of one sum per axis.
    pub fn logits<B: NnOps>(&self, network: &UNet<B>, image: ArrayView4<f32>, device: &B::Device) -> Array4<f32> {
        let (_, z, y, x) = image.dim();
        let (image, inner) = self.pad(image);
        let (_, pz, py, px) = image.dim();
        let steps = window_steps([pz, py, px], self.window, self.step);
        let profiles = self.window.map(|extent| self.blend.profile(extent));
        let mut sums = Array4::<f32>::zeros((pz, py, px, network.spec().classes));
        let [wz, wy, wx] = self.window;
        for &k in &steps[0] {
            for &j in &steps[1] {
                for &i in &steps[2] {
                    let patch = image.slice(s![.., k..k + wz, j..j + wy, i..i + wx]);
                    let mut target = sums.slice_mut(s![k..k + wz, j..j + wy, i..i + wx, ..]);
                    self.add_window(network, patch, &mut target, &profiles, device);
                }
            }
        }
        divide(&mut sums, &steps, &profiles, self.mirrorings().len() as f32);
        let sums = sums.slice_move(s![inner[0]..inner[0] + z, inner[1]..inner[1] + y, inner[2]..inner[2] + x, ..]);
        sums.permuted_axes([3, 0, 1, 2])
    }

    /// All subsets of the axes to mirror, the empty one first.
    fn mirrorings(&self) -> Vec<Vec<usize>> {
        let subsets = 0..1usize << self.mirror_axes.len();
        let members = |subset: usize| {
            let chosen = self.mirror_axes.iter().enumerate().filter(move |(bit, _)| subset >> bit & 1 == 1);
            chosen.map(|(_, axis)| *axis).collect()
        };
        subsets.map(members).collect()
    }

    /// Zeros around an image smaller than the window, and where the image then begins (`pad_nd_image`).
    fn pad<'a>(&self, image: ArrayView4<'a, f32>) -> (CowArray<'a, f32, Ix4>, [usize; 3]) {
        let (channels, z, y, x) = image.dim();
        let extent = [z, y, x];
        let padded: [usize; 3] = std::array::from_fn(|axis| extent[axis].max(self.window[axis]));
        if padded == extent {
            return (image.into(), [0; 3]);
        }
        let first: [usize; 3] = std::array::from_fn(|axis| (padded[axis] - extent[axis]) / 2);
        let mut larger = Array4::zeros((channels, padded[0], padded[1], padded[2]));
        let inner = s![.., first[0]..first[0] + z, first[1]..first[1] + y, first[2]..first[2] + x];
        larger.slice_mut(inner).assign(&image);
        (larger.into(), first)
    }

    /// Adds the weighted logits of all mirrorings of one window to `target`, `(z, y, x, class)`.
    fn add_window<B: NnOps>(
        &self,
        network: &UNet<B>,
        patch: ArrayView4<f32>,
        target: &mut ArrayViewMut4<f32>,
        profiles: &[Vec<f32>; 3],
        device: &B::Device,
    ) {
        for axes in self.mirrorings() {
            let mut mirrored = patch.view();
            axes.iter().for_each(|axis| mirrored.invert_axis(Axis(axis + 1)));
            let mut logits = forward(network, mirrored, device);
            // Rows along x stay as they are, to be read from either end.
            axes.iter().filter(|axis| **axis < 2).for_each(|axis| logits.invert_axis(Axis(*axis)));
            let is_reversed = axes.contains(&2);
            let slices = target.axis_iter_mut(Axis(0)).into_par_iter().zip(logits.axis_iter(Axis(0)).into_par_iter());
            slices.zip(&profiles[0]).for_each(|((mut target, logits), wz)| {
                for ((mut target, logits), wy) in target.outer_iter_mut().zip(logits.outer_iter()).zip(&profiles[1]) {
                    let target = target.as_slice_mut().expect("a row of the accumulator is contiguous");
                    let logits = logits.to_slice().expect("a row of logits is contiguous");
                    add_row(target, logits, is_reversed, wz * wy, &profiles[2]);
                }
            });
        }
    }
}

/// Logits `(z, y, x, class)` of a patch `(channel, z, y, x)`.
fn forward<B: NnOps>(network: &UNet<B>, patch: ArrayView4<f32>, device: &B::Device) -> Array4<f32> {
    let logits = network.forward(batch_tensor(patch.insert_axis(Axis(0)), device), 1).remove(0);
    let [_, z, y, x, classes] = logits.dims();
    let values = logits.into_data().convert::<f32>().into_vec().expect("converted to f32");
    Array4::from_shape_vec((z, y, x, classes), values).expect("as many values as the tensor has")
}

/// `target += weight * weights[x] * logits` for a row of voxels.
fn add_row(target: &mut [f32], logits: &[f32], is_reversed: bool, weight: f32, weights: &[f32]) {
    let classes = logits.len() / weights.len();
    let add = |((target, logits), x): ((&mut [f32], &[f32]), &f32)| {
        target.iter_mut().zip(logits).for_each(|(target, logit)| *target += weight * x * logit);
    };
    let target = target.chunks_exact_mut(classes);
    match is_reversed {
        true => target.zip(logits.chunks_exact(classes).rev()).zip(weights).for_each(add),
        false => target.zip(logits.chunks_exact(classes)).zip(weights).for_each(add),
    }
}

/// Divides the sums `(z, y, x, class)` by the weights that went into them.
fn divide(sums: &mut Array4<f32>, steps: &[Vec<usize>; 3], profiles: &[Vec<f32>; 3], mirrorings: f32) {
    let (z, y, x, classes) = sums.dim();
    let totals: [Vec<f32>; 3] = std::array::from_fn(|axis| {
        let mut total = vec![0.0; [z, y, x][axis]];
        for &first in &steps[axis] {
            total[first..].iter_mut().zip(&profiles[axis]).for_each(|(total, weight)| *total += weight);
        }
        total
    });
    sums.axis_iter_mut(Axis(0)).into_par_iter().zip(&totals[0]).for_each(|(mut slice, wz)| {
        for (mut row, wy) in slice.outer_iter_mut().zip(&totals[1]) {
            let row = row.as_slice_mut().expect("a row of the accumulator is contiguous");
            for (voxel, wx) in row.chunks_exact_mut(classes).zip(&totals[2]) {
                let scale = 1.0 / (mirrorings * wz * wy * wx);
                voxel.iter_mut().for_each(|logit| *logit *= scale);
            }
        }
    });
}
