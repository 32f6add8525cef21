//! The native store returns the written data, for any box, and refuses damaged files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array3, Array4};
use nnunet_dist::image::Geometry;
use nnunet_dist::store::{
    CachedStore, CaseProperties, CaseStore, NativeStore, Patch, PreprocessedCase, clear, read_case_properties,
    write_case,
};

const SHAPE: [usize; 3] = [5, 7, 6];

/// A case with a different value in every voxel.
fn case(channels: usize, [z, y, x]: [usize; 3]) -> PreprocessedCase {
    let properties = CaseProperties {
        geometry: Geometry { spacing: [2.5, 1.0, 0.7], origin: [-3.0, 4.5, 1e-3], ..Geometry::default() },
        transpose_forward: [0, 1, 2],
        shape_before_cropping: [z, y, x],
        bbox_used_for_cropping: [[0, z], [0, y], [0, x]],
        shape_after_cropping_and_before_resampling: [z, y, x],
        shape_after_resampling: [z, y, x],
        spacing_after_resampling: [2.5, 1.0, 0.7],
        class_locations: BTreeMap::from([(1, vec![[0, 0, 1], [z as u32 - 1, 2, 3]]), (117, vec![[0, 0, 0]])]),
    };
    let index = |z_, y_, x_| (z_ * y + y_) * x + x_;
    PreprocessedCase {
        data: Array4::from_shape_fn((channels, z, y, x), |(c, z, y, x)| (1000 * c + index(z, y, x) + 1) as f32 * 0.5),
        labels: Some(Array3::from_shape_fn((z, y, x), |(z, y, x)| index(z, y, x) as i16 + 1)),
        properties,
    }
}

fn stored(cases: &[(&str, &PreprocessedCase)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (id, case) in cases {
        write_case(folder.path(), id, case).unwrap();
    }
    folder
}

/// A patch filled with values that must be overwritten.
fn dirty_patch(channels: usize, [z, y, x]: [usize; 3]) -> Patch {
    Patch {
        data: Array4::from_elem((channels, z, y, x), f32::NAN),
        labels: Array3::from_elem((z, y, x), i16::MIN),
        previous: None,
    }
}

#[test]
fn a_case_survives_the_disk() {
    let first = case(2, SHAPE);
    let second = case(2, [1, 9, 4]);
    let folder = stored(&[("b", &first), ("a", &second)]);
    let store = NativeStore::open(folder.path()).unwrap();
    assert_eq!(store.case_ids(), ["a", "b"]);
    for (id, case) in [("b", &first), ("a", &second)] {
        let info = store.info(id).unwrap();
        let shape = case.properties.shape_after_resampling;
        assert_eq!((info.channels, info.shape), (2, shape));
        assert_eq!(info.class_locations, case.properties.class_locations);
        let mut patch = dirty_patch(2, shape);
        store.read_patch(id, [0; 3], &mut patch).unwrap();
        assert_eq!(patch.data, case.data);
        assert_eq!(Some(patch.labels), case.labels);
        assert_eq!(read_case_properties(folder.path(), id).unwrap(), case.properties);
    }
    assert!(store.info("c").unwrap_err().to_string().contains("no case c"));
}

#[test]
fn numpy_files_have_numpys_format() {
    let case = case(2, SHAPE);
    let folder = stored(&[("a", &case)]);
    let data: Array4<f32> = ndarray_npy::read_npy(folder.path().join("a.npy")).unwrap();
    let labels: Array4<i16> = ndarray_npy::read_npy(folder.path().join("a_seg.npy")).unwrap();
    assert_eq!(data, case.data);
    assert_eq!(labels.remove_axis(ndarray::Axis(0)), case.labels.unwrap());
}

#[test]
fn patches_inside_across_and_outside_of_borders_equal_a_naive_loop() {
    let case = case(2, SHAPE);
    let labels = case.labels.as_ref().unwrap();
    let folder = stored(&[("a", &case)]);
    let store = NativeStore::open(folder.path()).unwrap();
    // Offsets before, across, at, within, across the far border of, and beyond each axis, with a patch that fits within
    // the image and one that exceeds it.
    for size in [[2, 3, 2], [9, 4, 11], [1, 1, 1]] {
        let offsets = |axis: usize| {
            let (extent, size) = (SHAPE[axis] as isize, size[axis] as isize);
            [-size - 1, -size, 1 - size, -1, 0, 1, extent - size, extent - 1, extent, extent + 3]
        };
        let mut patch = dirty_patch(2, size);
        for z in offsets(0) {
            for y in offsets(1) {
                for x in offsets(2) {
                    store.read_patch("a", [z, y, x], &mut patch).unwrap();
                    let source = |k: usize, j: usize, i: usize| {
                        let at = [z + k as isize, y + j as isize, x + i as isize];
                        let within = (0..3).all(|axis| (0..SHAPE[axis] as isize).contains(&at[axis]));
                        within.then(|| at.map(|index| index as usize))
                    };
                    for ((c, k, j, i), &got) in patch.data.indexed_iter() {
                        let want = source(k, j, i).map_or(0.0, |[z, y, x]| case.data[[c, z, y, x]]);
                        assert_eq!(got, want, "channel {c} at {:?}", [z, y, x]);
                    }
                    for ((k, j, i), &got) in patch.labels.indexed_iter() {
                        assert_eq!(got, source(k, j, i).map_or(-1, |at| labels[at]), "at {:?}", [z, y, x]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_patch_of_other_channels_is_an_error() {
    let folder = stored(&[("a", &case(2, SHAPE))]);
    let store = NativeStore::open(folder.path()).unwrap();
    let error = store.read_patch("a", [0; 3], &mut dirty_patch(1, [2; 3])).unwrap_err();
    assert!(error.path.ends_with("a.npy") && error.defect.contains("2 channels"), "{error}");
}

#[test]
fn damage_is_an_error_that_names_the_file() {
    let cut = |path: &Path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    let empty = |path: &Path| fs::write(path, b"").unwrap();
    let delete = |path: &Path| fs::remove_file(path).unwrap();
    let of_another_case = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap().replacen('a', "b", 1);
        fs::copy(path.with_file_name(name), path).unwrap();
    };
    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [(&str, Damage); 9] = [
        ("a.npy", &cut),
        ("a.npy", &empty),
        ("a.npy", &delete),
        ("a.npy", &of_another_case),
        ("a_seg.npy", &cut),
        ("a_seg.npy", &delete),
        ("a_seg.npy", &of_another_case),
        ("a.json", &cut_json),
        ("a.json", &location_outside),
    ];
    for (number, (name, damage)) in damages.iter().enumerate() {
        let folder = stored(&[("a", &case(1, SHAPE)), ("b", &case(1, [2, 3, 4]))]);
        damage(&folder.path().join(name));
        let Err(error) = NativeStore::open(folder.path()) else { panic!("damage {number} to {name} went unnoticed") };
        assert!(error.path.ends_with(name), "damage {number} to {name}: {error}");
        assert!(!error.defect.is_empty());
    }
}

fn cut_json(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, &text[..text.len() / 2]).unwrap();
}

fn location_outside(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replace("[0,0,1]", "[0,7,1]")).unwrap();
}

#[test]
fn an_empty_folder_and_a_missing_one_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    assert!(NativeStore::open(folder.path()).err().unwrap().defect.contains("preprocess the dataset first"));
    assert!(NativeStore::open(&folder.path().join("none")).err().unwrap().path.ends_with("none"));
}

#[test]
fn an_incomplete_case_is_not_listed() {
    let folder = stored(&[("a", &case(1, SHAPE)), ("b", &case(1, SHAPE))]);
    fs::remove_file(folder.path().join("a.json")).unwrap();
    assert_eq!(NativeStore::open(folder.path()).unwrap().case_ids(), ["b"]);
}

#[test]
fn invalid_cases_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let unlabelled = PreprocessedCase { labels: None, ..case(1, SHAPE) };
    assert!(write_case(folder.path(), "a", &unlabelled).unwrap_err().defect.contains("no labels"));
    assert!(write_case(folder.path(), "a_seg", &case(1, SHAPE)).unwrap_err().defect.contains("_seg"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn clearing_removes_cases_and_leftovers_and_nothing_else() {
    let folder = stored(&[("a", &case(1, SHAPE))]);
    fs::write(folder.path().join(".partial-x1"), b"half").unwrap();
    fs::write(folder.path().join("notes.txt"), b"keep").unwrap();
    clear(folder.path()).unwrap();
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes.txt"]);
    clear(&folder.path().join("never made")).unwrap();
}

#[test]
fn a_cache_returns_the_stores_data_within_its_memory_limit() {
    let cases: Vec<_> = (0..4).map(|number| case(2, [5 + number, 7, 6])).collect();
    let folder = stored(&[("a", &cases[0]), ("b", &cases[1]), ("c", &cases[2]), ("d", &cases[3])]);
    let store = Arc::new(NativeStore::open(folder.path()).unwrap());
    let bytes = |number: usize| (5 + number) * 7 * 6 * (2 * 4 + 2);
    // Capacity for two of them, for none, for all.
    for bound in [bytes(3) + bytes(2), 100, 1 << 20] {
        let cached = CachedStore::new(store.clone(), bound);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (cached, store) = (&cached, &store);
                scope.spawn(move || {
                    for turn in 0..40_usize {
                        let id = ["a", "b", "c", "d"][(turn * 7 + thread) % 4];
                        let lo = [turn as isize % 7 - 3, thread as isize - 2, 1];
                        let [mut ours, mut expected] = [(); 2].map(|()| dirty_patch(2, [4, 5, 6]));
                        cached.read_patch(id, lo, &mut ours).unwrap();
                        store.read_patch(id, lo, &mut expected).unwrap();
                        assert_eq!(ours, expected, "{id} at {lo:?}");
                        assert!(cached.bytes() <= bound, "{} of {bound}", cached.bytes());
                    }
                });
            }
        });
        assert_eq!(cached.bytes() > 0, bound > 100);
    }
    let cached = CachedStore::new(store, 1 << 20);
    assert!(cached.read_patch("e", [0; 3], &mut dirty_patch(2, [4, 5, 6])).is_err());
}
