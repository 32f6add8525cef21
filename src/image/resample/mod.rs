//! Resampling to another voxel size, as in nnU-Net v2 (`default_resampling.py`).
//!
//! The reference is `skimage.transform.resize(mode='edge', anti_aliasing=False)`: spline interpolation between voxel
//! centers with the border voxels extended outward, clipped to the range of the input. Splines are separable, so an
//! image is resampled axis by axis: along z between whole planes ([`volume`]), then within each plane ([`plane`]). If
//! the voxels are far longer along one axis than along the others, that axis is resampled separately, usually to the
//! nearest slice.

mod labels;
mod plane;
mod spline;
mod volume;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, ArrayViewMut3};

pub use self::labels::resample_labels;
pub use spline::{linear, nearest, positions};

/// Ratio of largest to smallest spacing above which the coarse axis is resampled separately (`ANISO_THRESHOLD`).
const ANISOTROPY_THRESHOLD: f64 = 3.0;

/// Interpolation orders of a resampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// Spline order: 0 nearest, 1 linear, 3 cubic.
    pub order: usize,
    /// Spline order along an axis that is resampled separately.
    pub order_z: usize,
    /// Whether the axis of the largest spacing is resampled separately; `None` decides by anisotropy.
    pub force_separate_z: Option<bool>,
}

impl Resampling {
    /// The axis to resample separately, if any; spacings in mm.
    pub fn separate_axis(&self, current_spacing: [f64; 3], new_spacing: [f64; 3]) -> Option<usize> {
        let decisive = match self.force_separate_z {
            Some(false) => return None,
            Some(true) => current_spacing,
            None if is_anisotropic(current_spacing) => current_spacing,
            None if is_anisotropic(new_spacing) => new_spacing,
            None => return None,
        };
        let largest = decisive.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let mut axes = (0..3).filter(|axis| decisive[*axis] == largest);
        // If two axes share the largest spacing, there is no single axis to separate.
        axes.next().filter(|_| axes.next().is_none())
    }
}

fn is_anisotropic(spacing: [f64; 3]) -> bool {
    let largest = spacing.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let smallest = spacing.into_iter().fold(f64::INFINITY, f64::min);
    largest / smallest > ANISOTROPY_THRESHOLD
}

/// Shape of an image after resampling, rounded half to even as Python does.
pub fn compute_new_shape(shape: [usize; 3], current_spacing: [f64; 3], new_spacing: [f64; 3]) -> [usize; 3] {
    std::array::from_fn(|axis| {
        (current_spacing[axis] / new_spacing[axis] * shape[axis] as f64).round_ties_even() as usize
    })
}

/// Resamples intensities `(channel, z, y, x)` to `new_shape`.
///
/// The spacings, in mm, only determine whether an axis is resampled separately.
pub fn resample_data(
    data: ArrayView4<f32>,
    new_shape: [usize; 3],
    current_spacing: [f64; 3],
    new_spacing: [f64; 3],
    resampling: &Resampling,
) -> Array4<f32> {
    let (channels, z, y, x) = data.dim();
    if [z, y, x] == new_shape {
        return data.to_owned();
    }
    let separate = resampling.separate_axis(current_spacing, new_spacing);
    let mut resampled = Array4::zeros((channels, new_shape[0], new_shape[1], new_shape[2]));
    for (channel, out) in data.outer_iter().zip(resampled.outer_iter_mut()) {
        match separate {
            Some(axis) => resample_separately(channel, out, axis, resampling),
            None => volume::resample(channel, out, resampling.order),
        }
    }
    resampled
}

/// Resamples `axis` separately, after swapping it with the first axis.
fn resample_separately(image: ArrayView3<f32>, mut out: ArrayViewMut3<f32>, axis: usize, resampling: &Resampling) {
    let Resampling { order, order_z, .. } = *resampling;
    if axis == 0 {
        return volume::resample_slices(image, out, order, order_z);
    }
    let mut image = image;
    image.swap_axes(0, axis);
    out.swap_axes(0, axis);
    let mut resampled = Array3::zeros(out.raw_dim());
    volume::resample_slices(image, resampled.view_mut(), order, order_z);
    out.assign(&resampled);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUBIC: Resampling = Resampling { order: 3, order_z: 0, force_separate_z: None };

    #[test]
    fn separates_an_axis_only_if_it_alone_is_coarse() {
        assert_eq!(CUBIC.separate_axis([5.0, 1.0, 1.0], [1.0; 3]), Some(0));
        assert_eq!(CUBIC.separate_axis([1.0; 3], [1.0, 4.0, 1.0]), Some(1));
        assert_eq!(CUBIC.separate_axis([1.0, 1.0, 3.0], [1.0; 3]), None);
        assert_eq!(CUBIC.separate_axis([0.2, 1.0, 1.0], [1.0; 3]), None);
        let never = Resampling { force_separate_z: Some(false), ..CUBIC };
        assert_eq!(never.separate_axis([5.0, 1.0, 1.0], [1.0; 3]), None);
        let always = Resampling { force_separate_z: Some(true), ..CUBIC };
        assert_eq!(always.separate_axis([1.0, 1.0, 1.5], [1.0; 3]), Some(2));
    }

    #[test]
    fn preserves_constants_and_inner_ramps() {
        let flat = Array4::from_elem((1, 5, 6, 7), 3.5f32);
        let resampled = resample_data(flat.view(), [9, 3, 14], [1.0; 3], [1.0; 3], &CUBIC);
        assert!(resampled.iter().all(|value| (value - 3.5).abs() < 1e-5));
        let ramp = Array4::from_shape_fn((1, 4, 4, 40), |(_, _, _, x)| x as f32);
        let resampled = resample_data(ramp.view(), [4, 4, 80], [1.0; 3], [1.0; 3], &CUBIC);
        for x in 20..60 {
            let expected = (x as f32 + 0.5) / 2.0 - 0.5;
            assert!((resampled[[0, 1, 2, x]] - expected).abs() < 1e-4, "at {x}");
        }
    }
}
