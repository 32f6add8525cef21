//! Resampling within a plane, which fits into the cache of a core.

use multiversion::multiversion;

use super::spline::Taps;
use super::spline::{extend_edges, to_coefficients, weighted_sum};

/// Number of rows interpolated along x at once.
const BLOCK: usize = 16;

/// Resamples planes from one `[y, x]` size to another.
pub struct PlaneResampler<'a> {
    from: [usize; 2],
    to: [usize; 2],
    /// Along y and x; `None` if the size does not change.
    taps: [Option<&'a Taps>; 2],
    /// The plane, with margins along y.
    plane: Vec<f32>,
    /// Rows resampled along y.
    rows: Vec<f32>,
    /// `rows` transposed, with margins along x; and the same resampled along x.
    columns: Vec<[f32; BLOCK]>,
    resampled: Vec<[f32; BLOCK]>,
}

impl<'a> PlaneResampler<'a> {
    /// Resamples planes of `from` samples `[y, x]` to `to` samples.
    pub fn new(from: [usize; 2], to: [usize; 2], taps: [Option<&'a Taps>; 2]) -> Self {
        let [margin_y, margin_x] = taps.map(|taps| taps.map_or(0, |taps| taps.margin));
        Self {
            from,
            to,
            taps,
            plane: vec![0.0; (from[0] + 2 * margin_y) * from[1]],
            rows: vec![0.0; BLOCK * from[1]],
            columns: vec![[0.0; BLOCK]; from[1] + 2 * margin_x],
            resampled: vec![[0.0; BLOCK]; to[1]],
        }
    }

    /// Fills `out` with the resampled plane. `load` writes the input plane into the buffer it gets. Values are clipped
    /// to `range`.
    pub fn resample(&mut self, load: impl FnOnce(&mut [f32]), out: &mut [f32], range: [f32; 2]) {
        let margin = self.taps[0].map_or(0, |taps| taps.margin);
        load(&mut self.plane[margin * self.from[1]..][..self.from[0] * self.from[1]]);
        resample_loaded(self, out, range);
    }

    /// Resamples `count` output rows, starting with row `first`, along y into `rows`.
    #[inline(always)]
    fn interpolate_y(&mut self, first: usize, count: usize) {
        let width = self.from[1];
        for (k, row) in self.rows.chunks_exact_mut(width).take(count).enumerate() {
            match self.taps[0] {
                Some(taps) => {
                    let (tap, weights) = &taps.taps[first + k];
                    weighted_sum(&self.plane[tap * width..], width, weights, taps.support, row);
                }
                None => row.copy_from_slice(&self.plane[(first + k) * width..(first + k + 1) * width]),
            }
        }
    }

    /// Resamples `rows` along x into `out`.
    #[inline(always)]
    fn interpolate_x(&mut self, taps: &Taps, out: &mut [f32], [low, high]: [f32; 2]) {
        let (width, margin) = (self.from[1], taps.margin);
        for (x, column) in self.columns[margin..margin + width].iter_mut().enumerate() {
            for (k, value) in column.iter_mut().enumerate() {
                *value = self.rows[k * width + x];
            }
        }
        let columns = self.columns.as_flattened_mut();
        extend_edges(columns, BLOCK, margin);
        if taps.needs_coefficients() {
            to_coefficients(columns, BLOCK);
        }
        for ((tap, weights), column) in taps.taps.iter().zip(&mut self.resampled) {
            weighted_sum(&columns[tap * BLOCK..], BLOCK, weights, taps.support, column);
            for value in column {
                *value = clip(*value, low, high);
            }
        }
        for (k, row) in out.chunks_exact_mut(self.to[1]).enumerate() {
            for (value, column) in row.iter_mut().zip(&self.resampled) {
                *value = column[k];
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn resample_loaded(resampler: &mut PlaneResampler, out: &mut [f32], range: [f32; 2]) {
    let PlaneResampler { from, to, taps, .. } = *resampler;
    if let Some(taps) = taps[0] {
        extend_edges(&mut resampler.plane, from[1], taps.margin);
        if taps.needs_coefficients() {
            to_coefficients(&mut resampler.plane, from[1]);
        }
    }
    for (block, out) in out.chunks_mut(BLOCK * to[1]).enumerate() {
        resampler.interpolate_y(block * BLOCK, out.len() / to[1]);
        match taps[1] {
            Some(taps) => resampler.interpolate_x(taps, out, range),
            None => {
                for (value, row) in out.iter_mut().zip(&resampler.rows) {
                    *value = clip(*row, range[0], range[1]);
                }
            }
        }
    }
}

/// Like `f32::clamp`, but does not panic if `low > high`, the range of an image that is all NaN.
#[inline(always)]
fn clip(value: f32, low: f32, high: f32) -> f32 {
    let value = if value < low { low } else { value };
    if value > high { high } else { value }
}
