//! Direct convolutions with one unit per output value and f32 accumulation, for GPUs without tensor cores and without a
//! vendor library. Used for tests on software Vulkan, not for training.

use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::elementwise;
use crate::ops::ConvParams;
use crate::ops::ConvPass;

/// Number of values: extents of input, output and kernel, stride and padding `(z, y, x)`, then n, c_in, c_out.
const GEOMETRY: usize = 18;

#[cube(launch)]
fn forward<X: Float, W: Float, Y: Float>(
    x: &Array<X>,
    w: &Array<W>,
    y: &mut Array<Y>,
    g: &Array<u32>,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let (c_in, c_out) = (g[16], g[17]);
    let place = ABSOLUTE_POS as u32;
    let co = place % c_out;
    let ox = place / c_out % g[5];
    let oy = place / c_out / g[5] % g[4];
    let oz = place / c_out / g[5] / g[4] % g[3];
    let n = place / c_out / g[5] / g[4] / g[3];
    let mut sum = 0.0f32;
    for kz in 0..g[6] {
        for ky in 0..g[7] {
            for kx in 0..g[8] {
                let iz = oz * g[9] + kz;
                let iy = oy * g[10] + ky;
                let ix = ox * g[11] + kx;
                let inside_z = iz >= g[12] && iz - g[12] < g[0];
                let inside_y = iy >= g[13] && iy - g[13] < g[1];
                let inside_x = ix >= g[14] && ix - g[14] < g[2];
                if inside_z && inside_y && inside_x {
                    let from = (((n * g[0] + iz - g[12]) * g[1] + iy - g[13]) * g[2] + ix - g[14]) * c_in;
                    let with = (((co * g[6] + kz) * g[7] + ky) * g[8] + kx) * c_in;
                    for ci in 0..c_in {
                        sum += f32::cast_from(x[(from + ci) as usize]) * f32::cast_from(w[(with + ci) as usize]);
                    }
                }
            }
        }
    }
    y[ABSOLUTE_POS] = Y::cast_from(sum);
}

#[cube(launch)]
fn backward_input<X: Float, W: Float, Y: Float>(
    x: &mut Array<X>,
    w: &Array<W>,
    y: &Array<Y>,
    g: &Array<u32>,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS >= x.len() {
        terminate!();
    }
    let (c_in, c_out) = (g[16], g[17]);
    let place = ABSOLUTE_POS as u32;
    let ci = place % c_in;
    let ix = place / c_in % g[2];
    let iy = place / c_in / g[2] % g[1];
    let iz = place / c_in / g[2] / g[1] % g[0];
    let n = place / c_in / g[2] / g[1] / g[0];
    let mut sum = 0.0f32;
    for kz in 0..g[6] {
        for ky in 0..g[7] {
            for kx in 0..g[8] {
                // Output position that this input contributes to through this kernel position, if there is one.
                let reaches_z = iz + g[12] >= kz && (iz + g[12] - kz) % g[9] == 0;
                let reaches_y = iy + g[13] >= ky && (iy + g[13] - ky) % g[10] == 0;
                let reaches_x = ix + g[14] >= kx && (ix + g[14] - kx) % g[11] == 0;
                if reaches_z && reaches_y && reaches_x {
                    let oz = (iz + g[12] - kz) / g[9];
                    let oy = (iy + g[13] - ky) / g[10];
                    let ox = (ix + g[14] - kx) / g[11];
                    if oz < g[3] && oy < g[4] && ox < g[5] {
                        let from = (((n * g[3] + oz) * g[4] + oy) * g[5] + ox) * c_out;
                        for co in 0..c_out {
                            let with = (((co * g[6] + kz) * g[7] + ky) * g[8] + kx) * c_in + ci;
                            sum += f32::cast_from(y[(from + co) as usize]) * f32::cast_from(w[with as usize]);
                        }
                    }
                }
            }
        }
    }
    x[ABSOLUTE_POS] = X::cast_from(sum);
}

#[cube(launch)]
fn backward_weights<X: Float, W: Float, Y: Float>(
    x: &Array<X>,
    w: &mut Array<W>,
    y: &Array<Y>,
    g: &Array<u32>,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS >= w.len() {
        terminate!();
    }
    let (c_in, c_out) = (g[16], g[17]);
    let place = ABSOLUTE_POS as u32;
    let ci = place % c_in;
    let kx = place / c_in % g[8];
    let ky = place / c_in / g[8] % g[7];
    let kz = place / c_in / g[8] / g[7] % g[6];
    let co = place / c_in / g[8] / g[7] / g[6];
    let mut sum = 0.0f32;
    for n in 0..g[15] {
        for oz in 0..g[3] {
            for oy in 0..g[4] {
                for ox in 0..g[5] {
                    let iz = oz * g[9] + kz;
                    let iy = oy * g[10] + ky;
                    let ix = ox * g[11] + kx;
                    let inside_z = iz >= g[12] && iz - g[12] < g[0];
                    let inside_y = iy >= g[13] && iy - g[13] < g[1];
                    let inside_x = ix >= g[14] && ix - g[14] < g[2];
                    if inside_z && inside_y && inside_x {
                        let from = (((n * g[0] + iz - g[12]) * g[1] + iy - g[13]) * g[2] + ix - g[14]) * c_in + ci;
                        let with = (((n * g[3] + oz) * g[4] + oy) * g[5] + ox) * c_out + co;
                        sum += f32::cast_from(x[from as usize]) * f32::cast_from(y[with as usize]);
                    }
                }
            }
        }
    }
    w[ABSOLUTE_POS] = W::cast_from(sum);
}

/// See [`super::GpuRuntime::convolution`].
pub fn convolution<R: CubeRuntime>(pass: ConvPass, [x, w, y]: [&CubeTensor<R>; 3], params: ConvParams) {
    let [n, iz, iy, ix, c_in] = x.shape().dims();
    let [c_out, kz, ky, kx, _] = w.shape().dims();
    let [_, oz, oy, ox, _] = y.shape().dims();
    let [[sz, sy, sx], [pz, py, px]] = [params.stride, params.padding];
    let geometry: [usize; GEOMETRY] = [iz, iy, ix, oz, oy, ox, kz, ky, kx, sz, sy, sx, pz, py, px, n, c_in, c_out];
    let geometry = geometry.map(|value| value as u32);
    // SAFETY: the handle holds `GEOMETRY` values.
    let geometry = unsafe { ArrayArg::from_raw_parts(x.client.create_from_slice(u32::as_bytes(&geometry)), GEOMETRY) };
    let result = [y, x, w][pass as usize];
    let (count, dim) = elementwise(result.shape().num_elements());
    let launch = match pass {
        ConvPass::Forward => forward::launch::<R>,
        ConvPass::BackwardInput => backward_input::launch::<R>,
        ConvPass::BackwardWeights => backward_weights::launch::<R>,
    };
    let dtypes = [x, w, y].map(|tensor| tensor.dtype.into());
    let [x_arg, w_arg, y_arg] = [x, w, y].map(|tensor| tensor.clone().into_array_arg());
    launch(&x.client, count, dim, x_arg, w_arg, y_arg, geometry, dtypes);
}
