//! Surface distances between two masks.

use ndarray::{Array3, ArrayView3, Zip};

use super::distance::squared_distances;
use super::quantile::quantile;

/// Relative slack of the tolerance for rounding errors.
const ROUNDING: f64 = 1e-6;

/// Distance from each surface voxel of one mask to the nearest surface voxel of the other, in mm between centers, in
/// both directions.
///
/// Surface voxels are voxels of the mask with a neighbor along an axis that is not in the mask; voxels outside of the
/// image are not in the mask. An axis with a single voxel has no neighbors, so that in 2D the surface is the outline.
/// These definitions are those of MONAI (`monai/metrics/utils.py`, `get_mask_edges` and `get_surface_distance`) and of
/// MedPy. DeepMind's surface-distance builds triangles between the voxels and weights distances by their areas, which
/// gives slightly different values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SurfaceDistances {
    /// Distances of the predicted surface to the reference surface, mm; empty if either mask is empty.
    pub from_prediction: Vec<f64>,
    /// Distances of the reference surface to the predicted surface, mm; empty if either mask is empty.
    pub from_reference: Vec<f64>,
    /// Whether exactly one of the masks is empty.
    is_one_empty: bool,
}

impl SurfaceDistances {
    /// Computes the distances between two masks `(z, y, x)` of the same image, cropped to the same box or not at all;
    /// all voxels outside of the crop are unset. `extent` is the shape of the image, `spacing` is in mm, both `(z, y,
    /// x)`.
    ///
    /// # Panics
    /// Panics if the masks differ in shape.
    pub fn new(
        prediction: ArrayView3<bool>,
        reference: ArrayView3<bool>,
        extent: [usize; 3],
        spacing: [f64; 3],
    ) -> Self {
        assert_eq!(prediction.dim(), reference.dim(), "masks of one image");
        let is_empty = [&prediction, &reference].map(|mask| !mask.iter().any(|inside| *inside));
        if is_empty[0] || is_empty[1] {
            return Self { is_one_empty: is_empty[0] != is_empty[1], ..Self::default() };
        }
        let surfaces = [surface(prediction, extent), surface(reference, extent)];
        Self {
            from_prediction: distances(&surfaces[0], &surfaces[1], spacing),
            from_reference: distances(&surfaces[1], &surfaces[0], spacing),
            is_one_empty: false,
        }
    }

    /// Normalized surface Dice: the fraction of both surfaces within `tolerance` mm of the other one (Nikolov et al.
    /// 2021; MONAI, `compute_surface_dice`). 0 if one mask is empty, NaN if both are.
    pub fn normalized_surface_dice(&self, tolerance: f64) -> f64 {
        if self.is_one_empty {
            return 0.0;
        }
        let bound = tolerance * (1.0 + ROUNDING);
        self.both().filter(|distance| *distance <= bound).count() as f64 / self.both().count() as f64
    }

    /// The larger of the 95th percentiles of both directions, mm (MONAI, `compute_hausdorff_distance`, percentile 95;
    /// percentiles are interpolated as in NumPy). NaN if a mask is empty.
    pub fn hausdorff_95(&self) -> f64 {
        // Either both are empty or neither.
        quantile(&mut self.from_prediction.clone(), 0.95).max(quantile(&mut self.from_reference.clone(), 0.95))
    }

    /// Mean distance over the voxels of both surfaces, mm (MONAI, `compute_average_surface_distance`, symmetric). NaN
    /// if a mask is empty.
    pub fn average(&self) -> f64 {
        self.both().sum::<f64>() / self.both().count() as f64
    }

    fn both(&self) -> impl Iterator<Item = f64> + '_ {
        self.from_prediction.iter().chain(&self.from_reference).copied()
    }
}

/// Voxels of the mask with a neighbor outside of it.
fn surface(mask: ArrayView3<bool>, extent: [usize; 3]) -> Array3<bool> {
    let shape: [usize; 3] = mask.dim().into();
    let axes: Vec<usize> = (0..3).filter(|axis| extent[*axis] > 1).collect();
    let is_inner = |at: [usize; 3]| {
        axes.iter().all(|&axis| {
            let neighbor = |index: usize| {
                let mut neighbor = at;
                neighbor[axis] = index;
                mask[neighbor]
            };
            at[axis] > 0 && at[axis] + 1 < shape[axis] && neighbor(at[axis] - 1) && neighbor(at[axis] + 1)
        })
    };
    let mut surface = Array3::from_elem(mask.raw_dim(), false);
    Zip::indexed(&mut surface).and(mask).par_for_each(|(z, y, x), on_surface, inside| {
        *on_surface = *inside && !is_inner([z, y, x]);
    });
    surface
}

fn distances(from: &Array3<bool>, to: &Array3<bool>, spacing: [f64; 3]) -> Vec<f64> {
    let squares = squared_distances(to.view(), spacing);
    let on_surface = from.iter().zip(&squares).filter(|(on_surface, _)| **on_surface);
    on_surface.map(|(_, square)| f64::from(*square).sqrt()).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::s;

    use super::*;

    fn masks(shape: [usize; 3]) -> [Array3<bool>; 2] {
        [Array3::from_elem(shape, false), Array3::from_elem(shape, false)]
    }

    #[test]
    fn a_shifted_box_is_as_far_as_it_was_shifted() {
        let [mut prediction, mut reference] = masks([10, 10, 10]);
        reference.slice_mut(s![2..5, 2..5, 2..5]).fill(true);
        prediction.slice_mut(s![4..7, 2..5, 2..5]).fill(true);
        let distances = SurfaceDistances::new(prediction.view(), reference.view(), [10; 3], [0.7, 1.0, 1.0]);
        // All 26 voxels but the center are surface; those of the far faces are two steps of 0.7 mm away.
        assert_eq!((distances.from_prediction.len(), distances.from_reference.len()), (26, 26));
        assert!((distances.hausdorff_95() - 1.4).abs() < 1e-6);
        assert_eq!(distances.normalized_surface_dice(1.4), 1.0);
        let within: usize = distances.both().filter(|distance| *distance < 0.8).count();
        assert_eq!(distances.normalized_surface_dice(0.7), within as f64 / 52.0);
    }

    #[test]
    fn an_outline_in_a_plane_is_no_filled_shape() {
        let [mut prediction, mut reference] = masks([1, 9, 9]);
        reference.slice_mut(s![0, 1..8, 1..8]).fill(true);
        prediction.slice_mut(s![0, 2..7, 2..7]).fill(true);
        let distances = SurfaceDistances::new(prediction.view(), reference.view(), [1, 9, 9], [5.0, 1.0, 1.0]);
        assert_eq!((distances.from_prediction.len(), distances.from_reference.len()), (16, 24));
        // The same in a single slice of a volume: all voxels have unset neighbors above and below.
        let distances = SurfaceDistances::new(prediction.view(), reference.view(), [3, 9, 9], [5.0, 1.0, 1.0]);
        assert_eq!((distances.from_prediction.len(), distances.from_reference.len()), (25, 49));
    }

    #[test]
    fn an_empty_mask_has_no_distance_but_no_agreement_either() {
        let [empty, mut full] = masks([3, 3, 3]);
        full.fill(true);
        let one = SurfaceDistances::new(empty.view(), full.view(), [3; 3], [1.0; 3]);
        assert!(one.normalized_surface_dice(2.0) == 0.0 && one.hausdorff_95().is_nan() && one.average().is_nan());
        let other = SurfaceDistances::new(full.view(), empty.view(), [3; 3], [1.0; 3]);
        assert!(other.normalized_surface_dice(2.0) == 0.0 && other.hausdorff_95().is_nan() && other.average().is_nan());
        let both = SurfaceDistances::new(empty.view(), empty.view(), [3; 3], [1.0; 3]);
        assert!(both.normalized_surface_dice(2.0).is_nan() && both.hausdorff_95().is_nan() && both.average().is_nan());
        let same = SurfaceDistances::new(full.view(), full.view(), [3; 3], [1.0; 3]);
        assert_eq!((same.normalized_surface_dice(0.0), same.hausdorff_95(), same.average()), (1.0, 0.0, 0.0));
    }
}
