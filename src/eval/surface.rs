//! Surface distances between the masks of a class, and the distance transform that they are computed with.

use std::collections::HashMap;

use ndarray::{Array3, ArrayView3, ArrayViewMut1, Axis, Zip, s};
use nnunet_data::dataset::LabelValue;
use rayon::prelude::*;

use super::summary::quantile;

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

/// `[start, end)` voxel along each axis.
type Bounds = [[usize; 2]; 3];

/// The two label maps of a case and the bounding box of each label.
pub struct ClassMasks<'a> {
    prediction: ArrayView3<'a, i16>,
    reference: ArrayView3<'a, i16>,
    ignore_label: Option<i16>,
    /// Bounding box of each label in either map.
    bounds: HashMap<i16, Bounds>,
}

impl<'a> ClassMasks<'a> {
    /// Finds the bounding boxes of two maps of the same shape. Voxels with reference label `ignore_label` belong to no
    /// class in either map.
    pub fn new(prediction: ArrayView3<'a, i16>, reference: ArrayView3<'a, i16>, ignore_label: Option<i16>) -> Self {
        let mut bounds = HashMap::new();
        find_bounds(prediction, &mut bounds);
        find_bounds(reference, &mut bounds);
        Self { prediction, reference, ignore_label, bounds }
    }

    /// Shape of the whole image, `(z, y, x)`.
    pub fn extent(&self) -> [usize; 3] {
        self.reference.dim().into()
    }

    /// Masks of a class or region in the prediction and the reference, both cropped to the bounding box of their union.
    pub fn for_class(&self, class: &LabelValue) -> [Array3<bool>; 2] {
        let boxes = class.members().iter().filter_map(|label| self.bounds.get(label));
        let [z, y, x] = boxes.copied().reduce(around).unwrap_or([[0, 0]; 3]);
        let crop = s![z[0]..z[1], y[0]..y[1], x[0]..x[1]];
        let (prediction, reference) = (self.prediction.slice(crop), self.reference.slice(crop));
        let mut masks = [&prediction, &reference].map(|map| Array3::from_elem(map.raw_dim(), false));
        let [predicted, truly] = &mut masks;
        let has_class = |label: i16| class.members().contains(&label);
        Zip::from(predicted).and(truly).and(prediction).and(reference).par_for_each(
            |predicted, truly, prediction, reference| {
                let counts = Some(*reference) != self.ignore_label;
                (*predicted, *truly) = (counts && has_class(*prediction), counts && has_class(*reference));
            },
        );
        masks
    }
}

/// Extends the bounding box of each label by a map.
fn find_bounds(map: ArrayView3<i16>, bounds: &mut HashMap<i16, Bounds>) {
    let rows = map.len_of(ndarray::Axis(1));
    for (row, labels) in map.rows().into_iter().enumerate() {
        let (z, y) = (row / rows, row % rows);
        let mut first = 0;
        // Only the ends of a run of equal labels matter.
        for x in 1..=labels.len() {
            if x == labels.len() || labels[x] != labels[first] {
                let run = [[z, z + 1], [y, y + 1], [first, x]];
                bounds.entry(labels[first]).and_modify(|known| *known = around(*known, run)).or_insert(run);
                first = x;
            }
        }
    }
}

/// Bounding box of two boxes.
fn around(one: Bounds, other: Bounds) -> Bounds {
    std::array::from_fn(|axis| [one[axis][0].min(other[axis][0]), one[axis][1].max(other[axis][1])])
}

/// Squared distance in mm² from the center of every voxel to that of the nearest set voxel; infinite if none is set.
/// `set` and the result are `(z, y, x)`, `spacing` is in mm.
///
/// Exact for anisotropic voxels (to f32 precision): per axis, the lower envelope of the parabolas rooted at the voxels
/// (Felzenszwalb and Huttenlocher: Distance transforms of sampled functions. Theory of Computing 8, 2012). Linear in
/// the number of voxels.
pub fn squared_distances(set: ArrayView3<bool>, spacing: [f64; 3]) -> Array3<f32> {
    let mut squares = set.mapv(|is_set| if is_set { 0.0 } else { f32::INFINITY });
    // Axis to transform, axis across which to parallelize, and index of the former within a plane.
    for (axis, across, within) in [(2, 0, 1), (1, 0, 0), (0, 1, 0)] {
        if squares.len_of(Axis(axis)) > 1 {
            squares.axis_iter_mut(Axis(across)).into_par_iter().for_each_init(
                Envelope::default,
                |envelope, mut plane| {
                    plane.lanes_mut(Axis(within)).into_iter().for_each(|line| envelope.apply(line, spacing[axis]));
                },
            );
        }
    }
    squares
}

/// Lower envelope of the parabolas of a line, with reusable buffers.
#[derive(Default)]
struct Envelope {
    /// Values of the line.
    heights: Vec<f64>,
    /// Roots of the parabolas of the envelope, in voxels.
    feet: Vec<usize>,
    /// Position from which each of them is the lowest, in voxels.
    begins: Vec<f64>,
}

impl Envelope {
    /// Replaces the values of a line by the lower envelope of the parabolas rooted at them.
    fn apply(&mut self, mut line: ArrayViewMut1<f32>, spacing: f64) {
        let Self { heights, feet, begins } = self;
        heights.clear();
        heights.extend(line.iter().map(|height| f64::from(*height)));
        feet.clear();
        begins.clear();
        let square = spacing * spacing;
        let crossing = |one: usize, other: usize| {
            let (a, b) = (one as f64, other as f64);
            ((heights[other] - heights[one]) / square + b * b - a * a) / (2.0 * (b - a))
        };
        for foot in (0..heights.len()).filter(|foot| heights[*foot].is_finite()) {
            let mut begin = f64::NEG_INFINITY;
            while let (Some(last), Some(last_begin)) = (feet.last(), begins.last()) {
                begin = crossing(*last, foot);
                if begin > *last_begin {
                    break;
                }
                feet.pop();
                begins.pop();
                begin = f64::NEG_INFINITY;
            }
            feet.push(foot);
            begins.push(begin);
        }
        if feet.is_empty() {
            return;
        }
        let mut lowest = 0;
        for (at, value) in line.iter_mut().enumerate() {
            while begins.get(lowest + 1).is_some_and(|begin| *begin < at as f64) {
                lowest += 1;
            }
            let steps = at as f64 - feet[lowest] as f64;
            *value = (heights[feet[lowest]] + steps * steps * square) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::s;
    use nnunet_core::rng::{Purpose, stream};
    use rand::Rng;

    fn masks(shape: [usize; 3]) -> [Array3<bool>; 2] {
        [Array3::from_elem(shape, false), Array3::from_elem(shape, false)]
    }

    #[test]
    fn distance_of_a_shifted_box_is_the_shift() {
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
    fn surface_in_2d_is_the_outline() {
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
    fn empty_mask_has_undefined_distance_and_zero_surface_dice() {
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

    #[test]
    fn masks_are_cropped_to_the_union_and_exclude_ignored_voxels() {
        let mut prediction = Array3::<i16>::zeros((4, 5, 6));
        let mut reference = prediction.clone();
        prediction[[1, 2, 3]] = 2;
        prediction[[1, 2, 4]] = 1;
        prediction[[3, 4, 5]] = 2;
        reference[[1, 3, 3]] = 2;
        reference[[3, 4, 5]] = 9;
        let masks = ClassMasks::new(prediction.view(), reference.view(), Some(9));
        let [predicted, truly] = masks.for_class(&LabelValue::Class(1));
        assert_eq!((predicted.dim(), predicted[[0, 0, 0]], truly[[0, 0, 0]]), ((1, 1, 1), true, false));
        let [predicted, truly] = masks.for_class(&LabelValue::Region(vec![2, 1]));
        assert_eq!(predicted.dim(), (3, 3, 3));
        let set =
            |mask: &Array3<bool>| mask.indexed_iter().filter(|(_, set)| **set).map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(set(&predicted), [(0, 0, 0), (0, 0, 1)]);
        assert_eq!(set(&truly), [(0, 1, 0)]);
        assert_eq!(masks.for_class(&LabelValue::Class(7))[0].len(), 0);
        assert_eq!(masks.extent(), [4, 5, 6]);
    }

    /// Brute force: every voxel against every set voxel.
    fn by_definition(set: &Array3<bool>, spacing: [f64; 3]) -> Array3<f64> {
        let sites: Vec<_> = set.indexed_iter().filter(|(_, is_set)| **is_set).map(|(at, _)| at).collect();
        Array3::from_shape_fn(set.dim(), |(z, y, x)| {
            let square = |(k, j, i): (usize, usize, usize)| {
                let offsets = [z.abs_diff(k), y.abs_diff(j), x.abs_diff(i)];
                offsets.iter().zip(spacing).map(|(steps, spacing)| (*steps as f64 * spacing).powi(2)).sum::<f64>()
            };
            sites.iter().map(|site| square(*site)).fold(f64::INFINITY, f64::min)
        })
    }

    #[test]
    fn distances_are_exact_for_anisotropic_voxels() {
        let mut rng = stream(3, Purpose::Phantom, 0, 0);
        for (shape, spacing, density) in [
            ((7, 9, 11), [1.0; 3], 0.03),
            ((5, 12, 8), [3.6, 0.7, 0.9], 0.02),
            ((1, 13, 17), [999.0, 0.5, 2.0], 0.05),
            ((9, 1, 1), [2.5, 1.0, 1.0], 0.3),
            ((6, 6, 6), [0.4, 5.0, 1.0], 0.6),
        ] {
            for _ in 0..5 {
                let set = Array3::from_shape_simple_fn(shape, || rng.random_bool(density));
                let (found, expected) = (squared_distances(set.view(), spacing), by_definition(&set, spacing));
                for (found, expected) in found.iter().zip(&expected) {
                    let is_near = (f64::from(*found) - expected).abs() <= 1e-6 * expected;
                    assert!(is_near || f64::from(*found) == *expected, "{shape:?}: {found} where {expected} is right");
                }
            }
        }
    }

    #[test]
    fn distances_are_infinite_without_a_set_voxel() {
        let set = Array3::from_elem((2, 3, 4), false);
        assert!(squared_distances(set.view(), [1.0; 3]).iter().all(|square| *square == f32::INFINITY));
    }
}
