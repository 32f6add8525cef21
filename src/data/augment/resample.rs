//! Affine resampling of data and labels in one pass, linear for data and by weighted vote for labels.

use std::ops::Range;

use multiversion::multiversion;

use super::voxels::{channels_mut, label_maps_mut, shape};
use crate::store::{OUTSIDE_INTENSITY, OUTSIDE_LABEL, Patch, Region};

/// Number of voxels interpolated together.
const BLOCK: usize = 16;

/// Distance from a border, in voxels, beyond which rounding cannot change the side a position is on.
const MARGIN: f64 = 1e-2;

/// Fills `target` by sampling `source` through `matrix`, which maps positions relative to the target's center to
/// positions relative to the center of the source box, `(z, y, x)`.
///
/// Data is interpolated linearly, with 0 outside the source. Each label scores the sum of its neighbors' linear
/// weights; the highest score wins and ties go to the nearest neighbor. Outside the source the label is -1
/// (batchgeneratorsv2 `SpatialTransform` with `mode_seg` bilinear).
///
/// A row of the target maps to a straight line in the source: the section well inside the source needs no check per
/// voxel, the section outside needs no interpolation, and only the rest is handled voxel by voxel.
pub(super) fn resample(source: Region, target: &mut Patch, matrix: &[[f64; 3]; 3]) {
    if source.voxels().iter().any(Range::is_empty) {
        target.data.fill(OUTSIDE_INTENSITY);
        label_maps_mut(target).for_each(|labels| labels.fill(OUTSIDE_LABEL));
        return;
    }
    let [nz, ny, nx] = shape(target);
    let centre = |extent: usize| (extent as f64 - 1.0) / 2.0;
    let mut border = Vec::new();
    for z in 0..nz {
        for y in 0..ny {
            let offset = [z as f64 - centre(nz), y as f64 - centre(ny), -centre(nx)];
            let start = std::array::from_fn(|axis| {
                let turned: f64 = (0..3).map(|column| matrix[axis][column] * offset[column]).sum();
                (turned + centre(source.size[axis])) as f32
            });
            let line = SourceLine { start, step: matrix.map(|row| row[2] as f32), len: nx };
            fill_row(&source, target, (z * ny + y) * nx, &line, &mut border);
        }
    }
}

/// Fills the row of the target that starts at index `row`. `border` is scratch memory, reused for each row, with the
/// target index and the interpolation stencil of each position between the source and its padding.
fn fill_row(source: &Region, target: &mut Patch, row: usize, line: &SourceLine, border: &mut Vec<(usize, Stencil)>) {
    let voxels = source.voxels();
    let touching = line.touching(&voxels);
    let within = line.within(&voxels, &touching);
    border.clear();
    border.extend(
        (touching.start..within.start)
            .chain(within.end..touching.end)
            .map(|x| (row + x, Stencil::at(line.position(x), source, &voxels))),
    );
    let beyond = [row..row + touching.start, row + touching.end..row + line.len];
    let part = row + within.start..row + within.end;
    let grid = Grid::new(source, line, &voxels);

    for (target, source) in channels_mut(target).zip(source.channels()) {
        beyond.iter().for_each(|beyond| target[beyond.clone()].fill(OUTSIDE_INTENSITY));
        border.iter().for_each(|(index, stencil)| target[*index] = stencil.blend(source));
        blend(&source[grid.base..], &grid, line, within.start, &mut target[part.clone()]);
    }
    let label_maps = [Some(source.labels), source.previous].into_iter().flatten();
    for (target, source) in label_maps_mut(target).zip(label_maps) {
        beyond.iter().for_each(|beyond| target[beyond.clone()].fill(OUTSIDE_LABEL));
        border.iter().for_each(|(index, stencil)| target[*index] = stencil.majority(source));
        vote_row(&source[grid.base..], &grid, line, within.start, &mut target[part.clone()]);
    }
}

/// The line through the source box that a row of the target maps to, in box positions.
struct SourceLine {
    start: [f32; 3],
    step: [f32; 3],
    len: usize,
}

impl SourceLine {
    fn position(&self, x: usize) -> [f32; 3] {
        std::array::from_fn(|axis| self.start[axis] + x as f32 * self.step[axis])
    }

    /// Returns a range of steps; no position outside it has a neighbor among the voxels.
    fn touching(&self, voxels: &[Range<usize>; 3]) -> Range<usize> {
        let part = |axis: usize| {
            let Range { start, end } = voxels[axis];
            self.between(axis, start as f64 - 1.0 - MARGIN, end as f64 + MARGIN)
        };
        (0..3).fold(0..self.len, |all, axis| intersection(&all, &part(axis)))
    }

    /// Returns a sub-range of `touching` in which all neighbors of each position are voxels.
    fn within(&self, voxels: &[Range<usize>; 3], touching: &Range<usize>) -> Range<usize> {
        let part = |axis: usize| {
            let Range { start, end } = voxels[axis];
            if self.step[axis] == 0.0 {
                let inside = (start as f32..end as f32 - 1.0).contains(&self.start[axis]);
                return if inside || self.on_last_voxel(axis, voxels) { 0..self.len } else { 0..0 };
            }
            self.between(axis, start as f64 + MARGIN, end as f64 - 1.0 - MARGIN)
        };
        let within = (0..3).fold(touching.clone(), |all, axis| intersection(&all, &part(axis)));
        if within.is_empty() { touching.end..touching.end } else { within }
    }

    /// Returns true if the line runs exactly through the centers of the voxels next to a border, as in the single slice
    /// of a 2D patch: the neighbor outside then has weight 0. Not needed along x, where neighbors are read in pairs.
    fn on_last_voxel(&self, axis: usize, voxels: &[Range<usize>; 3]) -> bool {
        axis < 2
            && self.step[axis] == 0.0
            && self.start[axis] + 1.0 == voxels[axis].end as f32
            && !voxels[axis].is_empty()
    }

    /// Returns the steps at which the position along `axis` is between two values.
    fn between(&self, axis: usize, low: f64, high: f64) -> Range<usize> {
        let (start, step) = (f64::from(self.start[axis]), f64::from(self.step[axis]));
        if low > high {
            return 0..0;
        }
        if step == 0.0 {
            return if (low..=high).contains(&start) { 0..self.len } else { 0..0 };
        }
        let (first, last) = ((low - start) / step, (high - start) / step);
        let (first, last) = (first.min(last), first.max(last));
        if last < 0.0 {
            return 0..0;
        }
        // Float-to-integer conversions truncate and saturate.
        let end = (last as usize).saturating_add(1).min(self.len);
        let begin = first.max(0.0) as usize;
        (begin + usize::from((begin as f64) < first)).min(end)..end
    }
}

fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Mapping from box positions to array indices relative to the first voxel of the box; 32 bits are enough for these,
/// regardless of the case size.
struct Grid {
    /// Index of the first voxel.
    base: usize,
    /// Position of the first voxel.
    first: [i32; 3],
    /// Extent of the arrays along y and x.
    extent: [i32; 2],
    /// Index offsets from a voxel to its neighbors: none, along y, along z, along both. The neighbor along x is the
    /// next value.
    steps: [usize; 4],
}

impl Grid {
    fn new(source: &Region, line: &SourceLine, voxels: &[Range<usize>; 3]) -> Self {
        let [_, ny, nx] = source.shape;
        let stride = |axis: usize, stride| if line.on_last_voxel(axis, voxels) { 0 } else { stride };
        let (to_y, to_z) = (stride(1, nx), stride(0, ny * nx));
        let [z, y, x] = std::array::from_fn(|axis| source.lo[axis].saturating_add_unsigned(voxels[axis].start));
        let base = [(z, ny * nx), (y, nx), (x, 1)].map(|(at, stride)| at.cast_unsigned() * stride).iter().sum();
        let first = std::array::from_fn(|axis| voxels[axis].start as i32);
        assert!(u32::try_from(voxels[0].len() * ny * nx).is_ok(), "the slices of a patch have at most 2^32 voxels");
        Self { base, first, extent: [ny as i32, nx as i32], steps: [0, to_y, to_z, to_y + to_z] }
    }

    /// Returns the index relative to `base` of the first of the eight neighbors, and the fractional offsets from it,
    /// for the positions from `x` on. Positions at or after `end` are replaced by the last one before it.
    #[inline(always)]
    fn locate(&self, line: &SourceLine, x: usize, end: usize) -> ([u32; BLOCK], [[f32; BLOCK]; 3]) {
        let (mut first, mut fraction) = ([0; BLOCK], [[0.0; BLOCK]; 3]);
        let last = (end - 1 - x) as i32;
        for lane in 0..BLOCK {
            let step = (x as i32).wrapping_add((lane as i32).min(last)) as f32;
            let z = line.start[0] + step * line.step[0];
            let y = line.start[1] + step * line.step[1];
            let x = line.start[2] + step * line.step[2];
            // Positions are not negative, so the conversion rounds down.
            let (whole_z, whole_y, whole_x) = (z as i32, y as i32, x as i32);
            fraction[0][lane] = z - whole_z as f32;
            fraction[1][lane] = y - whole_y as f32;
            fraction[2][lane] = x - whole_x as f32;
            let row = whole_z.wrapping_sub(self.first[0]).wrapping_mul(self.extent[0]).wrapping_add(whole_y);
            let row = row.wrapping_sub(self.first[1]).wrapping_mul(self.extent[1]);
            first[lane] = row.wrapping_add(whole_x).wrapping_sub(self.first[2]) as u32;
        }
        (first, fraction)
    }

    /// Panics if a neighbor of one of these voxels is not among `len` values.
    #[inline(always)]
    fn check(&self, first: &[u32; BLOCK], len: usize) {
        let mut last = 0;
        for &first in first {
            last = if first > last { first } else { last };
        }
        assert!(last as usize + self.steps[3] + 1 < len, "a neighbor is outside the case");
    }

    /// Returns the neighbors of a position as four pairs that are adjacent along x.
    ///
    /// # Safety
    /// All of them must be within `values`, see [`Grid::check`].
    #[inline(always)]
    unsafe fn neighbours<T: Copy>(&self, values: &[T], first: u32) -> [[T; 2]; 4] {
        let [a, b, c, d] = self.steps;
        // SAFETY: the caller guarantees both values; an array of two values needs the same alignment as one value.
        let pair = |step: usize| unsafe { values.as_ptr().add(first as usize + step).cast::<[T; 2]>().read() };
        [pair(a), pair(b), pair(c), pair(d)]
    }
}

/// Interpolates the positions from `x` on. All their neighbors must be in `channel`, which starts at the grid's base.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn blend(channel: &[f32], grid: &Grid, line: &SourceLine, x: usize, target: &mut [f32]) {
    let end = x + target.len();
    for (target, x) in target.chunks_mut(BLOCK).zip((x..end).step_by(BLOCK)) {
        let (first, [fz, fy, fx]) = grid.locate(line, x, end);
        grid.check(&first, channel.len());
        for (lane, value) in target.iter_mut().enumerate() {
            // SAFETY: checked above for the whole block.
            let [[a0, a1], [b0, b1], [c0, c1], [d0, d1]] = unsafe { grid.neighbours(channel, first[lane]) };
            let near = [lerp(a0, b0, fy[lane]), lerp(a1, b1, fy[lane])];
            let far = [lerp(c0, d0, fy[lane]), lerp(c1, d1, fy[lane])];
            let pair = [lerp(near[0], far[0], fz[lane]), lerp(near[1], far[1], fz[lane])];
            *value = lerp(pair[0], pair[1], fx[lane]);
        }
    }
}

/// Computes the labels of the positions from `x` on. All their neighbors must be in `labels`, which starts at the
/// grid's base. In most cases all eight neighbors are equal.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn vote_row(labels: &[i16], grid: &Grid, line: &SourceLine, x: usize, target: &mut [i16]) {
    let end = x + target.len();
    for (target, x) in target.chunks_mut(BLOCK).zip((x..end).step_by(BLOCK)) {
        let (first, [fz, fy, fx]) = grid.locate(line, x, end);
        grid.check(&first, labels.len());
        for (lane, label) in target.iter_mut().enumerate() {
            // SAFETY: checked above for the whole block.
            let [a, b, c, d] = unsafe { grid.neighbours(labels, first[lane]) };
            *label = if a[0] == a[1] && a == b && a == c && a == d {
                a[0]
            } else {
                let neighbours = [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]];
                majority_label(neighbours, [fz[lane], fy[lane], fx[lane]])
            };
        }
    }
}

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
    fn majority(&self, labels: &[i16]) -> i16 {
        let labels = self.index.map(|index| index.map_or(OUTSIDE_LABEL, |index| labels[index]));
        if labels.iter().all(|label| *label == labels[0]) { labels[0] } else { majority_label(labels, self.fraction) }
    }
}

/// Returns the label with the largest sum of linear weights among eight neighbors. Ties go to the label of the nearest
/// neighbor or, if it is not tied, to the smallest label.
fn majority_label(labels: [i16; 8], fraction: [f32; 3]) -> i16 {
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
        resample((&source).into(), &mut target, &IDENTITY);
        assert_eq!(source, target);
    }

    #[test]
    fn linear_interpolation_is_exact_on_a_gradient_and_zero_outside() {
        let source = gradient([9, 9, 9]);
        let mut target = blank_patch(2, [9, 9, 9]);
        let half = IDENTITY.map(|row| row.map(|value| value * 0.75));
        resample((&source).into(), &mut target, &half);
        // Target voxel (0, 8, 4) maps to 4 + 0.75 * (-4, 4, 0) = (1, 7, 4) of the source.
        assert_eq!(target.data[[0, 0, 8, 4]], 174.0);
        assert_eq!(target.data[[1, 0, 8, 4]], 348.0);
        assert!((target.data[[0, 1, 4, 4]] - (100.0 * 1.75 + 44.0)).abs() < 1e-3);

        let double = IDENTITY.map(|row| row.map(|value| value * 2.0));
        resample((&source).into(), &mut target, &double);
        assert_eq!((target.data[[0, 0, 4, 4]], target.labels[[0, 4, 4]]), (0.0, -1));
        assert_eq!(target.data[[0, 4, 4, 4]], 444.0);
    }

    #[test]
    fn a_quarter_turn_permutes_voxels() {
        let source = gradient([3, 5, 5]);
        let mut target = blank_patch(2, [3, 5, 5]);
        resample((&source).into(), &mut target, &[[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]);
        for ((z, y, x), &label) in target.labels.indexed_iter() {
            assert_eq!(label, source.labels[[z, 4 - x, y]]);
            assert_eq!(target.data[[1, z, y, x]], source.data[[1, z, 4 - x, y]]);
        }
    }

    #[test]
    fn every_voxel_equals_the_stencil_at_its_position() {
        let case = gradient([9, 11, 10]);
        let turned = [[0.9, 0.3, -0.2], [-0.25, 0.85, 0.4], [0.3, -0.35, 0.8]];
        let flat = [[1.0, 0.0, 0.0], [0.0, 0.6, 0.7], [0.0, -0.7, 0.6]];
        // Cases: with a margin, with padding on every side, within one slice, and entirely outside the case.
        for (matrix, lo, size, shape) in [
            (turned, [1, 2, 1], [7, 8, 8], [3, 4, 4]),
            (turned, [-3, -2, -4], [15, 15, 18], [12, 13, 20]),
            (flat, [8, -2, 0], [1, 14, 9], [1, 9, 18]),
            (flat, [-1, -1, -1], [11, 13, 12], [11, 9, 12]),
            (turned, [20, 0, 0], [4, 4, 4], [4, 4, 4]),
        ] {
            let source = Region { lo, size, ..Region::from(&case) };
            let mut target = blank_patch(2, shape);
            resample(source, &mut target, &matrix);
            for ((z, y, x), &label) in target.labels.indexed_iter() {
                let offset = [z, y, x].map(|at| at as f64);
                let position = std::array::from_fn(|axis| {
                    let turned = (0..3).map(|k| matrix[axis][k] * (offset[k] - (shape[k] as f64 - 1.0) / 2.0));
                    (turned.sum::<f64>() + (size[axis] as f64 - 1.0) / 2.0) as f32
                });
                let stencil = Stencil::at(position, &source, &source.voxels());
                for (channel, data) in source.channels().enumerate() {
                    let (value, expected) = (target.data[[channel, z, y, x]], stencil.blend(data));
                    assert!((value - expected).abs() < 0.02, "{value} instead of {expected} at {position:?}");
                }
                // Halfway between two labels, rounding of the position decides.
                if position.iter().all(|at| (at - at.floor() - 0.5).abs() > 1e-3) {
                    assert_eq!(label, stencil.majority(source.labels), "at {position:?}");
                }
            }
        }
    }

    #[test]
    fn the_label_with_the_largest_total_weight_wins() {
        let flat = |labels: [i16; 4]| std::array::from_fn(|k| labels[k & 3]);
        // Two corners of label 7 outweigh the single nearest one of label 3.
        assert_eq!(majority_label(flat([3, 7, 7, 1]), [0.0, 0.45, 0.45]), 7);
        // An exact tie goes to the nearest neighbor or, if all are equally near, to the first.
        assert_eq!(majority_label(flat([5, 2, 5, 2]), [0.0, 0.0, 0.5]), 5);
        assert_eq!(majority_label(flat([5, 2, 5, 2]), [0.0, 0.0, 0.5001]), 2);
    }

    #[test]
    fn padding_counts_as_intensity_0_and_label_outside() {
        let (data, labels) = ([4.0, 8.0], [1, 2]);
        let case =
            Region { data: &data, labels: &labels, previous: None, shape: [1, 1, 2], lo: [0; 3], size: [1, 1, 2] };
        let source = Region { lo: [0, 0, -1], size: [1, 1, 4], ..case };
        let stencil = |x: f32| Stencil::at([0.0, 0.0, x], &source, &source.voxels());
        assert_eq!([0.25, 1.5, 2.75].map(|x| stencil(x).blend(&data)), [1.0, 6.0, 2.0]);
        assert_eq!([0.25, 0.75, 1.0, 2.25, 2.75, 3.0].map(|x| stencil(x).majority(&labels)), [-1, 1, 1, 2, -1, -1]);
    }
}
