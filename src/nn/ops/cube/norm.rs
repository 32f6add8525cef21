//! Fused instance norm and leaky ReLU: one pass forward and one backward, each after a reduction pass.
//!
//! Reductions have two levels, the rows of a cube and then the parts of a sample. They are therefore deterministic and
//! avoid the rounding errors of long chains of additions.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::runtime::{RowGeometry, Rows, UNITS, UnitRows, allocate, contiguous, vector_size};
use crate::ops::NormParams;

/// Sums two values over the units of one column; the units of the cube's first row have the results.
#[cube]
fn sum_of_column<N: Size>(
    first: Vector<f32, N>,
    second: Vector<f32, N>,
    columns: usize,
    stride: usize,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let mut firsts = SharedMemory::<Vector<f32, N>>::new(comptime!(UNITS));
    let mut seconds = SharedMemory::<Vector<f32, N>>::new(comptime!(UNITS));
    let unit = UNIT_POS as usize;
    firsts[unit] = first;
    seconds[unit] = second;
    sync_cube();
    let mut first = first;
    let mut second = second;
    if unit < columns {
        for row in 1..stride {
            first += firsts[row * columns + unit];
            second += seconds[row * columns + unit];
        }
    }
    (first, second)
}

/// Stores a cube's two sums of one column, `(n, parts, 2, columns)`.
#[cube]
fn store_partials<N: Size>(
    partials: &mut Array<Vector<f32, N>>,
    first: Vector<f32, N>,
    second: Vector<f32, N>,
    columns: usize,
    unit: UnitRows,
) {
    if unit.is_first {
        let cube = unit.sample * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
        let place = 2 * cube * columns + unit.column;
        partials[place] = first;
        partials[place + columns] = second;
    }
}

/// Sums `x - x0` and its square over the rows of a cube, with `x0` the sample's first row. The shift keeps the variance
/// accurate for values far from 0.
#[cube(launch)]
fn moments<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    partials: &mut Array<Vector<f32, N>>,
    rows: Rows,
    #[define(F)] _dtype: StorageType,
) {
    let unit = rows.unit();
    let shift = Vector::<f32, N>::cast_from(x[unit.base]);
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut row = unit.begin;
    while row < unit.end {
        let value = Vector::<f32, N>::cast_from(x[unit.base + row * rows.columns]) - shift;
        sum += value;
        squares += value * value;
        row += unit.stride;
    }
    let (sum, squares) = sum_of_column::<N>(sum, squares, rows.columns, unit.stride);
    store_partials::<N>(partials, sum, squares, rows.columns, unit);
}

/// Computes mean and 1 / standard deviation of a sample from the sums of its parts; one cube per sample.
#[cube(launch)]
fn statistics_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    partials: &Array<Vector<f32, N>>,
    statistics: &mut Array<Vector<f32, N>>,
    rows: usize,
    columns: usize,
    parts: usize,
    eps: f32,
    #[define(F)] _dtype: StorageType,
) {
    let sample = CUBE_POS_X as usize;
    let (sum, squares) = sum_of_parts::<N>(partials, sample, columns, parts);
    let column = UNIT_POS as usize;
    if column < columns {
        let count = Vector::<f32, N>::new(rows as f32);
        let shift = Vector::<f32, N>::cast_from(x[sample * rows * columns + column]);
        let offset = sum / count;
        let variance = squares / count - offset * offset;
        let variance = max(variance, Vector::<f32, N>::new(0.0));
        let samples = CUBE_COUNT_X as usize;
        statistics[sample * columns + column] = shift + offset;
        statistics[(samples + sample) * columns + column] =
            Vector::<f32, N>::new(1.0) / Vector::sqrt(variance + Vector::<f32, N>::new(eps));
    }
}

/// Adds up the two sums of a sample's parts; the units of the first row have the results.
#[cube]
fn sum_of_parts<N: Size>(
    partials: &Array<Vector<f32, N>>,
    sample: usize,
    columns: usize,
    parts: usize,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let stride = comptime!(UNITS) / columns;
    let column = UNIT_POS as usize % columns;
    let first_row = UNIT_POS as usize / columns;
    let mut first = Vector::<f32, N>::new(0.0);
    let mut second = Vector::<f32, N>::new(0.0);
    if first_row < stride {
        let mut part = first_row;
        while part < parts {
            let place = 2 * (sample * parts + part) * columns + column;
            first += partials[place];
            second += partials[place + columns];
            part += stride;
        }
    }
    sum_of_column::<N>(first, second, columns, stride)
}

/// Statistics and parameters of the norm.
#[derive(CubeType, CubeLaunch)]
struct NormArrays<N: Size> {
    /// Mean and 1 / standard deviation, `(2, n, columns)`.
    statistics: Array<Vector<f32, N>>,
    gamma: Array<Vector<f32, N>>,
    beta: Array<Vector<f32, N>>,
    /// Slope of the leaky ReLU for negative values.
    slope: f32,
}

/// The norm of one column of a sample.
#[derive(CubeType, Clone, Copy)]
struct ColumnNorm<N: Size> {
    mean: Vector<f32, N>,
    rstd: Vector<f32, N>,
    gamma: Vector<f32, N>,
    beta: Vector<f32, N>,
    slope: f32,
}

#[cube]
impl<N: Size> NormArrays<N> {
    fn column(&self, unit: UnitRows, columns: usize) -> ColumnNorm<N> {
        let samples = CUBE_COUNT_Y as usize;
        ColumnNorm::<N> {
            mean: self.statistics[unit.sample * columns + unit.column],
            rstd: self.statistics[(samples + unit.sample) * columns + unit.column],
            gamma: self.gamma[unit.column],
            beta: self.beta[unit.column],
            slope: self.slope,
        }
    }
}

/// Computes `leaky_relu((x - mean) * rstd * gamma + beta)`.
#[cube(launch)]
fn normalize<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    norm: NormArrays<N>,
    y: &mut Array<Vector<F, N>>,
    rows: Rows,
    #[define(F)] _dtype: StorageType,
) {
    let unit = rows.unit();
    let norm = norm.column(unit, rows.columns);
    let scale = norm.rstd * norm.gamma;
    let shift = norm.beta - norm.mean * scale;
    let mut row = unit.begin;
    while row < unit.end {
        let place = unit.base + row * rows.columns;
        let value = Vector::<f32, N>::cast_from(x[place]) * scale + shift;
        let negative = value.less_than(Vector::<f32, N>::new(0.0));
        y[place] = Vector::cast_from(select_many(negative, value * Vector::<f32, N>::new(norm.slope), value));
        row += unit.stride;
    }
}

/// Returns the gradient before the leaky ReLU and the normalized input.
#[cube]
fn before_activation<F: Float, N: Size>(
    x: Vector<F, N>,
    grad: Vector<F, N>,
    norm: ColumnNorm<N>,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let normalized = (Vector::<f32, N>::cast_from(x) - norm.mean) * norm.rstd;
    let grad = Vector::<f32, N>::cast_from(grad);
    let negative = (normalized * norm.gamma + norm.beta).less_than(Vector::<f32, N>::new(0.0));
    (select_many(negative, grad * Vector::<f32, N>::new(norm.slope), grad), normalized)
}

/// Sums, over the rows of a cube, the gradient before the activation, and that gradient times the normalized input.
#[cube(launch)]
fn gradient_sums<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    grad: &Array<Vector<F, N>>,
    norm: NormArrays<N>,
    partials: &mut Array<Vector<f32, N>>,
    rows: Rows,
    #[define(F)] _dtype: StorageType,
) {
    let unit = rows.unit();
    let norm = norm.column(unit, rows.columns);
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut projected = Vector::<f32, N>::new(0.0);
    let mut row = unit.begin;
    while row < unit.end {
        let place = unit.base + row * rows.columns;
        let (gradient, normalized) = before_activation::<F, N>(x[place], grad[place], norm);
        sum += gradient;
        projected += gradient * normalized;
        row += unit.stride;
    }
    let (sum, projected) = sum_of_column::<N>(sum, projected, rows.columns, unit.stride);
    store_partials::<N>(partials, sum, projected, rows.columns, unit);
}

/// Computes the sums of each sample `(2, n, c)` from those of its parts; one cube per sample.
#[cube(launch)]
fn sums_of_samples<N: Size>(
    partials: &Array<Vector<f32, N>>,
    sums: &mut Array<Vector<f32, N>>,
    columns: usize,
    parts: usize,
) {
    let sample = CUBE_POS_X as usize;
    let (sum, projected) = sum_of_parts::<N>(partials, sample, columns, parts);
    let column = UNIT_POS as usize;
    if column < columns {
        sums[sample * columns + column] = sum;
        sums[(CUBE_COUNT_X as usize + sample) * columns + column] = projected;
    }
}

/// Computes the gradients of scale and shift: the sums over all samples.
#[cube(launch)]
fn parameter_gradients<N: Size>(
    sums: &Array<Vector<f32, N>>,
    gamma: &mut Array<Vector<f32, N>>,
    beta: &mut Array<Vector<f32, N>>,
    samples: usize,
    columns: usize,
) {
    let column = UNIT_POS as usize;
    if column < columns {
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut projected = Vector::<f32, N>::new(0.0);
        for sample in 0..samples {
            sum += sums[sample * columns + column];
            projected += sums[(samples + sample) * columns + column];
        }
        beta[column] = sum;
        gamma[column] = projected;
    }
}

/// Computes `(g - mean(g) - x̂ mean(g x̂)) * gamma * rstd`, with `g` the gradient before the activation and `x̂` the
/// normalized input.
#[cube(launch)]
fn input_gradient<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    grad: &Array<Vector<F, N>>,
    norm: NormArrays<N>,
    sums: &Array<Vector<f32, N>>,
    output: &mut Array<Vector<F, N>>,
    rows: Rows,
    #[define(F)] _dtype: StorageType,
) {
    let unit = rows.unit();
    let norm = norm.column(unit, rows.columns);
    let samples = CUBE_COUNT_Y as usize;
    let count = Vector::<f32, N>::new(rows.rows as f32);
    let mean_gradient = sums[unit.sample * rows.columns + unit.column] / count;
    let mean_projected = sums[(samples + unit.sample) * rows.columns + unit.column] / count;
    let scale = norm.gamma * norm.rstd;
    let mut row = unit.begin;
    while row < unit.end {
        let place = unit.base + row * rows.columns;
        let (gradient, normalized) = before_activation::<F, N>(x[place], grad[place], norm);
        output[place] = Vector::cast_from((gradient - mean_gradient - normalized * mean_projected) * scale);
        row += unit.stride;
    }
}

/// Returns the launch geometry of an activation `(n, z, y, x, c)` and its vector size; `None` if it has too many
/// channels.
fn launch_geometry<R: CubeRuntime>(x: &CubeTensor<R>) -> Option<(RowGeometry, usize)> {
    let [n, z, y, width, c] = x.shape().dims();
    let size = vector_size(c, &[x.dtype, DType::F32]);
    Some((RowGeometry::new(n, z * y * width, c / size)?, size))
}

fn norm_arrays<N: Size, R: CubeRuntime>(
    statistics: &CubeTensor<R>,
    gamma: &CubeTensor<R>,
    beta: &CubeTensor<R>,
    params: NormParams,
) -> NormArraysLaunch<N, R> {
    let [statistics, gamma, beta] = [statistics, gamma, beta].map(|tensor| tensor.clone().into_array_arg());
    NormArraysLaunch::new(statistics, gamma, beta, params.negative_slope)
}

/// Returns the result and its statistics `(2, n, c)`; `None` if the activation has too many channels.
pub fn norm_act<R: CubeRuntime>(
    x: CubeTensor<R>,
    gamma: CubeTensor<R>,
    beta: CubeTensor<R>,
    params: NormParams,
) -> Option<(CubeTensor<R>, CubeTensor<R>)> {
    let (geometry, size) = launch_geometry(&x)?;
    let RowGeometry { samples, rows, columns, .. } = geometry;
    let (x, gamma, beta) = (contiguous(x), contiguous(gamma), contiguous(beta));
    let channels = columns * size;
    let (client, dtype) = (x.client.clone(), x.dtype);
    let (count, dim) = geometry.grid();
    let partials = allocate(&x, [samples, geometry.parts(), 2, channels], DType::F32);
    moments::launch::<R>(
        &client,
        count.clone(),
        dim,
        size,
        x.clone().into_array_arg(),
        partials.clone().into_array_arg(),
        geometry.arg(),
        dtype.into(),
    );
    let statistics = allocate(&x, [2, samples, channels], DType::F32);
    statistics_kernel::launch::<R>(
        &client,
        CubeCount::Static(samples as u32, 1, 1),
        dim,
        size,
        x.clone().into_array_arg(),
        partials.into_array_arg(),
        statistics.clone().into_array_arg(),
        rows,
        columns,
        geometry.parts(),
        params.eps,
        dtype.into(),
    );
    let y = allocate(&x, x.shape(), dtype);
    normalize::launch::<R>(
        &client,
        count,
        dim,
        size,
        x.into_array_arg(),
        norm_arrays(&statistics, &gamma, &beta, params),
        y.clone().into_array_arg(),
        geometry.arg(),
        dtype.into(),
    );
    Some((y, statistics))
}

/// Returns the gradients of input, scale and shift; `None` if the activation has too many channels.
pub fn norm_act_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    statistics: CubeTensor<R>,
    gamma: CubeTensor<R>,
    beta: CubeTensor<R>,
    grad: CubeTensor<R>,
    params: NormParams,
) -> Option<[CubeTensor<R>; 3]> {
    let (geometry, size) = launch_geometry(&x)?;
    let RowGeometry { samples, columns, .. } = geometry;
    let (x, grad) = (contiguous(x), contiguous(grad));
    let (gamma, beta, statistics) = (contiguous(gamma), contiguous(beta), contiguous(statistics));
    let channels = columns * size;
    let (client, dtype) = (x.client.clone(), x.dtype);
    let (count, dim) = geometry.grid();
    let partials = allocate(&x, [samples, geometry.parts(), 2, channels], DType::F32);
    gradient_sums::launch::<R>(
        &client,
        count.clone(),
        dim,
        size,
        x.clone().into_array_arg(),
        grad.clone().into_array_arg(),
        norm_arrays(&statistics, &gamma, &beta, params),
        partials.clone().into_array_arg(),
        geometry.arg(),
        dtype.into(),
    );
    let sums = allocate(&x, [2, samples, channels], DType::F32);
    sums_of_samples::launch::<R>(
        &client,
        CubeCount::Static(samples as u32, 1, 1),
        dim,
        size,
        partials.into_array_arg(),
        sums.clone().into_array_arg(),
        columns,
        geometry.parts(),
    );
    let (d_gamma, d_beta) = (allocate(&x, [channels], DType::F32), allocate(&x, [channels], DType::F32));
    parameter_gradients::launch::<R>(
        &client,
        CubeCount::Static(1, 1, 1),
        dim,
        size,
        sums.clone().into_array_arg(),
        d_gamma.clone().into_array_arg(),
        d_beta.clone().into_array_arg(),
        samples,
        columns,
    );
    let d_x = allocate(&x, x.shape(), dtype);
    input_gradient::launch::<R>(
        &client,
        count,
        dim,
        size,
        x.into_array_arg(),
        grad.into_array_arg(),
        norm_arrays(&statistics, &gamma, &beta, params),
        sums.into_array_arg(),
        d_x.clone().into_array_arg(),
        geometry.arg(),
        dtype.into(),
    );
    Some([d_x, d_gamma, d_beta])
}
