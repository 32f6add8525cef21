//! Tensors as the kernels see them: one run of elements, in vectors along the channels.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::{
    CubeRuntime, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use cubecl::prelude::*;

/// Units that work together.
pub const UNITS: usize = 256;

/// Cubes that are enough for any GPU to be busy, several times over.
const ENOUGH_CUBES: usize = 2048;

/// Bytes that a unit reads at once.
const ACCESS: usize = 16;

/// A tensor whose elements lie one after the other, in the order of its shape.
pub fn contiguous<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(tensor)
}

/// A new tensor beside another, contiguous, with whatever its memory held before.
pub fn allocate<R: CubeRuntime>(beside: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), shape.into(), dtype)
}

/// `tensor` itself where nothing else refers to its memory, else new memory of its shape: an output of elementwise work.
pub fn reuse<R: CubeRuntime>(tensor: &CubeTensor<R>) -> CubeTensor<R> {
    if tensor.can_mut() { tensor.clone() } else { allocate(tensor, tensor.shape(), tensor.dtype) }
}

/// How many elements the vectors have in which runs of `len` elements are read, for all of these types.
pub fn vector_size(len: usize, dtypes: &[DType]) -> usize {
    let widest = dtypes.iter().map(|dtype| dtype.size()).max().unwrap_or(ACCESS);
    let mut size = ACCESS / widest;
    while !len.is_multiple_of(size) {
        size /= 2;
    }
    size
}

/// One unit per element of a run.
pub fn elementwise(len: usize) -> (CubeCount, CubeDim) {
    let cubes = len.div_ceil(UNITS);
    // No dimension may have more than 65535 cubes.
    let across = cubes.min(1 << 15);
    (CubeCount::Static(across as u32, cubes.div_ceil(across.max(1)) as u32, 1), CubeDim::new_1d(UNITS as u32))
}

/// How the units of a launch lie over `samples` matrices of `rows` rows and `columns` columns.
///
/// A unit keeps to one column, a vector of channels, and goes through every [`Columns::stride`]-th row of its cube's
/// part of a sample: neighbours read neighbouring memory, and what belongs to the channel is read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    pub samples: usize,
    pub rows: usize,
    pub columns: usize,
    /// Rows of a cube.
    pub part: usize,
}

impl Columns {
    /// `None` where a row has more columns than a cube has units.
    pub fn new(samples: usize, rows: usize, columns: usize) -> Option<Self> {
        if columns == 0 || columns > UNITS {
            return None;
        }
        let stride = UNITS / columns;
        // At least 16 rows per unit, so that a sum over the parts is little work beside a sum over the rows.
        let parts = (rows.div_ceil(16 * stride)).clamp(1, ENOUGH_CUBES.div_ceil(samples));
        let part = rows.div_ceil(parts).max(1);
        Some(Self { samples, rows, columns, part })
    }

    /// Cubes per sample.
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
            let columns = Columns::new(samples, rows, columns).unwrap();
            assert!(columns.parts() * columns.part >= rows);
            assert!((columns.parts() - 1) * columns.part < rows);
        }
        assert_eq!(Columns::new(1, 1, 257), None);
        assert_eq!(vector_size(32, &[DType::BF16]), 8);
        assert_eq!(vector_size(32, &[DType::BF16, DType::F32]), 4);
        assert_eq!(vector_size(6, &[DType::F32]), 2);
        assert_eq!(vector_size(3, &[DType::F32]), 1);
    }
}
