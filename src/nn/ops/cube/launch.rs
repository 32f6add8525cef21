//! Launch helpers: contiguous tensors, read in vectors along the channels.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::{
    CubeRuntime, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use cubecl::prelude::*;

/// Number of units per cube.
pub const UNITS: usize = 256;

/// Number of cubes that fill any GPU several times over.
const MAX_CUBES: usize = 2048;

/// Bytes that a unit reads at once.
const ACCESS: usize = 16;

/// Returns the tensor as contiguous in the order of its shape.
pub fn contiguous<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(tensor)
}

/// Allocates an uninitialized, contiguous tensor on the same device as another.
pub fn allocate<R: CubeRuntime>(beside: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), shape.into(), dtype)
}

/// Returns `tensor` if its memory is not shared, otherwise new memory of its shape: output of an elementwise kernel.
pub fn reuse<R: CubeRuntime>(tensor: &CubeTensor<R>) -> CubeTensor<R> {
    if tensor.can_mut() { tensor.clone() } else { allocate(tensor, tensor.shape(), tensor.dtype) }
}

/// Returns the vector size for reading runs of `len` elements of all these types.
pub fn vector_size(len: usize, dtypes: &[DType]) -> usize {
    let widest = dtypes.iter().map(|dtype| dtype.size()).max().unwrap_or(ACCESS);
    let mut size = ACCESS / widest;
    while !len.is_multiple_of(size) {
        size /= 2;
    }
    size
}

/// Launches one unit per element.
pub fn elementwise(len: usize) -> (CubeCount, CubeDim) {
    let cubes = len.div_ceil(UNITS);
    // A dimension may have at most 65535 cubes.
    let across = cubes.min(1 << 15);
    (CubeCount::Static(across as u32, cubes.div_ceil(across.max(1)) as u32, 1), CubeDim::new_1d(UNITS as u32))
}

/// Assignment of units to `samples` matrices of `rows` rows and `columns` columns.
///
/// Each unit handles one column, a vector of channels, and strides over the rows of its cube's part of a sample.
/// Neighboring units read neighboring memory, and per-channel values are read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowGeometry {
    pub samples: usize,
    pub rows: usize,
    pub columns: usize,
    /// Number of rows per cube.
    pub part: usize,
}

impl RowGeometry {
    /// Returns `None` if a row has more columns than a cube has units.
    pub fn new(samples: usize, rows: usize, columns: usize) -> Option<Self> {
        if columns == 0 || columns > UNITS {
            return None;
        }
        let stride = UNITS / columns;
        // At least 16 rows per unit, so that summing the parts is cheap compared to summing the rows.
        let parts = (rows.div_ceil(16 * stride)).clamp(1, MAX_CUBES.div_ceil(samples));
        let part = rows.div_ceil(parts).max(1);
        Some(Self { samples, rows, columns, part })
    }

    /// Number of cubes per sample.
    pub fn parts(&self) -> usize {
        self.rows.div_ceil(self.part).max(1)
    }

    pub fn grid(&self) -> (CubeCount, CubeDim) {
        (CubeCount::Static(self.parts() as u32, self.samples as u32, 1), CubeDim::new_1d(UNITS as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_rows_and_vectors_divide_the_channels() {
        for (samples, rows, columns) in [(2, 128 * 128 * 128, 4), (1, 1, 1), (3, 27, 40), (1, 1000, 256)] {
            let columns = RowGeometry::new(samples, rows, columns).unwrap();
            assert!(columns.parts() * columns.part >= rows);
            assert!((columns.parts() - 1) * columns.part < rows);
        }
        assert_eq!(RowGeometry::new(1, 1, 257), None);
        assert_eq!(vector_size(32, &[DType::BF16]), 8);
        assert_eq!(vector_size(32, &[DType::BF16, DType::F32]), 4);
        assert_eq!(vector_size(6, &[DType::F32]), 2);
        assert_eq!(vector_size(3, &[DType::F32]), 1);
    }
}
