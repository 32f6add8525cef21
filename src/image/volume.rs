//! Voxels with a place in the world.

use ndarray::{Array3, Array4};

/// Where an image lies in the world, in ITK's convention (LPS, mm), as nnU-Net stores it in a case's properties.
///
/// The array axes are `(z, y, x)`; `origin` and the columns of `direction` belong to the axes `(x, y, z)`, as ITK's do.
/// The centre of the voxel `(k, j, i)` lies at `origin + direction * (i * sx, j * sy, k * sz)`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Geometry {
    /// Voxel size in mm along `(z, y, x)`.
    pub spacing: [f64; 3],
    /// Centre of voxel `(0, 0, 0)` in mm, `(x, y, z)`.
    pub origin: [f64; 3],
    /// Direction cosines, row-major; column `a` is the world direction of array axis x, y, z for `a` = 0, 1, 2.
    pub direction: [[f64; 3]; 3],
}

impl Default for Geometry {
    /// 1 mm voxels, identity direction, origin 0.
    fn default() -> Self {
        Self { spacing: [1.0; 3], origin: [0.0; 3], direction: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]] }
    }
}

/// An image: `(channel, z, y, x)` intensities and their geometry.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Intensities after scl_slope / scl_inter, `(channel, z, y, x)`, C order. A 2D image has z extent 1.
    pub data: Array4<f32>,
    /// Where the voxels lie.
    pub geometry: Geometry,
}

/// A label map: `(z, y, x)` class indices and their geometry.
#[derive(Clone, Debug)]
pub struct LabelMap {
    /// Class of each voxel, `(z, y, x)`, C order.
    pub data: Array3<i16>,
    /// Where the voxels lie.
    pub geometry: Geometry,
}
