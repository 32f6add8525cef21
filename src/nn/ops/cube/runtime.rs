//! CubeCL runtimes: device addresses, vendor convolutions, and helpers that allocate tensors and lay out launches.
//!
//! Kernels read contiguous tensors in vectors along the channels. A launch is either elementwise, with one unit per
//! value ([`elementwise`]), or by rows ([`RowGeometry`]), for sums and per-channel coefficients.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::ops::{BufferDtype, ConvParams, ConvPass};

/// A CubeCL runtime that supports this crate's operations.
pub trait GpuRuntime: CubeRuntime {
    /// Returns the device address of a contiguous tensor, after submitting all work on it so far to the device.
    fn address(_tensor: &CubeTensor<Self>) -> Option<u64> {
        None
    }

    /// Whether this crate has a convolution library for the device.
    fn has_convolutions(_device: &Self::CubeDevice) -> bool {
        false
    }

    /// Runs a pass of a convolution on input `(n, z, y, x, c_in)`, weights `(c_out, kz, ky, kx, c_in)` and output, or
    /// their gradients. All are contiguous; the pass writes the one it computes. Returns false if the library does not
    /// support the problem or Burn's kernel is faster.
    fn convolution(_pass: ConvPass, _tensors: [&CubeTensor<Self>; 3], _params: ConvParams) -> bool {
        false
    }
}

/// See [`crate::ops::NnOps::device_buffer`].
pub(super) fn device_buffer<R: GpuRuntime>(tensor: &CubeTensor<R>) -> Option<DeviceBuffer> {
    let dtype = buffer_dtype(tensor.dtype)?;
    if !tensor.is_contiguous() {
        return None;
    }
    let len = tensor.meta.shape().num_elements();
    Some(DeviceBuffer { pointer: R::address(tensor)?, len, dtype })
}

/// Returns `None` for types that vendor libraries do not support.
pub(super) fn buffer_dtype(dtype: DType) -> Option<BufferDtype> {
    match dtype {
        DType::F32 => Some(BufferDtype::F32),
        DType::F16 => Some(BufferDtype::F16),
        DType::BF16 => Some(BufferDtype::Bf16),
        _ => None,
    }
}

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
    /// Number of samples.
    pub samples: usize,
    /// Number of rows per sample.
    pub rows: usize,
    /// Number of columns.
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

    /// Returns the cubes, one per part and sample, and their size.
    pub fn grid(&self) -> (CubeCount, CubeDim) {
        (CubeCount::Static(self.parts() as u32, self.samples as u32, 1), CubeDim::new_1d(UNITS as u32))
    }

    /// Returns the kernel argument.
    pub fn arg<R: CubeRuntime>(&self) -> RowsLaunch<R> {
        RowsLaunch::new(self.rows, self.columns, self.part)
    }
}

/// [`RowGeometry`] in a kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Rows {
    /// Number of rows per sample.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Number of rows per cube.
    pub part: usize,
}

/// Rows and column of one unit. The unit loops with `row` from `begin` by `stride` to `end`.
#[derive(CubeType, Clone, Copy)]
pub struct UnitRows {
    /// Index of the sample.
    pub sample: usize,
    /// Column of the unit.
    pub column: usize,
    /// Index of the column's first value in the sample. The value of a row is `row * columns` behind it.
    pub base: usize,
    /// First row of the unit; `end` for the units that are left over in a cube.
    pub begin: usize,
    /// End of the cube's rows.
    pub end: usize,
    /// Number of rows that the cube's units read at once.
    pub stride: usize,
    /// Whether the unit is one of the first `columns` units, which hold the sums of the cube in the end.
    pub is_first: bool,
}

#[cube]
impl Rows {
    /// Returns the rows and column of the current unit.
    pub fn unit(&self) -> UnitRows {
        let stride = comptime!(UNITS) / self.columns;
        let column = UNIT_POS as usize % self.columns;
        let row = UNIT_POS as usize / self.columns;
        let sample = CUBE_POS_Y as usize;
        let first_row = CUBE_POS_X as usize * self.part;
        let end = min(first_row + self.part, self.rows);
        UnitRows {
            sample,
            column,
            base: sample * self.rows * self.columns + column,
            begin: select(row < stride, first_row + row, end),
            end,
            stride,
            is_first: row == 0,
        }
    }
}

/// A position, extent or stride along the spatial axes, in a kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Zyx {
    pub z: usize,
    pub y: usize,
    pub x: usize,
}

/// Returns the kernel argument for `(z, y, x)`.
pub fn zyx<R: CubeRuntime>([z, y, x]: [usize; 3]) -> ZyxLaunch<R> {
    ZyxLaunch::new(z, y, x)
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
