//! Concatenation and split of activations along the channels.

use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{allocate, contiguous, elementwise, vector_size};

/// Concatenates the rows of `a` and `b`; one unit per vector.
#[cube(launch)]
fn concat_kernel<F: Float, N: Size>(
    a: &Array<Vector<F, N>>,
    b: &Array<Vector<F, N>>,
    joined: &mut Array<Vector<F, N>>,
    columns_a: usize,
    columns_b: usize,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= joined.len() {
        terminate!();
    }
    let row = place / (columns_a + columns_b);
    let column = place % (columns_a + columns_b);
    if column < columns_a {
        joined[place] = a[row * columns_a + column];
    } else {
        joined[place] = b[row * columns_b + column - columns_a];
    }
}

/// Inverse of [`concat_kernel`].
#[cube(launch)]
fn split_kernel<F: Float, N: Size>(
    joined: &Array<Vector<F, N>>,
    a: &mut Array<Vector<F, N>>,
    b: &mut Array<Vector<F, N>>,
    columns_a: usize,
    columns_b: usize,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= joined.len() {
        terminate!();
    }
    let row = place / (columns_a + columns_b);
    let column = place % (columns_a + columns_b);
    if column < columns_a {
        a[row * columns_a + column] = joined[place];
    } else {
        b[row * columns_b + column - columns_a] = joined[place];
    }
}

/// Concatenates `a` and `b` `(n, z, y, x, c)` along the channels.
pub fn concat<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let [n, z, y, x, channels_a] = a.shape().dims();
    let channels_b = b.shape()[4];
    let (a, b) = (contiguous(a), contiguous(b));
    let size = vector_size(channels_a, &[a.dtype]).min(vector_size(channels_b, &[a.dtype]));
    let joined = allocate(&a, [n, z, y, x, channels_a + channels_b], a.dtype);
    let (count, dim) = elementwise(joined.shape().num_elements() / size);
    let dtype = a.dtype;
    concat_kernel::launch::<R>(
        &joined.client,
        count,
        dim,
        size,
        a.into_array_arg(),
        b.into_array_arg(),
        joined.clone().into_array_arg(),
        channels_a / size,
        channels_b / size,
        dtype.into(),
    );
    joined
}

/// Splits off the first `channels` channels; returns them and the rest.
pub fn split<R: CubeRuntime>(joined: CubeTensor<R>, channels: usize) -> (CubeTensor<R>, CubeTensor<R>) {
    let [n, z, y, x, all] = joined.shape().dims();
    let joined = contiguous(joined);
    let size = vector_size(channels, &[joined.dtype]).min(vector_size(all - channels, &[joined.dtype]));
    let a = allocate(&joined, [n, z, y, x, channels], joined.dtype);
    let b = allocate(&joined, [n, z, y, x, all - channels], joined.dtype);
    let (count, dim) = elementwise(joined.shape().num_elements() / size);
    let dtype = joined.dtype;
    split_kernel::launch::<R>(
        &a.client,
        count,
        dim,
        size,
        joined.into_array_arg(),
        a.clone().into_array_arg(),
        b.clone().into_array_arg(),
        channels / size,
        (all - channels) / size,
        dtype.into(),
    );
    (a, b)
}
