//! Spline resampling along one axis.

use ndarray::{Array3, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

/// Lines resampled side by side, so that the arithmetic runs over contiguous memory along any axis.
const WIDTH: usize = 32;
/// Samples by which a line is continued on either side: as far as a cubic spline reaches beyond the border voxel.
const MARGIN: usize = 2;

/// For each output position, the first input position it is made of and the weights from there on.
pub enum Taps {
    Nearest(Vec<usize>),
    Linear(Vec<(usize, [f32; 2])>),
    /// Weights of spline coefficients; positions count from [`MARGIN`] before the line.
    Cubic(Vec<(usize, [f32; 4])>),
}

impl Taps {
    /// From `from` to `to` samples that cover the same length.
    ///
    /// # Panics
    /// If `order` is not 0, 1 or 3; plans are checked for that when they are read.
    pub fn new(order: usize, from: usize, to: usize) -> Self {
        let positions = positions(from, to);
        match order {
            0 => Self::Nearest(positions.map(|position| nearest(position, from)).collect()),
            1 => Self::Linear(
                positions
                    .map(|position| {
                        let (first, part) = linear(position, from);
                        (first, [1.0 - part as f32, part as f32])
                    })
                    .collect(),
            ),
            3 => Self::Cubic(
                positions
                    .map(|position| {
                        let first = position.floor();
                        ((first + MARGIN as f64 - 1.0) as usize, cubic_weights(position - first))
                    })
                    .collect(),
            ),
            _ => panic!("spline order {order} is not 0, 1 or 3"),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Nearest(taps) => taps.len(),
            Self::Linear(taps) => taps.len(),
            Self::Cubic(taps) => taps.len(),
        }
    }
}

/// Where the centres of the new samples lie among the old.
pub fn positions(from: usize, to: usize) -> impl Iterator<Item = f64> {
    let scale = from as f64 / to as f64;
    (0..to).map(move |index| scale * (index as f64 + 0.5) - 0.5)
}

/// The sample nearest to a position; halves go up.
pub fn nearest(position: f64, len: usize) -> usize {
    (position.clamp(0.0, (len - 1) as f64) + 0.5).floor() as usize
}

/// The sample at or before a position and how far from it to the next the position lies, `0.0..1.0`.
pub fn linear(position: f64, len: usize) -> (usize, f64) {
    let position = position.clamp(0.0, (len - 1) as f64);
    let first = (position.floor() as usize).min(len.saturating_sub(2));
    (first, position - first as f64)
}

/// The cubic B-spline at distances `1 + t, t, 1 - t, 2 - t`.
fn cubic_weights(t: f64) -> [f32; 4] {
    let outer = |t: f64| t * t * t / 6.0;
    let inner = |t: f64| (4.0 - 6.0 * t * t + 3.0 * t * t * t) / 6.0;
    [outer(1.0 - t), inner(t), inner(1.0 - t), outer(t)].map(|weight| weight as f32)
}

/// Resamples `axis` of an image; nothing is done where no extent changes.
pub fn resample(image: Array3<f32>, axis: usize, taps: &Taps) -> Array3<f32> {
    if image.len_of(Axis(axis)) == taps.len() {
        return image;
    }
    let mut shape = image.raw_dim();
    shape[axis] = taps.len();
    let mut resampled = Array3::zeros(shape);
    // Lines side by side are neighbours in memory where that is possible; the remaining axis is shared out to threads.
    let (beside, shared) = match axis {
        0 => (2, 1),
        1 => (2, 0),
        _ => (1, 0),
    };
    resampled
        .axis_iter_mut(Axis(shared))
        .into_par_iter()
        .zip(image.axis_iter(Axis(shared)).into_par_iter())
        .for_each_init(Vec::new, |buffer, (mut out, lines)| {
            // Rows along the axis, columns side by side.
            let (mut out, lines) = match axis < beside {
                true => (out.view_mut(), lines),
                false => (out.view_mut().reversed_axes(), lines.reversed_axes()),
            };
            let tiles = out.axis_chunks_iter_mut(Axis(1), WIDTH).zip(lines.axis_chunks_iter(Axis(1), WIDTH));
            tiles.for_each(|(out, lines)| resample_tile(lines, out, taps, buffer));
        });
    resampled
}

/// Resamples the columns of `lines` into those of `out`.
fn resample_tile(lines: ArrayView2<f32>, mut out: ArrayViewMut2<f32>, taps: &Taps, buffer: &mut Vec<[f32; WIDTH]>) {
    match taps {
        Taps::Nearest(taps) => {
            for (mut row, tap) in out.outer_iter_mut().zip(taps) {
                row.assign(&lines.row(*tap));
            }
        }
        Taps::Linear(taps) => {
            load(lines, 0, buffer);
            // A line of one sample has no second.
            buffer.push(*buffer.last().expect("images are not empty"));
            apply(taps, buffer, out);
        }
        Taps::Cubic(taps) => {
            load(lines, MARGIN, buffer);
            to_coefficients(buffer);
            apply(taps, buffer, out);
        }
    }
}

/// Copies the columns into the buffer and repeats the border samples `margin` times.
fn load(lines: ArrayView2<f32>, margin: usize, buffer: &mut Vec<[f32; WIDTH]>) {
    let (len, width) = lines.dim();
    buffer.clear();
    buffer.resize(len + 2 * margin, [0.0; WIDTH]);
    for (row, line) in buffer[margin..].iter_mut().zip(lines.outer_iter()) {
        row[..width].iter_mut().zip(line).for_each(|(to, from)| *to = *from);
    }
    let (first, last) = (buffer[margin], buffer[margin + len - 1]);
    buffer[..margin].fill(first);
    buffer[margin + len..].fill(last);
}

fn apply<const N: usize>(taps: &[(usize, [f32; N])], buffer: &[[f32; WIDTH]], mut out: ArrayViewMut2<f32>) {
    for (mut row, (first, weights)) in out.outer_iter_mut().zip(taps) {
        let mut sums = [0.0f32; WIDTH];
        for (weight, source) in weights.iter().zip(&buffer[*first..first + N]) {
            sums.iter_mut().zip(source).for_each(|(sum, value)| *sum += weight * value);
        }
        row.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum);
    }
}

/// Turns samples, with their margins, into the coefficients of the cubic spline through them.
///
/// The recursive filter of Unser et al. 1993, for a signal whose first and last sample go on for ever: its start and
/// end are those of a constant, known in closed form.
fn to_coefficients(buffer: &mut [[f32; WIDTH]]) {
    let pole = 3f32.sqrt() - 2.0;
    let steady = 6.0 / (1.0 - pole);
    let mut previous = buffer[0].map(|value| steady * value);
    for row in buffer.iter_mut() {
        for (value, previous) in row.iter_mut().zip(&mut previous) {
            *previous = 6.0 * *value + pole * *previous;
            *value = *previous;
        }
    }
    // The last samples are the margin's, all alike: there the causal filter nears `steady` geometrically.
    let [before, last] = [buffer[buffer.len() - 2], buffer[buffer.len() - 1]];
    let mut next = [0.0; WIDTH];
    for (column, next) in next.iter_mut().enumerate() {
        let sample = (last[column] - pole * before[column]) / 6.0;
        *next = sample - pole / (1.0 - pole * pole) * (last[column] - steady * sample);
    }
    let end = buffer.len() - 1;
    buffer[end] = next;
    for row in buffer[..end].iter_mut().rev() {
        for (value, next) in row.iter_mut().zip(&mut next) {
            *next = pole * (*next - *value);
            *value = *next;
        }
    }
}
