//! Weight layouts: converts between PyTorch's `(a, b, kz, ky, kx)` in f32, used for storage, and channels-last `(a, kz,
//! ky, kx, b)` in the activation type, used by tensor cores.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{allocate, contiguous, elementwise};

/// Transposes `(a, rows, columns)` to `(a, columns, rows)`; one unit per value.
#[cube(launch)]
fn transpose<I: Float, O: Float>(
    from: &Array<I>,
    to: &mut Array<O>,
    rows: usize,
    columns: usize,
    #[define(I, O)] _dtypes: [StorageType; 2],
) {
    let place = ABSOLUTE_POS;
    if place >= to.len() {
        terminate!();
    }
    let row = place % rows;
    let column = place / rows % columns;
    let block = place / (rows * columns);
    to[place] = O::cast_from(from[(block * rows + row) * columns + column]);
}

/// Converts `(a, b, kz, ky, kx)` in f32 to `(a, kz, ky, kx, b)` in `dtype`.
pub fn channels_last<R: CubeRuntime>(weight: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    let [a, b, z, y, x] = weight.shape().dims();
    launch(weight, [a, z, y, x, b], (b, z * y * x), dtype)
}

/// Converts `(a, kz, ky, kx, b)` to `(a, b, kz, ky, kx)` in f32.
pub fn channels_first<R: CubeRuntime>(weight: CubeTensor<R>) -> CubeTensor<R> {
    let [a, z, y, x, b] = weight.shape().dims();
    launch(weight, [a, b, z, y, x], (z * y * x, b), DType::F32)
}

fn launch<R: CubeRuntime>(
    from: CubeTensor<R>,
    shape: [usize; 5],
    (rows, columns): (usize, usize),
    dtype: DType,
) -> CubeTensor<R> {
    let from = contiguous(from);
    let to = allocate(&from, shape, dtype);
    let (count, dim) = elementwise(shape.iter().product());
    let dtypes = [from.dtype.into(), dtype.into()];
    transpose::launch::<R>(
        &to.client,
        count,
        dim,
        from.into_array_arg(),
        to.clone().into_array_arg(),
        rows,
        columns,
        dtypes,
    );
    to
}

#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use burn::backend::Vulkan;
    use burn::tensor::{Tensor, TensorPrimitive};

    use super::*;

    #[test]
    fn the_orders_are_inverse() {
        let device = Default::default();
        let values: Vec<f32> = (0..2 * 3 * 8).map(|value| value as f32).collect();
        let weight = Tensor::<Vulkan, 1>::from_data(values.as_slice(), &device).reshape([2, 3, 2, 2, 2]);
        let tensor = |primitive| Tensor::<Vulkan, 5>::from_primitive(TensorPrimitive::Float(primitive));
        let there = channels_last(weight.clone().into_primitive().tensor(), DType::F32);
        assert_eq!(tensor(there.clone()).into_data(), weight.clone().permute([0, 2, 3, 4, 1]).into_data());
        assert_eq!(tensor(channels_first(there)).into_data(), weight.into_data());
    }
}
