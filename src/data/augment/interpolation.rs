//! Interpolation at a single position.

use std::ops::Range;

use crate::store::{OUTSIDE_INTENSITY, OUTSIDE_LABEL, Region};

/// Label scores that differ by less than this are tied (batchgeneratorsv2 rounds scores to float16, which is similarly
/// coarse).
const TIE: f32 = 5e-4;

/// The eight voxels around a position, ordered by z, y, x with the lower voxel first and x fastest.
pub(super) struct Stencil {
    /// Index of each voxel, or `None` for padding.
    index: [Option<usize>; 8],
    /// Offset of the position from the first voxel, along z, y and x.
    fraction: [f32; 3],
}

impl Stencil {
    /// Creates the stencil for a `position` in the source box; `voxels` are the box positions that are not padding.
    pub(super) fn at(position: [f32; 3], source: &Region, voxels: &[Range<usize>; 3]) -> Self {
        let corner = position.map(floor);
        let fraction = std::array::from_fn(|axis| position[axis] - corner[axis] as f32);
        let [_, ny, nx] = source.shape;
        let stride = [ny * nx, nx, 1];
        // The contribution of each axis to the index, for both voxels along the axis.
        let offsets: [[Option<usize>; 2]; 3] = std::array::from_fn(|axis| {
            [0, 1].map(|step| {
                let at = corner[axis] as isize + step;
                let inside = at >= 0 && voxels[axis].contains(&at.cast_unsigned());
                inside.then(|| (source.lo[axis] + at).cast_unsigned() * stride[axis])
            })
        });
        let index = std::array::from_fn(|k| {
            let [z, y, x] = [offsets[0][k >> 2], offsets[1][k >> 1 & 1], offsets[2][k & 1]];
            Some(z? + y? + x?)
        });
        Self { index, fraction }
    }

    /// Returns the interpolated intensity.
    pub(super) fn blend(&self, channel: &[f32]) -> f32 {
        let value = |index: Option<usize>| index.map_or(OUTSIDE_INTENSITY, |index| channel[index]);
        interpolate(self.index.map(value), self.fraction)
    }

    /// Returns the label with the largest sum of weights.
    pub(super) fn vote(&self, labels: &[i16]) -> i16 {
        let labels = self.index.map(|index| index.map_or(OUTSIDE_LABEL, |index| labels[index]));
        if labels.iter().all(|label| *label == labels[0]) { labels[0] } else { vote(labels, self.fraction) }
    }
}

/// Returns the label with the largest sum of linear weights among eight neighbors. Ties go to the label of the nearest
/// neighbor or, if it is not tied, to the smallest label.
pub(super) fn vote(labels: [i16; 8], fraction: [f32; 3]) -> i16 {
    // The sum of a label's weights equals the interpolation of its indicator.
    let score = |label: i16| interpolate(labels.map(|other| f32::from(u8::from(other == label))), fraction);
    let far = fraction.map(|fraction| usize::from(fraction > 0.5));
    let nearest = labels[far[0] << 2 | far[1] << 1 | far[2]];
    let nearest_score = score(nearest);
    // All weights sum to 1, so no other label can score higher.
    if nearest_score >= 0.5 {
        return nearest;
    }
    let scores = labels.map(score);
    let best = scores.iter().copied().fold(0.0, f32::max);
    if nearest_score >= best - TIE {
        return nearest;
    }
    (0..8).filter(|&k| scores[k] == best).map(|k| labels[k]).min().expect("the maximum is one of the scores")
}

/// Interpolates linearly between eight neighbors.
#[inline(always)]
fn interpolate(values: [f32; 8], [z, y, x]: [f32; 3]) -> f32 {
    let along = |k: usize| lerp(values[k], values[k + 1], x);
    lerp(lerp(along(0), along(2), y), lerp(along(4), along(6), y), z)
}

/// Interpolates linearly between two neighbors.
#[inline(always)]
pub(super) fn lerp(low: f32, high: f32, fraction: f32) -> f32 {
    low + fraction * (high - low)
}

/// Computes `value.floor()` without the library call that baseline x86-64 requires.
fn floor(value: f32) -> i32 {
    let truncated = value as i32;
    truncated - i32::from(value < truncated as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_wins_by_its_total_weight() {
        let flat = |labels: [i16; 4]| std::array::from_fn(|k| labels[k & 3]);
        // Two corners of label 7 outweigh the single nearest one of label 3.
        assert_eq!(vote(flat([3, 7, 7, 1]), [0.0, 0.45, 0.45]), 7);
        // An exact tie goes to the nearest neighbor or, if all are equally near, to the first.
        assert_eq!(vote(flat([5, 2, 5, 2]), [0.0, 0.0, 0.5]), 5);
        assert_eq!(vote(flat([5, 2, 5, 2]), [0.0, 0.0, 0.5001]), 2);
    }

    #[test]
    fn padding_counts_as_zero_and_as_the_label_outside() {
        let (data, labels) = ([4.0, 8.0], [1, 2]);
        let case =
            Region { data: &data, labels: &labels, previous: None, shape: [1, 1, 2], lo: [0; 3], size: [1, 1, 2] };
        let source = Region { lo: [0, 0, -1], size: [1, 1, 4], ..case };
        let stencil = |x: f32| Stencil::at([0.0, 0.0, x], &source, &source.voxels());
        assert_eq!([0.25, 1.5, 2.75].map(|x| stencil(x).blend(&data)), [1.0, 6.0, 2.0]);
        assert_eq!([0.25, 0.75, 1.0, 2.25, 2.75, 3.0].map(|x| stencil(x).vote(&labels)), [-1, 1, 1, 2, -1, -1]);
    }
}
