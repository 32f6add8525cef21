//! Rotation, scaling and cropping of a patch: random in one resampling step, or centered without.

use std::f64::consts::PI;
use std::ops::Range;

use nnunet_core::rng::Stream;

use super::distributions::{chance, uniform};
use super::resample::resample;
use super::voxels::shape;
use crate::store::{Patch, Region};

/// A 3D patch whose longest axis exceeds its first axis by more than this factor is augmented slice by slice (nnU-Net's
/// `ANISO_THRESHOLD`).
const ANISOTROPY_THRESHOLD: f64 = 3.0;

/// Scale for which nnU-Net's trainer sizes the patch it reads. Objects are shrunk further, up to a scale of 1.4; the
/// area outside the patch is then padding, in the reference as well.
const READ_SCALE: f64 = 0.85;
/// Counterpart of [`READ_SCALE`] in `nnUNetTrainerDA5`.
const STRONG_READ_SCALE: f64 = 0.7;

/// Rotates and scales with some probability, and crops.
///
/// nnU-Net v2 (batchgeneratorsv2 `SpatialTransform`): rotation with probability 0.2 about every axis by its own angle,
/// uniform in ±30° in 3D, in ±180° in-plane for 2D and anisotropic 3D patches, in ±15° for 2D patches longer than 1.5
/// times their width; scaling with probability 0.2, uniform in 0.7..1.4, the same for all axes. If neither is drawn,
/// the center is copied without resampling.
///
/// `nnUNetTrainerDA5`: rotation with probability 0.4, then about each axis with probability 0.5; scaling with
/// probability 0.2, uniform in 0.7..1.43, drawn per axis. NVIDIA's nnU-Net (`dali_loader.py`): no rotation; scaling
/// with probability 0.15, uniform in 0.7..1, the same for all axes. NVIDIA interpolates labels with nearest neighbor
/// and data cubically; here both are interpolated as in the other presets.
#[derive(Clone, Debug)]
pub struct Spatial {
    patch_size: [usize; 3],
    rotation_probability: f64,
    /// Largest angle in either direction, in radians.
    max_angle: f64,
    /// Probability of rotating about each axis, given that a rotation is drawn.
    per_axis: f64,
    scaling_probability: f64,
    /// True if each axis has its own scale.
    scales_axes: bool,
    /// Range of source voxels per output voxel: objects shrink above 1.
    scale: Range<f64>,
    /// Divisor of the patch size that gives the size of the patch to read.
    read_scale: f64,
}

impl Spatial {
    /// Creates a transform that only crops.
    pub fn none(patch_size: [usize; 3]) -> Self {
        Self {
            patch_size,
            rotation_probability: 0.0,
            max_angle: 0.0,
            per_axis: 1.0,
            scaling_probability: 0.0,
            scales_axes: false,
            scale: 1.0..1.0,
            read_scale: 1.0,
        }
    }

    /// Creates NVIDIA's scaling, which only enlarges objects, so the patch to read is not larger than the output patch.
    pub fn nvidia(patch_size: [usize; 3]) -> Self {
        Self { scaling_probability: 0.15, scale: 0.7..1.0, ..Self::none(patch_size) }
    }

    /// Creates the rotation and scaling of `nnUNetTrainerDA5`.
    pub fn strong(patch_size: [usize; 3]) -> Self {
        Self {
            rotation_probability: 0.4,
            per_axis: 0.5,
            scales_axes: true,
            scale: 0.7..1.43,
            read_scale: STRONG_READ_SCALE,
            ..Self::nnunet(patch_size)
        }
    }

    /// Creates nnU-Net's rotation and scaling.
    pub fn nnunet(patch_size: [usize; 3]) -> Self {
        let [z, y, x] = patch_size;
        let degrees = match () {
            () if z > 1 && !in_plane(patch_size) => 30.0,
            () if z == 1 && y.max(x) as f64 / y.min(x) as f64 > 1.5 => 15.0,
            () => 180.0,
        };
        Self {
            rotation_probability: 0.2,
            max_angle: degrees / 180.0 * PI,
            scaling_probability: 0.2,
            scale: 0.7..1.4,
            read_scale: READ_SCALE,
            ..Self::none(patch_size)
        }
    }

    /// Returns the extent of the output patch, `(z, y, x)`.
    pub fn patch_size(&self) -> [usize; 3] {
        self.patch_size
    }

    /// Returns the extent of the patch to read, `(z, y, x)`: nnU-Net's `get_patch_size`, or the output patch size if
    /// nothing is rotated or shrunk.
    pub fn read_patch_size(&self) -> [usize; 3] {
        if self.rotation_probability == 0.0 && self.read_scale == 1.0 {
            return self.patch_size;
        }
        let first = if in_plane(self.patch_size) { 1 } else { 0 };
        let mut extent = self.patch_size.map(|extent| extent as f64);
        let (sin, cos) = self.max_angle.min(PI / 2.0).sin_cos();
        for a in first..3 {
            for b in a + 1..3 {
                let (side_a, side_b) = (self.patch_size[a] as f64, self.patch_size[b] as f64);
                // The reference rotates the corner of the patch, about y in the opposite direction to z and x.
                let sin = if (a, b) == (0, 2) { -sin } else { sin };
                extent[a] = extent[a].max((side_a * cos + side_b * sin).abs());
                extent[b] = extent[b].max((side_b * cos - side_a * sin).abs());
            }
        }
        let mut read = self.patch_size;
        (first..3).for_each(|axis| read[axis] = (extent[axis] / self.read_scale) as usize);
        read
    }

    /// Fills `patch`, of extent [`Spatial::patch_size`], from `read`, of extent [`Spatial::read_patch_size`].
    pub fn apply<'a>(&self, read: impl Into<Region<'a>>, patch: &mut Patch, rng: &mut Stream) {
        match self.draw(rng) {
            Some(matrix) => resample(read.into(), patch, &matrix),
            None => centre_crop(read, patch),
        }
    }

    /// Draws the matrix from output to source coordinates; `None` for the identity.
    fn draw(&self, rng: &mut Stream) -> Option<[[f64; 3]; 3]> {
        let rotates = chance(self.rotation_probability, rng);
        let scales = chance(self.scaling_probability, rng);
        if !rotates && !scales {
            return None;
        }
        let in_plane = in_plane(self.patch_size);
        let mut angles = [0.0; 3];
        if rotates {
            let first = if in_plane { 0 } else { 2 };
            (0..=first).for_each(|axis| angles[axis] = uniform(&(-self.max_angle..self.max_angle), rng));
            if self.per_axis < 1.0 {
                angles[..=first].iter_mut().filter(|_| !chance(self.per_axis, rng)).for_each(|angle| *angle = 0.0);
            }
        }
        let mut factors = [if scales { uniform(&self.scale, rng) } else { 1.0 }; 3];
        if scales && self.scales_axes {
            factors[1..].iter_mut().for_each(|factor| *factor = uniform(&self.scale, rng));
        }
        if in_plane {
            factors[0] = 1.0;
        }
        let scales = factors;
        Some(rotation_after_scaling(angles, scales))
    }
}

/// Returns true if a patch is rotated, scaled and downsampled only within its `(y, x)` planes: 2D patches and
/// anisotropic 3D patches (nnU-Net's dummy 2D augmentation).
pub(super) fn in_plane(patch_size: [usize; 3]) -> bool {
    let longest = patch_size.into_iter().max().unwrap_or(1);
    patch_size[0] == 1 || longest as f64 / patch_size[0] as f64 > ANISOTROPY_THRESHOLD
}

/// Returns the matrix that scales `(z, y, x)` coordinates, then rotates them about z, y and x, in this order.
fn rotation_after_scaling(angles: [f64; 3], scales: [f64; 3]) -> [[f64; 3]; 3] {
    let [(sz, cz), (sy, cy), (sx, cx)] = angles.map(f64::sin_cos);
    let about_z = [[1.0, 0.0, 0.0], [0.0, cz, -sz], [0.0, sz, cz]];
    let about_y = [[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]];
    let about_x = [[cx, -sx, 0.0], [sx, cx, 0.0], [0.0, 0.0, 1.0]];
    let rotation = product(&about_x, &product(&about_y, &about_z));
    rotation.map(|row| std::array::from_fn(|column| row[column] * scales[column]))
}

fn product(a: &[[f64; 3]; 3], b: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    a.map(|row| std::array::from_fn(|column| (0..3).map(|k| row[k] * b[k][column]).sum()))
}

/// Copies the center of `read` into `patch`; the shape of `patch` sets the extent.
///
/// If the size difference is odd, the extra voxel is dropped at the end, as in batchgeneratorsv2's `crop_tensor`.
pub fn centre_crop<'a>(read: impl Into<Region<'a>>, patch: &mut Patch) {
    let size = shape(patch);
    read.into().centre(size).copy_to(patch);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_core::rng::{Purpose, stream};

    #[test]
    fn read_sizes_match_nnunet() {
        // From `get_patch_size` of nnunetv2 2.8.1 with the trainer's rotation range and dummy-2D rule.
        let cases = [
            ([40, 56, 40], [73, 80, 64]),
            ([128, 128, 128], [205, 205, 205]),
            ([96, 160, 160], [191, 257, 219]),
            ([64, 192, 64], [178, 233, 102]),
            ([28, 256, 256], [28, 301, 301]),
            ([14, 200, 180], [14, 235, 235]),
            ([1, 56, 40], [1, 65, 65]),
            ([1, 512, 512], [1, 602, 602]),
            ([1, 320, 160], [1, 412, 188]),
        ];
        for (patch, read) in cases {
            assert_eq!(Spatial::nnunet(patch).read_patch_size(), read, "{patch:?}");
            assert_eq!(Spatial::none(patch).read_patch_size(), patch);
            assert_eq!(Spatial::nvidia(patch).read_patch_size(), patch);
        }
    }

    #[test]
    fn angles_and_scales_have_the_documented_distribution() {
        let draws = |patch_size| {
            let spatial = Spatial::nnunet(patch_size);
            (0..4000).map(move |index| spatial.draw(&mut stream(7, Purpose::Augment, 0, index))).collect::<Vec<_>>()
        };
        let drawn = draws([40, 56, 40]);
        let none = drawn.iter().filter(|matrix| matrix.is_none()).count() as f64 / drawn.len() as f64;
        assert!((none - 0.8 * 0.8).abs() < 0.03, "{none}");
        // Rotation times scale: the norm of each column is the scale.
        let scales: Vec<f64> =
            drawn.iter().flatten().map(|m| m.map(|row| row[0].powi(2)).iter().sum::<f64>().sqrt()).collect();
        assert!(scales.iter().all(|scale| (0.7 - 1e-9..1.4 + 1e-9).contains(scale)));
        assert!(scales.iter().any(|&scale| scale < 0.75) && scales.iter().any(|&scale| scale > 1.35));

        for matrix in draws([1, 64, 64]).into_iter().flatten() {
            assert_eq!((matrix[0], matrix[1][0], matrix[2][0]), ([1.0, 0.0, 0.0], 0.0, 0.0));
        }
        assert!(draws([1, 64, 64]).iter().flatten().any(|matrix| matrix[1][1] < -0.6), "half turns are drawn in 2D");
    }

    #[test]
    fn strong_draws_rotation_and_scale_per_axis() {
        assert_eq!(Spatial::strong([40, 56, 40]).read_patch_size(), [89, 97, 78]);
        assert_eq!(Spatial::strong([28, 256, 256]).read_patch_size(), [28, 365, 365]);
        assert_eq!(Spatial::strong([1, 320, 160]).read_patch_size(), [1, 500, 228]);

        let spatial = Spatial::strong([40, 56, 40]);
        let draws: Vec<_> = (0..6000).map(|index| spatial.draw(&mut stream(9, Purpose::Augment, 0, index))).collect();
        let share = |count: usize| count as f64 / draws.len() as f64;
        let moved: Vec<_> = draws.iter().flatten().collect();
        // A rotation that draws no axis is still resampled, as in the reference.
        assert!((share(moved.len()) - (1.0 - 0.6 * 0.8)).abs() < 0.03, "{}", share(moved.len()));
        let turned = moved.iter().filter(|m| m[0][1] != 0.0 || m[0][2] != 0.0 || m[1][2] != 0.0).count();
        assert!((share(turned) - 0.4 * 0.875).abs() < 0.03, "{}", share(turned));
        let scales: Vec<[f64; 3]> = moved
            .iter()
            .map(|m| std::array::from_fn(|column| (0..3).map(|row| m[row][column].powi(2)).sum::<f64>().sqrt()))
            .collect();
        let own = scales.iter().filter(|scale| (scale[0] - scale[1]).abs() > 1e-6).count();
        assert!((share(own) - 0.2).abs() < 0.02, "{}", share(own));
        assert!(scales.as_flattened().iter().all(|scale| (0.7 - 1e-9..1.43 + 1e-9).contains(scale)));
        let largest = scales.as_flattened().iter().copied().fold(0.0, f64::max);
        assert!(largest > 1.4, "{largest}");
    }

    #[test]
    fn rotation_matrices_match_the_reference() {
        // create_matrix: Rx(first axis) first, as batchgeneratorsv2's `Rz @ Ry @ Rx @ S`.
        let matrix = rotation_after_scaling([PI / 2.0, 0.0, 0.0], [1.0, 2.0, 3.0]);
        let expected = [[1.0, 0.0, 0.0], [0.0, 0.0, -3.0], [0.0, 2.0, 0.0]];
        for (row, expected) in matrix.iter().zip(expected) {
            for (value, expected) in row.iter().zip(expected) {
                assert!((value - expected).abs() < 1e-12, "{matrix:?}");
            }
        }
    }

    /// `sin(0.7 i) + 0.3 cos(2.1 i)`.
    fn volume(shape: [usize; 3]) -> Patch {
        let mut patch = super::super::blank_patch(1, shape);
        for (index, value) in patch.data.iter_mut().enumerate() {
            let at = index as f64;
            *value = ((0.7 * at).sin() + 0.3 * (2.1 * at).cos()) as f32;
        }
        patch
    }

    #[test]
    fn rotated_and_scaled_patches_match_scipy() {
        // `scipy.ndimage.affine_transform` of order 1, mode `grid-constant`, about both centers.
        let source = volume([5, 6, 7]);
        let compare = |matrix: [[f64; 3]; 3], shape: [usize; 3], expected: &[f32]| {
            let mut target = super::super::blank_patch(1, shape);
            resample((&source).into(), &mut target, &matrix);
            for (ours, expected) in target.data.iter().zip(expected) {
                assert!((ours - expected).abs() < 2e-5, "{ours} instead of {expected}");
            }
        };
        compare(rotation_after_scaling([0.3, -0.2, 0.5], [0.8, 1.2, 1.1]), [3, 4, 5], &TURNED);
        // In-plane rotation treats each slice independently.
        compare(rotation_after_scaling([2.4, 0.0, 0.0], [1.0, 1.3, 1.3]), [5, 4, 4], &IN_PLANE);
    }

    const TURNED: [f32; 60] = [
        -0.04773, 0.68556, 0.35343, -0.42229, -0.74037, 0.01576, 0.44045, 0.17802, -0.32073, -0.27367, 0.01608,
        0.89309, 0.45314, -0.50682, -0.82335, 0.20974, 0.62376, 0.02249, -0.55543, -0.27722, -0.63072, -0.33636,
        0.44785, 0.52606, -0.09420, -0.55504, -0.24316, 0.48691, 0.50427, -0.16197, -0.55370, -0.14383, 0.58918,
        0.33334, -0.29975, -0.57479, -0.08370, 0.61124, 0.45866, -0.35915, 0.40892, -0.30832, -0.46510, 0.05320,
        0.50033, 0.07286, -0.60802, -0.50316, 0.48446, 0.61534, 0.19933, -0.30099, -0.29316, 0.15193, 0.43050, 0.04475,
        -0.53351, -0.38049, 0.42117, 0.47844,
    ];

    const IN_PLANE: [f32; 48] = [
        0.69218, 0.81185, 0.46541, 0.35878, -0.01844, -0.32718, -0.78703, -0.64590, -0.70862, -0.38010, -0.23844,
        0.47142, 0.51590, 0.77581, 0.62351, 0.83726, -0.31855, -0.14628, 0.10954, 0.63196, 0.80408, 0.81832, 0.50617,
        0.46152, 0.06279, -0.30127, -0.76419, -0.63318, -0.69420, -0.44871, -0.26972, 0.18592, -0.39123, -0.57271,
        -0.79611, -0.60756, -0.51479, -0.22785, 0.04675, 0.63456, 0.75536, 0.77793, 0.55927, 0.57303, 0.12747,
        -0.26411, -0.68925, -0.48417,
    ];
}
