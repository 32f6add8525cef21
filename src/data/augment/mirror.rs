//! Mirroring.

use super::distributions::chance;
use super::voxels::{channels_mut, label_maps_mut, shape};
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Mirrors data and labels along each allowed axis with probability 0.5 (batchgeneratorsv2 `MirrorTransform`).
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Axes to mirror: 0 = z, 1 = y, 2 = x.
    pub axes: Vec<usize>,
}

impl Mirror {
    /// Changes data and labels in place, in one pass for all axes.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        let mut flips = [false; 3];
        for &axis in &self.axes {
            flips[axis] ^= chance(0.5, rng);
        }
        channels_mut(patch).for_each(|channel| flip(channel, shape, flips));
        label_maps_mut(patch).for_each(|labels| flip(labels, shape, flips));
    }
}

/// Reverses some axes of a volume of this shape by swapping every row with its mirror image.
fn flip<T>(values: &mut [T], [nz, ny, nx]: [usize; 3], [flip_z, flip_y, flip_x]: [bool; 3]) {
    let image = |row: usize| {
        let (z, y) = (row / ny, row % ny);
        (if flip_z { nz - 1 - z } else { z }) * ny + if flip_y { ny - 1 - y } else { y }
    };
    for row in 0..nz * ny {
        let other = image(row);
        if other < row {
            continue;
        }
        let (head, tail) = values.split_at_mut(other * nx);
        let second = &mut tail[..nx];
        if other == row {
            if flip_x {
                second.reverse();
            }
            continue;
        }
        let first = &mut head[row * nx..][..nx];
        if flip_x {
            first.iter_mut().zip(second.iter_mut().rev()).for_each(|(a, b)| std::mem::swap(a, b));
        } else {
            first.swap_with_slice(second);
        }
    }
}
