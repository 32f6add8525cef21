//! Median filter.

use std::ops::Range;

use rand::Rng;

use super::distributions::chance;
use super::voxels::{channels_mut, shape};
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Replaces each voxel of a channel with the median of the cube around it.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: with probability 0.2 either this or a blur, chosen with equal probability; then
/// each channel with probability 0.5. The cube has 2 to 7 voxels along each axis, drawn per channel (batchgeneratorsv2
/// `MedianFilterTransform`).
#[derive(Clone, Debug)]
pub struct MedianFilter {
    /// Range of the cube extent in voxels.
    pub size: Range<usize>,
    /// Probability of filtering a channel.
    pub per_channel: f64,
}

impl MedianFilter {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        for channel in channels_mut(patch) {
            let size = rng.random_range(self.size.clone());
            if chance(self.per_channel, rng) {
                filter(channel, shape, size);
            }
        }
    }
}

/// Implements `scipy.ndimage.median_filter` with its border mode `reflect`, which repeats the border voxel. Along an
/// axis of one voxel the cube has one voxel, which does not change the median.
fn filter(values: &mut [f32], shape: [usize; 3], size: usize) {
    let keys: Vec<i32> = values.iter().map(|value| ordered(value.to_bits() as i32)).collect();
    let [zs, ys, xs] = shape.map(|extent| (0..extent).map(|at| window(at, size, extent)).collect::<Vec<_>>());
    let [_, ny, nx] = shape;
    let mut cube = Vec::with_capacity(size.pow(3));
    for (z, plane) in zs.iter().zip(values.chunks_exact_mut(ny * nx)) {
        for (y, row) in ys.iter().zip(plane.chunks_exact_mut(nx)) {
            let rows: Vec<&[i32]> =
                z.iter().flat_map(|&z| y.iter().map(move |&y| (z * ny + y) * nx)).map(|at| &keys[at..][..nx]).collect();
            for (x, value) in xs.iter().zip(row) {
                cube.clear();
                for row in &rows {
                    cube.extend(x.iter().map(|&x| row[x]));
                }
                let middle = cube.len() / 2;
                let (_, median, _) = cube.select_nth_unstable(middle);
                *value = f32::from_bits(ordered(*median) as u32);
            }
        }
    }
}

/// Returns the positions of the window around `at`, reflected into the extent.
fn window(at: usize, size: usize, extent: usize) -> Vec<usize> {
    if extent == 1 {
        return vec![0];
    }
    let mirrored = |shifted: usize| {
        let period = 2 * extent as isize;
        let position = (at as isize + shifted as isize - (size / 2) as isize).rem_euclid(period) as usize;
        position.min(2 * extent - 1 - position)
    };
    (0..size).map(mirrored).collect()
}

/// Maps float bits to integers of the same order, and back (as in `f32::total_cmp`).
fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_those_of_scipy() {
        // `scipy.ndimage.median_filter` of `(i * 37 % 23) - 7` in a volume of 2 x 3 x 4.
        let volume: Vec<f32> = (0..24).map(|i| (i * 37 % 23) as f32 - 7.0).collect();
        for (size, expected) in MEDIANS {
            let mut values = volume.clone();
            filter(&mut values, [2, 3, 4], size);
            assert_eq!(values, expected, "size {size}");
        }
    }

    #[test]
    fn a_slice_is_filtered_in_its_plane() {
        let mut values = vec![5.0, -1.0, 0.0, -2.0, 7.0, 1.0, 3.0, 2.0, -4.0];
        filter(&mut values, [1, 3, 3], 3);
        assert_eq!(values[4], 1.0);
    }

    const MEDIANS: [(usize, [f32; 24]); 3] = [
        (
            2,
            [
                -7.0, 7.0, 7.0, 12.0, 3.0, 3.0, 7.0, 8.0, 13.0, 4.0, 4.0, 8.0, 0.0, 7.0, 7.0, 5.0, 3.0, 3.0, 7.0, 6.0,
                10.0, 4.0, 4.0, 6.0,
            ],
        ),
        (
            3,
            [
                0.0, 3.0, 6.0, 5.0, 3.0, 3.0, 4.0, 5.0, 4.0, 4.0, 4.0, 2.0, 1.0, 5.0, 5.0, 5.0, 3.0, 4.0, 5.0, 2.0,
                4.0, 3.0, 2.0, 2.0,
            ],
        ),
        (
            5,
            [
                3.0, 3.0, 4.0, 5.0, 4.0, 2.0, 2.0, 4.0, 4.0, 3.0, 3.0, 4.0, 3.0, 3.0, 3.0, 5.0, 4.0, 3.0, 4.0, 4.0,
                3.0, 3.0, 4.0, 4.0,
            ],
        ),
    ];
}
