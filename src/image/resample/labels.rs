//! Resampling of label maps: linear interpolation of each class indicator, then back to one label per voxel.

use ndarray::{Array3, ArrayView3, Axis, s};
use rayon::prelude::*;

use super::Resampling;
use super::spline::{linear, nearest, positions};

/// Resamples labels `(z, y, x)` to `new_shape` (`resize_segmentation` of batchgenerators).
///
/// With order 1 a voxel gets the label whose interpolated indicator is at least 0.5, the largest if there are two, and
/// 0 if there is none. Other orders use nearest neighbor. The spacings, in mm, only determine whether an axis is
/// resampled separately.
pub fn resample_labels(
    labels: ArrayView3<i16>,
    new_shape: [usize; 3],
    current_spacing: [f64; 3],
    new_spacing: [f64; 3],
    resampling: &Resampling,
) -> Array3<i16> {
    let (z, y, x) = labels.dim();
    let shape = [z, y, x];
    if shape == new_shape {
        return labels.to_owned();
    }
    let separate = resampling.separate_axis(current_spacing, new_spacing);
    let interpolations: [Vec<Interpolation>; 3] = std::array::from_fn(|axis| {
        let order = if Some(axis) == separate { resampling.order_z } else { resampling.order };
        let (from, to) = (shape[axis], new_shape[axis]);
        positions(from, to).map(|position| Interpolation::at(position, from, order)).collect()
    });
    // Two passes, each with its own threshold at 0.5, are not equal to one: first in the plane, then along the separate
    // axis.
    match separate {
        Some(axis) if resampling.order_z == 1 => {
            let identity = |axis: usize| (0..shape[axis]).map(Interpolation::exactly).collect::<Vec<_>>();
            let in_plane = std::array::from_fn(|a| if a == axis { identity(a) } else { interpolations[a].clone() });
            let planes = interpolate(labels, &in_plane);
            let along = std::array::from_fn(|a| match a == axis {
                true => interpolations[a].clone(),
                false => (0..new_shape[a]).map(Interpolation::exactly).collect(),
            });
            interpolate(planes.view(), &along)
        }
        _ => interpolate(labels, &interpolations),
    }
}

/// Two neighbors of a new sample along one axis, and the weight of the second.
#[derive(Clone, Copy)]
struct Interpolation {
    first: usize,
    second: usize,
    fraction: f64,
}

impl Interpolation {
    fn at(position: f64, len: usize, order: usize) -> Self {
        if order != 1 {
            return Self::exactly(nearest(position, len));
        }
        let (first, fraction) = linear(position, len);
        if fraction == 0.0 { Self::exactly(first) } else { Self { first, second: first + 1, fraction } }
    }

    fn exactly(first: usize) -> Self {
        Self { first, second: first, fraction: 0.0 }
    }
}

/// Marks positions where the neighboring rows differ; larger than any label.
const MIXED_LABELS: i32 = i32::MAX;

fn interpolate(labels: ArrayView3<i16>, [zs, ys, xs]: &[Vec<Interpolation>; 3]) -> Array3<i16> {
    let labels = labels.as_standard_layout();
    let labels = labels.view();
    let mut out = Array3::zeros((zs.len(), ys.len(), xs.len()));
    out.axis_iter_mut(Axis(0)).into_par_iter().zip(zs).for_each_init(Vec::new, |common, (mut plane, z)| {
        for (mut row, y) in plane.outer_iter_mut().zip(ys) {
            common_labels(labels, z, y, common);
            for (label, x) in row.iter_mut().zip(xs) {
                // Fast path: nearly everywhere all neighbors have the same label.
                let one = common[x.first];
                *label = match one != MIXED_LABELS && one == common[x.second] {
                    true => one as i16,
                    false => majority_label(labels, [z, y, x]),
                };
            }
        }
    });
    out
}

/// For each x the label common to the four neighboring rows, or [`MIXED_LABELS`].
fn common_labels(labels: ArrayView3<i16>, z: &Interpolation, y: &Interpolation, common: &mut Vec<i32>) {
    let row = |k: usize, j: usize| labels.slice_move(s![k, j, ..]).to_slice().expect("in C order");
    let [a, b] = [row(z.first, y.first), row(z.first, y.second)];
    let [c, d] = [row(z.second, y.first), row(z.second, y.second)];
    let both = a.iter().zip(b).zip(c.iter().zip(d));
    common.clear();
    common.extend(both.map(|((a, b), (c, d))| if a == b && a == c && a == d { i32::from(*a) } else { MIXED_LABELS }));
}

/// The largest label that has at least half of the weight of the eight neighbors.
fn majority_label(labels: ArrayView3<i16>, [z, y, x]: [&Interpolation; 3]) -> i16 {
    let mut corners = [(0i16, 0f64); 8];
    for (index, corner) in corners.iter_mut().enumerate() {
        let pick = |interpolation: &Interpolation, second: bool| match second {
            true => (interpolation.second, interpolation.fraction),
            false => (interpolation.first, 1.0 - interpolation.fraction),
        };
        let [(k, wz), (j, wy), (i, wx)] = [pick(z, index & 4 != 0), pick(y, index & 2 != 0), pick(x, index & 1 != 0)];
        *corner = (labels[[k, j, i]], wz * wy * wx);
    }
    let weight = |label: i16| corners.iter().filter(|corner| corner.0 == label).map(|corner| corner.1).sum::<f64>();
    corners.iter().map(|corner| corner.0).filter(|label| weight(*label) >= 0.5).max().unwrap_or(0)
}
