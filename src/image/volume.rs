//! Image and label map types with their geometry.

use ndarray::{Array3, Array4};

use super::NiftiForms;

/// Physical position of an image in ITK's convention (LPS, mm), as nnU-Net stores it in a case's properties.
///
/// The array axes are `(z, y, x)`; `origin` and the columns of `direction` use the order `(x, y, z)`, as in ITK. The
/// center of the voxel `(k, j, i)` is at `origin + direction * (i * sx, j * sy, k * sz)`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Geometry {
    /// Voxel size in mm along `(z, y, x)`.
    pub spacing: [f64; 3],
    /// Center of voxel `(0, 0, 0)` in mm, `(x, y, z)`.
    pub origin: [f64; 3],
    /// Direction cosines, row-major; column `a` is the physical direction of array axis x, y, z for `a` = 0, 1, 2.
    pub direction: [[f64; 3]; 3],
    /// Forms of the NIfTI header that the geometry was read from. Label maps of the image are written with the same
    /// header fields, so that every reader, whichever form it prefers, places them on the image. Ignored in comparisons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nifti: Option<Box<NiftiForms>>,
}

impl Default for Geometry {
    /// 1 mm voxels, identity direction, origin 0.
    fn default() -> Self {
        let direction = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        Self { spacing: [1.0; 3], origin: [0.0; 3], direction, nifti: None }
    }
}

impl PartialEq for Geometry {
    fn eq(&self, other: &Self) -> bool {
        let Self { spacing, origin, direction, nifti: _ } = self;
        (spacing, origin, direction) == (&other.spacing, &other.origin, &other.direction)
    }
}

/// Range of plausible voxel sizes in mm, from far below a nanometer to far above a kilometer.
const PLAUSIBLE_MM: std::ops::RangeInclusive<f64> = 1e-9..=1e9;

/// Factor of the spacing along z of a 2D image to the larger spacing in the plane, as in nnU-Net
/// (`simpleitk_reader_writer.py`, `natural_image_reader_writer.py`).
const Z_SPACING_FACTOR: f64 = 999.0;

/// Geometry of a 2D image, in the order `(x, y)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane {
    /// Pixel size in mm.
    pub spacing: [f64; 2],
    /// Center of the first pixel in mm.
    pub origin: [f64; 2],
    /// Direction cosines, row-major.
    pub direction: [[f64; 2]; 2],
}

impl Geometry {
    /// Geometry of a 2D image as 3D with one slice.
    pub fn from_plane(plane: &Plane) -> Self {
        let Plane { spacing: [x, y], origin, direction: [a, b] } = plane;
        Self {
            spacing: [Z_SPACING_FACTOR * x.max(*y), *y, *x],
            origin: [origin[0], origin[1], 0.0],
            direction: [[a[0], a[1], 0.0], [b[0], b[1], 0.0], [0.0, 0.0, 1.0]],
            nifti: None,
        }
    }

    /// Spacing along z of a 2D image with this in-plane spacing, `(y, x)`.
    pub(super) fn spacing_across_plane([y, x]: [f64; 2]) -> f64 {
        Z_SPACING_FACTOR * x.max(y)
    }

    /// Describes the first difference from another geometry: "spacing [3.0, 1.0, 1.0] mm differs from [1.0, 1.0, 1.0]
    /// mm"; `None` if both place voxels equally.
    ///
    /// Tolerances are those of `numpy.allclose` for the spacing, as in nnU-Net's `verify_dataset_integrity`, and for
    /// origin and direction the rounding to the `f32` of a NIfTI header, stored as quaternion or matrix.
    pub fn difference(&self, other: &Self) -> Option<String> {
        self.differences(other).into_iter().next()
    }

    /// Returns the geometry as ITK reads it from a NIfTI file, if that may be another: of its qform instead of its sform.
    pub fn by_qform(&self) -> Option<Self> {
        self.nifti.as_ref()?.by_qform()
    }

    /// Describes all differences from another geometry, see [`Geometry::difference`].
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let mm = |values: &[f64]| format!("{} mm", short(values));
        if !close(&self.spacing, &other.spacing, 1e-8) {
            differences.push(format!("spacing {} differs from {}", mm(&self.spacing), mm(&other.spacing)));
        }
        if !close(&self.origin, &other.origin, 1e-3) {
            differences.push(format!("origin {} differs from {}", mm(&self.origin), mm(&other.origin)));
        }
        let [ours, theirs] = [self, other].map(|geometry| geometry.direction.as_flattened());
        if !close(ours, theirs, 1e-4) {
            differences.push(format!("direction {} differs from {}", short(ours), short(theirs)));
        }
        differences
    }

    /// The inverse of [`Geometry::from_plane`]; `None` if the image is not 2D.
    pub fn plane(&self) -> Option<Plane> {
        let [z, y, x] = self.spacing;
        let [[a, b, _], [c, d, _], _] = self.direction;
        let plane = Plane { spacing: [x, y], origin: [self.origin[0], self.origin[1]], direction: [[a, b], [c, d]] };
        let same = Self::from_plane(&plane);
        let is_plane =
            (same.spacing[0] - z).abs() <= 1e-6 * z && same.origin == self.origin && same.direction == self.direction;
        is_plane.then_some(plane)
    }

    /// Letters of the directions of increasing x, y and z, e.g. `LPS` for the identity. An oblique axis has the letter
    /// of the nearest direction.
    pub fn orientation(&self) -> String {
        let letter = |axis: usize| {
            let component = |row: usize| self.direction[row][axis];
            let row = (1..3).fold(0, |best, row| if component(row).abs() > component(best).abs() { row } else { best });
            let [positive, negative] = [['L', 'R'], ['P', 'A'], ['S', 'I']][row];
            if component(row) < 0.0 { negative } else { positive }
        };
        (0..3).map(letter).collect()
    }

    /// Description of the first invalid value of a geometry read from a file.
    pub(super) fn invalid_value(&self) -> Option<String> {
        if let Some(mm) = self.spacing.iter().find(|mm| !PLAUSIBLE_MM.contains(mm)) {
            return Some(format!("a spacing of {mm} mm"));
        }
        if let Some(mm) = self.origin.iter().find(|mm| !mm.is_finite()) {
            return Some(format!("an origin of {mm} mm"));
        }
        let [a, b, c] = self.direction;
        let volume = a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0])
            + a[2] * (b[0] * c[1] - b[1] * c[0]);
        (!volume.is_finite() || volume.abs() < 1e-6).then(|| format!("a direction of determinant {volume}"))
    }
}

/// Formats values as `f32`, the type in headers, to print `1.1` instead of `1.100000023841858`; drops the sign of 0.
fn short(values: &[f64]) -> String {
    format!("{:?}", values.iter().map(|&value| value as f32 + 0.0).collect::<Vec<_>>())
}

/// Implements `numpy.allclose(a, b, atol=absolute)`.
fn close(a: &[f64], b: &[f64], absolute: f64) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= absolute + 1e-5 * b.abs())
}

/// An image: intensities `(channel, z, y, x)` and their geometry.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Intensities after the file's slope and intercept, `(channel, z, y, x)`, C order. A 2D image has z extent 1.
    pub data: Array4<f32>,
    /// Physical position of the voxels.
    pub geometry: Geometry,
}

/// A label map: class indices `(z, y, x)` and their geometry.
#[derive(Clone, Debug)]
pub struct LabelMap {
    /// Class of each voxel, `(z, y, x)`, C order.
    pub data: Array3<i16>,
    /// Physical position of the voxels.
    pub geometry: Geometry,
}
