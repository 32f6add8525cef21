//! Removal of all but the largest connected component.

use ndarray::{ArrayViewMut3, s};

use nnunet_image::components::Components;

/// Sets to `background` all voxels of the union of `members` that are not in its largest connected component.
///
/// Connectivity includes faces, edges and corners, the default of scikit-image's `label` and therefore of nnU-Net
/// (`acvl_utils/morphology/morphology_helper.py`, `remove_all_but_largest_component`). If several components share the
/// largest size, all of them are kept.
pub fn keep_largest(mut labels: ArrayViewMut3<i16>, members: &[i16], background: i16) {
    let components = Components::from_labels(labels.view(), members);
    let sizes = components.sizes();
    let largest = sizes.iter().copied().max().unwrap_or(0);
    for (run, _) in components.runs().filter(|(_, component)| sizes[*component] < largest) {
        let [z, y] = run.row;
        labels.slice_mut(s![z, y, run.begin..run.end]).fill(background);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn corners_connect_components() {
        let mut labels = Array3::<i16>::zeros((4, 4, 6));
        // A diagonal of four voxels, a bar of three and a single one.
        (0..4).for_each(|step| labels[[step, step, step]] = 1);
        labels.slice_mut(s![0, 3, 3..6]).fill(1);
        labels[[3, 0, 5]] = 1;
        let mut expected = Array3::<i16>::zeros((4, 4, 6));
        (0..4).for_each(|step| expected[[step, step, step]] = 1);
        keep_largest(labels.view_mut(), &[1], 0);
        assert_eq!(labels, expected);
    }

    #[test]
    fn keeps_components_of_equal_size_and_other_labels() {
        let row = |values: [i16; 9]| Array3::from_shape_vec((1, 1, 9), values.to_vec()).unwrap();
        for (members, expected) in [
            (&[1][..], [1, 1, 0, 1, 1, 0, 7, 2, 0]),
            (&[1, 2], [1, 1, 0, 1, 1, 0, 1, 2, 0]),
            (&[2], [1, 1, 0, 1, 1, 0, 1, 2, 0]),
            (&[1, 2, 0], [1, 1, 0, 1, 1, 0, 1, 2, 0]),
            (&[5], [1, 1, 0, 1, 1, 0, 1, 2, 0]),
        ] {
            let mut labels = row([1, 1, 0, 1, 1, 0, 1, 2, 0]);
            keep_largest(labels.view_mut(), members, 7);
            assert_eq!(labels, row(expected), "{members:?}");
        }
        keep_largest(Array3::zeros((0, 0, 0)).view_mut(), &[1], 0);
    }
}
