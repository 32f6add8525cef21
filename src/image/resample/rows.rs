//! Spline arithmetic on interleaved lines: sample `k` of all lines is row `k` of a buffer.
//!
//! Every loop runs along a row, over contiguous memory. All functions are inlined into functions that are compiled for
//! several vector widths. The loops are plain loops because iterator closures are not guaranteed to be inlined with
//! them.

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
