//! Vulkan runtime: direct convolutions with one unit per result and f32 accumulation, for GPUs without tensor cores and
//! without a vendor library. Used for tests on software Vulkan, not for training.

use burn::backend::wgpu::WgpuRuntime;
use burn::tensor::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::runtime::{GpuRuntime, Zyx, ZyxLaunch, elementwise, zyx};
use crate::ops::{ConvParams, ConvPass};

impl GpuRuntime for WgpuRuntime {
    fn has_convolutions(_: &Self::CubeDevice) -> bool {
        true
    }

    fn convolution(pass: ConvPass, [x, w, y]: [&CubeTensor<Self>; 3], params: ConvParams) -> bool {
        let result = [y, x, w][pass as usize];
        let (count, dim) = elementwise(result.shape().num_elements());
        let launch = match pass {
            ConvPass::Forward => forward::launch::<Self>,
            ConvPass::BackwardInput => backward_input::launch::<Self>,
            ConvPass::BackwardWeights => backward_weights::launch::<Self>,
        };
        let geometry = geometry(x.shape().dims(), w.shape().dims(), y.shape().dims(), params);
        let dtypes = [x, w, y].map(|tensor| tensor.dtype.into());
        let [x_arg, w_arg, y_arg] = [x, w, y].map(|tensor| tensor.clone().into_array_arg());
        launch(&x.client, count, dim, x_arg, w_arg, y_arg, geometry, dtypes);
        true
    }
}

/// Shape of a convolution: input `(n, z, y, x, c_in)`, weights `(c_out, kz, ky, kx, c_in)`, output `(n, z, y, x, c_out)`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Geometry {
    n: usize,
    c_in: usize,
    c_out: usize,
    input: Zyx,
    output: Zyx,
    kernel: Zyx,
    stride: Zyx,
    padding: Zyx,
}

fn geometry(x: [usize; 5], w: [usize; 5], y: [usize; 5], params: ConvParams) -> GeometryLaunch<WgpuRuntime> {
    let spatial = |[_, z, y, x, _]: [usize; 5]| -> ZyxLaunch<WgpuRuntime> { zyx([z, y, x]) };
    let ([n, .., c_in], [c_out, ..]) = (x, w);
    GeometryLaunch::new(n, c_in, c_out, spatial(x), spatial(y), spatial(w), zyx(params.stride), zyx(params.padding))
}

/// Position of a value in a channels-last array.
#[derive(CubeType, Clone, Copy)]
struct Position {
    /// Sample, or output channel of the weights.
    n: usize,
    z: usize,
    y: usize,
    x: usize,
    c: usize,
}

#[cube]
fn position(index: usize, extent: Zyx, channels: usize) -> Position {
    let x = index / channels;
    let y = x / extent.x;
    let z = y / extent.y;
    Position { n: z / extent.z, z: z % extent.z, y: y % extent.y, x: x % extent.x, c: index % channels }
}

/// Index of a position's first channel in a channels-last array.
#[cube]
fn index(n: usize, z: usize, y: usize, x: usize, extent: Zyx, channels: usize) -> usize {
    (((n * extent.z + z) * extent.y + y) * extent.x + x) * channels
}

/// Whether a coordinate of the padded input lies in the input.
#[cube]
fn is_inside(padded: usize, padding: usize, extent: usize) -> bool {
    padded >= padding && padded - padding < extent
}

#[cube(launch)]
fn forward<X: Float, W: Float, Y: Float>(
    x: &Array<X>,
    w: &Array<W>,
    y: &mut Array<Y>,
    g: Geometry,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let out = position(ABSOLUTE_POS, g.output, g.c_out);
    let mut sum = 0.0f32;
    for kz in 0..g.kernel.z {
        for ky in 0..g.kernel.y {
            for kx in 0..g.kernel.x {
                let iz = out.z * g.stride.z + kz;
                let iy = out.y * g.stride.y + ky;
                let ix = out.x * g.stride.x + kx;
                let inside_z = is_inside(iz, g.padding.z, g.input.z);
                let inside_y = is_inside(iy, g.padding.y, g.input.y);
                let inside_x = is_inside(ix, g.padding.x, g.input.x);
                if inside_z && inside_y && inside_x {
                    let from = index(out.n, iz - g.padding.z, iy - g.padding.y, ix - g.padding.x, g.input, g.c_in);
                    let with = index(out.c, kz, ky, kx, g.kernel, g.c_in);
                    for ci in 0..g.c_in {
                        sum += f32::cast_from(x[from + ci]) * f32::cast_from(w[with + ci]);
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
    g: Geometry,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS >= x.len() {
        terminate!();
    }
    let into = position(ABSOLUTE_POS, g.input, g.c_in);
    let (pz, py, px) = (into.z + g.padding.z, into.y + g.padding.y, into.x + g.padding.x);
    let mut sum = 0.0f32;
    for kz in 0..g.kernel.z {
        for ky in 0..g.kernel.y {
            for kx in 0..g.kernel.x {
                // Output position that this input contributes to through this kernel position, if there is one.
                let reaches_z = pz >= kz && (pz - kz) % g.stride.z == 0;
                let reaches_y = py >= ky && (py - ky) % g.stride.y == 0;
                let reaches_x = px >= kx && (px - kx) % g.stride.x == 0;
                if reaches_z && reaches_y && reaches_x {
                    let oz = (pz - kz) / g.stride.z;
                    let oy = (py - ky) / g.stride.y;
                    let ox = (px - kx) / g.stride.x;
                    if oz < g.output.z && oy < g.output.y && ox < g.output.x {
                        let from = index(into.n, oz, oy, ox, g.output, g.c_out);
                        for co in 0..g.c_out {
                            let with = index(co, kz, ky, kx, g.kernel, g.c_in) + into.c;
                            sum += f32::cast_from(y[from + co]) * f32::cast_from(w[with]);
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
    g: Geometry,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS >= w.len() {
        terminate!();
    }
    let k = position(ABSOLUTE_POS, g.kernel, g.c_in);
    let mut sum = 0.0f32;
    for n in 0..g.n {
        for oz in 0..g.output.z {
            for oy in 0..g.output.y {
                for ox in 0..g.output.x {
                    let iz = oz * g.stride.z + k.z;
                    let iy = oy * g.stride.y + k.y;
                    let ix = ox * g.stride.x + k.x;
                    let inside_z = is_inside(iz, g.padding.z, g.input.z);
                    let inside_y = is_inside(iy, g.padding.y, g.input.y);
                    let inside_x = is_inside(ix, g.padding.x, g.input.x);
                    if inside_z && inside_y && inside_x {
                        let from =
                            index(n, iz - g.padding.z, iy - g.padding.y, ix - g.padding.x, g.input, g.c_in) + k.c;
                        let with = index(n, oz, oy, ox, g.output, g.c_out) + k.n;
                        sum += f32::cast_from(x[from]) * f32::cast_from(y[with]);
                    }
                }
            }
        }
    }
    w[ABSOLUTE_POS] = W::cast_from(sum);
}
