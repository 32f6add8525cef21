//! Target spacing of a dataset, and the order of its axes.

use crate::dataset::Fingerprint;

/// An axis is anisotropic if its voxels are larger than those of the other axes by more than this factor
/// (`ANISO_THRESHOLD` of nnU-Net's `configuration.py`).
const ANISOTROPY: f64 = 3.0;

/// Returns the target spacing at full resolution, in mm `(z, y, x)`: the median, except along an axis with much larger
/// and much fewer voxels than the others. There it is the tenth percentile, so that cases with thin slices keep their
/// resolution.
pub(super) fn target_spacing(fingerprint: &Fingerprint) -> [f64; 3] {
    let mut target = per_axis(&fingerprint.spacings, |spacings| percentile(spacings, 0.5));
    let shapes: Vec<Vec<f64>> = fingerprint.shapes_after_crop.iter().map(|shape| floats(shape)).collect();
    let size = per_axis(&shapes, |extents| percentile(extents, 0.5));
    let coarse = coarsest(&target);
    let others = [0, 1, 2].into_iter().filter(|&axis| axis != coarse);
    let other_spacing = others.clone().map(|axis| target[axis]).fold(0.0, f64::max);
    let other_size = others.map(|axis| size[axis]).fold(f64::INFINITY, f64::min);
    if target[coarse] > ANISOTROPY * other_spacing && size[coarse] * ANISOTROPY < other_size {
        let thin = percentile(fingerprint.spacings.iter().map(|spacing| spacing[coarse]).collect(), 0.1);
        target[coarse] = if thin < other_spacing { other_spacing + 1e-5 } else { thin };
    }
    target
}

/// Returns the permutation that moves the coarsest axis to the front, and its inverse.
pub(super) fn transposition(target: &[f64; 3]) -> ([usize; 3], [usize; 3]) {
    let forward = match coarsest(target) {
        0 => [0, 1, 2],
        1 => [1, 0, 2],
        _ => [2, 0, 1],
    };
    let mut backward = [0; 3];
    for (to, &from) in forward.iter().enumerate() {
        backward[from] = to;
    }
    (forward, backward)
}

/// Returns the median over cases of the shape in voxels after resampling to `target`.
pub(super) fn median_resampled_shape(fingerprint: &Fingerprint, target: &[f64; 3]) -> [f64; 3] {
    let cases = fingerprint.shapes_after_crop.iter().zip(&fingerprint.spacings);
    let resampled = |(shape, spacing): (&Vec<usize>, &Vec<f64>)| -> Vec<f64> {
        let axes = shape.iter().zip(spacing).zip(target);
        axes.map(|((&extent, mm), target)| (mm / target * extent as f64).round_ties_even()).collect()
    };
    let shapes: Vec<Vec<f64>> = cases.map(resampled).collect();
    per_axis(&shapes, median)
}

/// Returns the median over cases of the spacing in mm.
pub(super) fn median_spacing(fingerprint: &Fingerprint) -> [f64; 3] {
    per_axis(&fingerprint.spacings, median)
}

/// Returns the median over cases of the shape in voxels after cropping, rounding halves to even.
pub(super) fn median_shape(fingerprint: &Fingerprint) -> [usize; 3] {
    let shapes: Vec<Vec<f64>> = fingerprint.shapes_after_crop.iter().map(|shape| floats(shape)).collect();
    per_axis(&shapes, median).map(|extent| extent.round_ties_even() as usize)
}

/// Returns the first of the axes with the largest spacing.
fn coarsest(spacing: &[f64; 3]) -> usize {
    (1..3).fold(0, |coarsest, axis| if spacing[axis] > spacing[coarsest] { axis } else { coarsest })
}

fn floats(shape: &[usize]) -> Vec<f64> {
    shape.iter().map(|&extent| extent as f64).collect()
}

fn per_axis(rows: &[Vec<f64>], statistic: impl Fn(Vec<f64>) -> f64) -> [f64; 3] {
    std::array::from_fn(|axis| statistic(rows.iter().map(|row| row[axis]).collect()))
}

/// Returns the middle value, or the mean of the two middle values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Returns a percentile by linear interpolation between the two nearest ranks, rounded like numpy; `q` is in 0..=1.
fn percentile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = q * (values.len() - 1) as f64;
    let (below, above) = (values[rank.floor() as usize], values[rank.ceil() as usize]);
    let (step, part) = (above - below, rank.fract());
    if part < 0.5 { below + step * part } else { above - step * (1.0 - part) }
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;

    fn fingerprint(spacings: &[[f64; 3]], shape: [usize; 3]) -> Fingerprint {
        Fingerprint {
            foreground_intensity_properties_per_channel: IndexMap::new(),
            median_relative_size_after_cropping: 1.0,
            shapes_after_crop: vec![shape.to_vec(); spacings.len()],
            spacings: spacings.iter().map(|spacing| spacing.to_vec()).collect(),
            orientations: Default::default(),
        }
    }

    #[test]
    fn few_thick_slices_are_resampled_to_the_tenth_percentile() {
        let spacings = [[5.0, 1.0, 1.0], [10.0, 1.0, 1.0], [10.0, 1.0, 1.0]];
        assert_eq!(target_spacing(&fingerprint(&spacings, [10, 200, 200])), [6.0, 1.0, 1.0]);
        // With as many slices as pixels, the median is used.
        assert_eq!(target_spacing(&fingerprint(&spacings, [200, 200, 200])), [10.0, 1.0, 1.0]);
    }

    #[test]
    fn the_tenth_percentile_never_gets_finer_than_the_other_axes() {
        let spacings = [[0.2, 1.0, 1.0], [10.0, 1.0, 1.0], [10.0, 1.0, 1.0], [0.2, 1.0, 1.0], [10.0, 1.0, 1.0]];
        assert_eq!(target_spacing(&fingerprint(&spacings, [10, 200, 200])), [1.0 + 1e-5, 1.0, 1.0]);
    }

    #[test]
    fn backward_undoes_forward() {
        for (target, expected) in [([5., 1., 1.], [0, 1, 2]), ([1., 5., 1.], [1, 0, 2]), ([1., 1., 5.], [2, 0, 1])] {
            let (forward, backward) = transposition(&target);
            assert_eq!(forward, expected);
            assert_eq!(backward.map(|axis| forward[axis]), [0, 1, 2]);
        }
    }
}
