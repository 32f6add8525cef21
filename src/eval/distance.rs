//! Exact Euclidean distance transform.

use ndarray::{Array3, ArrayView3, ArrayViewMut1, Axis};
use rayon::prelude::*;

/// Squared distance in mm² from the center of every voxel to that of the nearest set voxel; infinite if none is set.
/// `set` and the result are `(z, y, x)`, `spacing` is in mm.
///
/// Exact for anisotropic voxels (to f32 precision): per axis, the lower envelope of the parabolas rooted at the voxels
/// (Felzenszwalb and Huttenlocher: Distance transforms of sampled functions. Theory of Computing 8, 2012). Linear in
/// the number of voxels.
pub fn squared_distances(set: ArrayView3<bool>, spacing: [f64; 3]) -> Array3<f32> {
    let mut squares = set.mapv(|is_set| if is_set { 0.0 } else { f32::INFINITY });
    // Axis to transform, axis across which to parallelize, and index of the former within a plane.
    for (axis, across, within) in [(2, 0, 1), (1, 0, 0), (0, 1, 0)] {
        if squares.len_of(Axis(axis)) > 1 {
            squares.axis_iter_mut(Axis(across)).into_par_iter().for_each_init(
                Envelope::default,
                |envelope, mut plane| {
                    plane.lanes_mut(Axis(within)).into_iter().for_each(|line| envelope.apply(line, spacing[axis]));
                },
            );
        }
    }
    squares
}

/// Lower envelope of the parabolas of a line, with reusable buffers.
#[derive(Default)]
struct Envelope {
    /// Values of the line.
    heights: Vec<f64>,
    /// Roots of the parabolas of the envelope, in voxels.
    feet: Vec<usize>,
    /// Position from which each of them is the lowest, in voxels.
    begins: Vec<f64>,
}

impl Envelope {
    /// Replaces the values of a line by the lower envelope of the parabolas rooted at them.
    fn apply(&mut self, mut line: ArrayViewMut1<f32>, spacing: f64) {
        let Self { heights, feet, begins } = self;
        heights.clear();
        heights.extend(line.iter().map(|height| f64::from(*height)));
        feet.clear();
        begins.clear();
        let square = spacing * spacing;
        let crossing = |one: usize, other: usize| {
            let (a, b) = (one as f64, other as f64);
            ((heights[other] - heights[one]) / square + b * b - a * a) / (2.0 * (b - a))
        };
        for foot in (0..heights.len()).filter(|foot| heights[*foot].is_finite()) {
            let mut begin = f64::NEG_INFINITY;
            while let (Some(last), Some(last_begin)) = (feet.last(), begins.last()) {
                begin = crossing(*last, foot);
                if begin > *last_begin {
                    break;
                }
                feet.pop();
                begins.pop();
                begin = f64::NEG_INFINITY;
            }
            feet.push(foot);
            begins.push(begin);
        }
        if feet.is_empty() {
            return;
        }
        let mut lowest = 0;
        for (at, value) in line.iter_mut().enumerate() {
            while begins.get(lowest + 1).is_some_and(|begin| *begin < at as f64) {
                lowest += 1;
            }
            let steps = at as f64 - feet[lowest] as f64;
            *value = (heights[feet[lowest]] + steps * steps * square) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use nnunet_core::rng::{Purpose, stream};

    /// Brute force: every voxel against every set voxel.
    fn by_definition(set: &Array3<bool>, spacing: [f64; 3]) -> Array3<f64> {
        let sites: Vec<_> = set.indexed_iter().filter(|(_, is_set)| **is_set).map(|(at, _)| at).collect();
        Array3::from_shape_fn(set.dim(), |(z, y, x)| {
            let square = |(k, j, i): (usize, usize, usize)| {
                let offsets = [z.abs_diff(k), y.abs_diff(j), x.abs_diff(i)];
                offsets.iter().zip(spacing).map(|(steps, spacing)| (*steps as f64 * spacing).powi(2)).sum::<f64>()
            };
            sites.iter().map(|site| square(*site)).fold(f64::INFINITY, f64::min)
        })
    }

    #[test]
    fn distances_are_exact_for_voxels_of_any_shape() {
        let mut rng = stream(3, Purpose::Phantom, 0, 0);
        for (shape, spacing, density) in [
            ((7, 9, 11), [1.0; 3], 0.03),
            ((5, 12, 8), [3.6, 0.7, 0.9], 0.02),
            ((1, 13, 17), [999.0, 0.5, 2.0], 0.05),
            ((9, 1, 1), [2.5, 1.0, 1.0], 0.3),
            ((6, 6, 6), [0.4, 5.0, 1.0], 0.6),
        ] {
            for _ in 0..5 {
                let set = Array3::from_shape_simple_fn(shape, || rng.random_bool(density));
                let (found, expected) = (squared_distances(set.view(), spacing), by_definition(&set, spacing));
                for (found, expected) in found.iter().zip(&expected) {
                    let is_near = (f64::from(*found) - expected).abs() <= 1e-6 * expected;
                    assert!(is_near || f64::from(*found) == *expected, "{shape:?}: {found} where {expected} is right");
                }
            }
        }
    }

    #[test]
    fn without_a_set_voxel_all_is_infinitely_far() {
        let set = Array3::from_elem((2, 3, 4), false);
        assert!(squared_distances(set.view(), [1.0; 3]).iter().all(|square| *square == f32::INFINITY));
    }
}
