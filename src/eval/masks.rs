//! Binary masks of one class at a time, cropped to its bounding box.

use std::collections::HashMap;

use ndarray::{Array3, ArrayView3, Zip, s};

use nnunet_data::dataset::LabelValue;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_cropped_to_what_either_map_has_and_ignored_voxels_have_nothing() {
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
}
