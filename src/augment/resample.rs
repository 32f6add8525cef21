//! Affine resampling of data and labels in one pass.

use super::voxels::{data_mut, labels_mut, shape};
use crate::store::Patch;

/// Label and intensity beyond the source.
const OUTSIDE_LABEL: i16 = -1;
const OUTSIDE_VALUE: f32 = 0.0;

/// Index of a corner beyond the source; no volume is that large.
const OUTSIDE: u32 = u32::MAX;

/// Label scores closer than this count as tied (batchgeneratorsv2 rounds scores to float16, about as coarse).
const TIE: f32 = 5e-4;

/// Fills `target` with `source` seen through `matrix`, which takes positions relative to the target's centre to
/// positions relative to the source's centre, `(z, y, x)`.
///
/// Data is interpolated linearly, 0 beyond the source. A label gets the sum of its neighbours' linear weights and the
/// best one wins, ties going to the nearest neighbour; beyond the source the label is -1 (batchgeneratorsv2
/// `SpatialTransform` with `mode_seg` bilinear).
pub(super) fn resample(source: &Patch, target: &mut Patch, matrix: &[[f64; 3]; 3]) {
    let source_shape = shape(source);
    let [nz, ny, nx] = shape(target);
    let data = source.data.as_slice().expect("patches are allocated in C order and never permuted");
    let labels = source.labels.as_slice().expect("patches are allocated in C order and never permuted");
    let centre = |extent: usize| (extent as f64 - 1.0) / 2.0;
    let step = matrix.map(|row| row[2] as f32);

    let mut taps = Vec::with_capacity(nx);
    for z in 0..nz {
        for y in 0..ny {
            let offset = [z as f64 - centre(nz), y as f64 - centre(ny), -centre(nx)];
            let start: [f32; 3] = std::array::from_fn(|axis| {
                let turned: f64 = (0..3).map(|column| matrix[axis][column] * offset[column]).sum();
                (turned + centre(source_shape[axis])) as f32
            });
            taps.clear();
            taps.extend(
                (0..nx).map(|x| Tap::at(std::array::from_fn(|axis| start[axis] + x as f32 * step[axis]), source_shape)),
            );

            let row = (z * ny + y) * nx;
            for (channel, source) in data.chunks_exact(labels.len()).enumerate() {
                let target = &mut data_mut(target)[channel * nz * ny * nx + row..][..nx];
                target.iter_mut().zip(&taps).for_each(|(value, tap)| *value = tap.blend(source));
            }
            let target = &mut labels_mut(target)[row..][..nx];
            target.iter_mut().zip(&taps).for_each(|(label, tap)| *label = tap.vote(labels));
        }
    }
}

/// The eight voxels around a position and their linear weights.
struct Tap {
    index: [u32; 8],
    weight: [f32; 8],
}

impl Tap {
    /// The tap at `position`, in voxels of a volume of this `shape`.
    fn at(position: [f32; 3], shape: [usize; 3]) -> Self {
        let corner = position.map(floor);
        let [z, y, x]: [f32; 3] = std::array::from_fn(|axis| position[axis] - corner[axis] as f32);
        let (z, y, x) = ([1.0 - z, z], [1.0 - y, y], [1.0 - x, x]);
        let weight = std::array::from_fn(|k| z[k >> 2] * y[k >> 1 & 1] * x[k & 1]);
        Self { weight, index: corners(corner, shape.map(|extent| extent as i32)) }
    }

    /// The interpolated intensity.
    fn blend(&self, source: &[f32]) -> f32 {
        let mut sum = 0.0;
        for (&index, &weight) in self.index.iter().zip(&self.weight) {
            sum += weight * source.get(index as usize).copied().unwrap_or(OUTSIDE_VALUE);
        }
        sum
    }

    /// The label with the largest sum of weights.
    fn vote(&self, source: &[i16]) -> i16 {
        let labels = self.index.map(|index| source.get(index as usize).copied().unwrap_or(OUTSIDE_LABEL));
        if labels.iter().all(|&label| label == labels[0]) {
            return labels[0];
        }
        let score = |label: i16| -> f32 {
            labels.iter().zip(&self.weight).filter(|(other, _)| **other == label).map(|(_, weight)| weight).sum()
        };
        let scores = labels.map(score);
        let best = scores.iter().copied().fold(0.0, f32::max);
        let nearest = (0..8).fold(0, |nearest, k| if self.weight[k] > self.weight[nearest] { k } else { nearest });
        if scores[nearest] >= best - TIE {
            return labels[nearest];
        }
        (0..8).filter(|&k| scores[k] == best).map(|k| labels[k]).min().expect("one of the scores is the best")
    }
}

/// Indices of the voxels at `corner` and one further along each axis.
fn corners(corner: [i32; 3], shape: [i32; 3]) -> [u32; 8] {
    let [_, ny, nx] = shape;
    let flat = |z: i32, y: i32, x: i32| (z * ny + y) * nx + x;
    if (0..3).all(|axis| corner[axis] >= 0 && corner[axis] + 1 < shape[axis]) {
        let first = flat(corner[0], corner[1], corner[2]);
        let (y, z) = (nx, ny * nx);
        return [0, 1, y, y + 1, z, z + 1, z + y, z + y + 1].map(|step| (first + step) as u32);
    }
    std::array::from_fn(|k| {
        let at = [corner[0] + (k >> 2) as i32, corner[1] + (k >> 1 & 1) as i32, corner[2] + (k & 1) as i32];
        let inside = (0..3).all(|axis| (0..shape[axis]).contains(&at[axis]));
        if inside { flat(at[0], at[1], at[2]) as u32 } else { OUTSIDE }
    })
}

/// `value.floor()`, without the library call that the baseline x86-64 needs for it.
fn floor(value: f32) -> i32 {
    let truncated = value as i32;
    truncated - i32::from(value < truncated as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::blank_patch;

    const IDENTITY: [[f64; 3]; 3] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

    /// Intensities linear in the coordinates; labels by octant.
    fn gradient(shape: [usize; 3]) -> Patch {
        let mut patch = blank_patch(2, shape);
        for ((c, z, y, x), value) in patch.data.indexed_iter_mut() {
            *value = (c as f32 + 1.0) * (100.0 * z as f32 + 10.0 * y as f32 + x as f32);
        }
        for ((z, y, x), label) in patch.labels.indexed_iter_mut() {
            *label = (z * 2 / shape[0] + 2 * (y * 2 / shape[1]) + 4 * (x * 2 / shape[2])) as i16;
        }
        patch
    }

    #[test]
    fn identity_copies_every_voxel() {
        let source = gradient([5, 6, 7]);
        let mut target = blank_patch(2, [5, 6, 7]);
        resample(&source, &mut target, &IDENTITY);
        assert_eq!(source, target);
    }

    #[test]
    fn linear_interpolation_is_exact_on_a_gradient_and_zero_outside() {
        let source = gradient([9, 9, 9]);
        let mut target = blank_patch(2, [9, 9, 9]);
        let half = IDENTITY.map(|row| row.map(|value| value * 0.75));
        resample(&source, &mut target, &half);
        // Target voxel (0, 8, 4) lies at 4 + 0.75 * (-4, 4, 0) = (1, 7, 4) of the source.
        assert_eq!(target.data[[0, 0, 8, 4]], 174.0);
        assert_eq!(target.data[[1, 0, 8, 4]], 348.0);
        assert!((target.data[[0, 1, 4, 4]] - (100.0 * 1.75 + 44.0)).abs() < 1e-3);

        let double = IDENTITY.map(|row| row.map(|value| value * 2.0));
        resample(&source, &mut target, &double);
        assert_eq!((target.data[[0, 0, 4, 4]], target.labels[[0, 4, 4]]), (0.0, -1));
        assert_eq!(target.data[[0, 4, 4, 4]], 444.0);
    }

    #[test]
    fn a_quarter_turn_permutes_voxels() {
        let source = gradient([3, 5, 5]);
        let mut target = blank_patch(2, [3, 5, 5]);
        resample(&source, &mut target, &[[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]);
        for ((z, y, x), &label) in target.labels.indexed_iter() {
            assert_eq!(label, source.labels[[z, 4 - x, y]]);
            assert_eq!(target.data[[1, z, y, x]], source.data[[1, z, 4 - x, y]]);
        }
    }

    #[test]
    fn a_label_wins_by_its_total_weight() {
        // Two corners of label 7 outweigh the single nearest one of label 3.
        let tap = Tap::at([0.0, 0.45, 0.45], [1, 2, 2]);
        assert_eq!(tap.vote(&[3, 7, 7, 1]), 7);
        // An exact tie goes to the nearest neighbour or, all being equally near, to the first.
        assert_eq!(Tap::at([0.0, 0.0, 0.5], [1, 1, 2]).vote(&[5, 2]), 5);
    }
}
