//! Spline interpolation of lines: positions and weights of the new samples, and sums and filters of rows.
//!
//! The arithmetic works on interleaved lines: sample `k` of all lines is row `k` of a buffer. Every loop runs along a
//! row, over contiguous memory. All functions are inlined into functions that are compiled for several vector widths.
//! The loops are plain loops because iterator closures are not guaranteed to be inlined with them.

/// For each new sample of a line, its first input sample and the weights from there on.
pub struct Taps {
    /// Number of weights used: 1, 2 or 4 for nearest, linear and cubic.
    pub support: usize,
    /// Samples by which the line is extended on either side, to cover the support of the spline beyond the border.
    /// Positions count from the first of these.
    pub margin: usize,
    /// Position of the first sample, and the weights.
    pub taps: Vec<(usize, [f32; 4])>,
}

impl Taps {
    /// Resamples `from` samples to `to` samples over the same length.
    ///
    /// # Panics
    /// Panics if `order` is not 0, 1 or 3; plans are validated when they are read.
    pub fn new(order: usize, from: usize, to: usize) -> Self {
        let positions = positions(from, to);
        match order {
            0 => Self { support: 1, margin: 0, taps: positions.map(|at| (nearest(at, from), [1.0; 4])).collect() },
            1 => {
                let tap = |position| {
                    let (first, part) = linear(position, from);
                    (first, [1.0 - part as f32, part as f32, 0.0, 0.0])
                };
                // The margin is needed for lines of one sample, which have no second one.
                Self { support: 2, margin: 1, taps: positions.map(tap).map(|(first, w)| (first + 1, w)).collect() }
            }
            3 => {
                let tap = |position: f64| {
                    let first = position.floor();
                    ((first + 1.0) as usize, cubic_weights(position - first))
                };
                Self { support: 4, margin: 2, taps: positions.map(tap).collect() }
            }
            _ => panic!("spline order {order} is not 0, 1 or 3"),
        }
    }

    /// Whether the weights apply to spline coefficients, which must be computed first.
    pub fn needs_coefficients(&self) -> bool {
        self.support == 4
    }
}

/// Centers of the new samples in units of the old samples.
pub fn positions(from: usize, to: usize) -> impl Iterator<Item = f64> {
    let scale = from as f64 / to as f64;
    (0..to).map(move |index| scale * (index as f64 + 0.5) - 0.5)
}

/// Index of the sample nearest to a position; halves round up.
pub fn nearest(position: f64, len: usize) -> usize {
    (position.clamp(0.0, (len - 1) as f64) + 0.5).floor() as usize
}

/// Index of the sample at or before a position, and the fraction of the way to the next, `0.0..1.0`.
pub fn linear(position: f64, len: usize) -> (usize, f64) {
    let position = position.clamp(0.0, (len - 1) as f64);
    let first = (position.floor() as usize).min(len.saturating_sub(2));
    (first, position - first as f64)
}

/// Cubic B-spline at distances `1 + t, t, 1 - t, 2 - t`.
fn cubic_weights(t: f64) -> [f32; 4] {
    let outer = |t: f64| t * t * t / 6.0;
    let inner = |t: f64| (4.0 - 6.0 * t * t + 3.0 * t * t * t) / 6.0;
    [outer(1.0 - t), inner(t), inner(1.0 - t), outer(t)].map(|weight| weight as f32)
}

/// Fills the margins of `rows`, which are `width` wide, with copies of the first and the last inner row.
#[inline(always)]
pub fn extend_edges(rows: &mut [f32], width: usize, margin: usize) {
    let len = rows.len() / width;
    for k in 0..margin {
        rows.copy_within(margin * width..(margin + 1) * width, k * width);
        rows.copy_within((len - margin - 1) * width..(len - margin) * width, (len - 1 - k) * width);
    }
}

/// `out = sum of weights[k] * row k of rows`, over the first `support` rows (1, 2 or 4).
#[inline(always)]
pub fn weighted_sum(rows: &[f32], width: usize, weights: &[f32; 4], support: usize, out: &mut [f32]) {
    let [b, c, d] = [1, 2, 3].map(|k: usize| k.min(support - 1) * width);
    weighted_sum_of_rows([rows, &rows[b..], &rows[c..], &rows[d..]], weights, support, out);
}

/// [`weighted_sum`] of rows at arbitrary addresses, each at the start of its slice.
#[inline(always)]
pub fn weighted_sum_of_rows(rows: [&[f32]; 4], weights: &[f32; 4], support: usize, out: &mut [f32]) {
    let len = out.len();
    let [a, b, c, d] = rows;
    let [a, b, c, d] = [&a[..len], &b[..len], &c[..len], &d[..len]];
    let [p, q, r, s] = *weights;
    match support {
        1 => out.copy_from_slice(a),
        2 => {
            for i in 0..len {
                out[i] = p * a[i] + q * b[i];
            }
        }
        _ => {
            for i in 0..len {
                out[i] = p * a[i] + q * b[i] + r * c[i] + s * d[i];
            }
        }
    }
}

/// Converts samples, with margins of at least two rows, to the coefficients of the interpolating cubic spline.
///
/// Recursive filter of Unser et al. 1993 for a signal whose first and last sample extend to infinity: the initial
/// values of both passes are those of a constant signal, in closed form.
#[inline(always)]
pub fn to_coefficients(rows: &mut [f32], width: usize) {
    let pole = 3f32.sqrt() - 2.0;
    let steady = 6.0 / (1.0 - pole);
    let len = rows.len() / width;
    for value in &mut rows[..width] {
        *value *= steady;
    }
    for k in 1..len {
        let (before, row) = rows[(k - 1) * width..(k + 1) * width].split_at_mut(width);
        for (value, before) in row.iter_mut().zip(before) {
            *value = 6.0 * *value + pole * *before;
        }
    }
    // The last samples are the margin's, all equal; there the causal filter converges to `steady` geometrically.
    let (before, last) = rows[(len - 2) * width..].split_at_mut(width);
    for (last, before) in last.iter_mut().zip(before) {
        let sample = (*last - pole * *before) / 6.0;
        *last = sample - pole / (1.0 - pole * pole) * (*last - steady * sample);
    }
    for k in (1..len).rev() {
        let (row, next) = rows[(k - 1) * width..(k + 1) * width].split_at_mut(width);
        for (value, next) in row.iter_mut().zip(next) {
            *value = pole * (*next - *value);
        }
    }
}
