//! Resampling of one channel, plane by plane.
//!
//! The only intermediate larger than a plane is the spline coefficients along z, which take as much memory as the
//! image. Each new plane is computed from four planes of coefficients, resampled along y and x while it is in the
//! cache, and written once.

use multiversion::multiversion;
use ndarray::{Array2, Array3, ArrayView3, ArrayViewMut3, Axis, CowArray, Ix3};
use rayon::prelude::*;

use super::plane::PlaneResampler;
use super::spline::Taps;
use super::spline::{extend_edges, to_coefficients, weighted_sum_of_rows};

/// Lines along z processed at once; few enough for the cache of a core.
const TILE: usize = 128;
/// Range that clips nothing.
const EVERYTHING: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];

/// Resamples `image` into `out` with the same order along all axes.
///
/// Splines of order 3 overshoot; they are clipped to the range of the image.
pub fn resample(image: ArrayView3<f32>, mut out: ArrayViewMut3<f32>, order: usize) {
    let image = image.as_standard_layout();
    let [z, y, x] = taps_of(&image, &out, order);
    let range = if order > 1 { range_of(values(&image)) } else { EVERYTHING };
    let planes = z.as_ref().map(|taps| Planes::new(&image, taps));
    let (from, to) = (in_plane(image.shape()), in_plane(out.shape()));
    out.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each_init(
        || PlaneResampler::new(from, to, [y.as_ref(), x.as_ref()]),
        |resampler, (k, mut plane)| {
            let plane = plane.as_slice_mut().expect("the result is in C order");
            let load = |buffer: &mut [f32]| match &planes {
                Some(planes) => planes.interpolate(k, buffer),
                None => buffer.copy_from_slice(&values(&image)[k * buffer.len()..(k + 1) * buffer.len()]),
            };
            resampler.resample(load, plane, range);
        },
    );
}

/// Resamples `image` into `out` slice by slice in the plane, then along z with a spline of order `order_z`.
///
/// Each slice is clipped to its own range.
pub fn resample_slices(image: ArrayView3<f32>, mut out: ArrayViewMut3<f32>, order: usize, order_z: usize) {
    let image = image.as_standard_layout();
    let [z, y, x] = taps_of(&image, &out, order);
    let (from, to) = (in_plane(image.shape()), in_plane(out.shape()));
    let slices = values(&image).par_chunks_exact(from.iter().product());
    let resampler = || PlaneResampler::new(from, to, [y.as_ref(), x.as_ref()]);
    let resample = |resampler: &mut PlaneResampler, slice: &[f32], out: &mut [f32]| {
        let range = if order > 1 { range_of(slice) } else { EVERYTHING };
        resampler.resample(|buffer| buffer.copy_from_slice(slice), out, range);
    };
    let area = to.iter().product();
    if z.is_none() {
        let out = out.as_slice_mut().expect("the result is in C order").par_chunks_exact_mut(area);
        slices.zip(out).for_each_init(resampler, |resampler, (slice, out)| resample(resampler, slice, out));
        return;
    }
    let taps = Taps::new(order_z, image.len_of(Axis(0)), out.len_of(Axis(0)));
    let mut resampled = Array3::zeros((image.len_of(Axis(0)), to[0], to[1]));
    let planes = resampled.as_slice_mut().expect("made in C order").par_chunks_exact_mut(area);
    slices.zip(planes).for_each_init(resampler, |resampler, (slice, out)| resample(resampler, slice, out));
    let resampled = CowArray::from(resampled);
    let planes = Planes::new(&resampled, &taps);
    let out = out.as_slice_mut().expect("the result is in C order").par_chunks_exact_mut(area);
    out.enumerate().for_each(|(k, out)| planes.interpolate(k, out));
}

/// Taps along each axis; `None` if the size does not change.
fn taps_of(image: &CowArray<f32, Ix3>, out: &ArrayViewMut3<f32>, order: usize) -> [Option<Taps>; 3] {
    let extents = |axis: usize| (image.shape()[axis], out.shape()[axis]);
    std::array::from_fn(|axis| Some(extents(axis)).filter(|(from, to)| from != to))
        .map(|extents| extents.map(|(from, to)| Taps::new(order, from, to)))
}

/// Interpolation along z: source planes and taps.
struct Planes<'a> {
    /// One plane per row: coefficients with margins, or the image without margins.
    source: CowArray<'a, f32, ndarray::Ix2>,
    taps: &'a Taps,
}

impl<'a> Planes<'a> {
    fn new(image: &'a CowArray<f32, Ix3>, taps: &'a Taps) -> Self {
        let (z, y, x) = image.dim();
        let image = image.view().into_shape_with_order((z, y * x)).expect("in C order");
        if !taps.needs_coefficients() {
            return Self { source: image.into(), taps };
        }
        let mut coefficients = Array2::zeros((z + 2 * taps.margin, y * x));
        let tiles = coefficients.axis_chunks_iter_mut(Axis(1), TILE).into_par_iter();
        tiles.zip(image.axis_chunks_iter(Axis(1), TILE).into_par_iter()).for_each_init(
            Vec::new,
            |buffer, (mut out, lines)| {
                let width = lines.ncols();
                buffer.resize(out.nrows() * width, 0.0);
                for (row, line) in buffer.chunks_exact_mut(width).skip(taps.margin).zip(lines.rows()) {
                    row.copy_from_slice(line.as_slice().expect("rows are contiguous"));
                }
                fill_coefficients(buffer, width, taps.margin);
                for (mut out, row) in out.rows_mut().into_iter().zip(buffer.chunks_exact(width)) {
                    out.as_slice_mut().expect("rows are contiguous").copy_from_slice(row);
                }
            },
        );
        Self { source: coefficients.into(), taps }
    }

    /// Computes plane `k` of the new image.
    fn interpolate(&self, k: usize, out: &mut [f32]) {
        let (first, weights) = &self.taps.taps[k];
        let has_margin = self.taps.needs_coefficients();
        let rows = [0, 1, 2, 3].map(|tap| {
            // A source without margins is extended by its first and last planes.
            let row = if has_margin { first + tap } else { (first + tap).saturating_sub(self.taps.margin) };
            let row = self.source.row(row.min(self.source.nrows() - 1));
            row.to_slice().expect("planes are contiguous")
        });
        sum_of_planes(rows, weights, self.taps.support, out);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn fill_coefficients(rows: &mut [f32], width: usize, margin: usize) {
    extend_edges(rows, width, margin);
    to_coefficients(rows, width);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sum_of_planes(planes: [&[f32]; 4], weights: &[f32; 4], support: usize, out: &mut [f32]) {
    weighted_sum_of_rows(planes, weights, support, out);
}

/// Smallest and largest value.
fn range_of(values: &[f32]) -> [f32; 2] {
    let ranges = values.par_chunks(1 << 16).map(range_in);
    ranges.reduce(|| [f32::INFINITY, f32::NEG_INFINITY], |[a, b], [c, d]| [a.min(c), b.max(d)])
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn range_in(values: &[f32]) -> [f32; 2] {
    const LANES: usize = 32;
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for values in chunks.chain([rest]) {
        for ((value, low), high) in values.iter().zip(&mut low).zip(&mut high) {
            *low = if *value < *low { *value } else { *low };
            *high = if *value > *high { *value } else { *high };
        }
    }
    [low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max)]
}

fn values<'a>(image: &'a CowArray<f32, Ix3>) -> &'a [f32] {
    image.as_slice().expect("in C order")
}

fn in_plane(shape: &[usize]) -> [usize; 2] {
    [shape[1], shape[2]]
}
