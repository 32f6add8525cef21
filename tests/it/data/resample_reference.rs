//! Compares resampling with nnU-Net v2's (`fixtures/resample`, `fixtures/planner/compute_new_shape.json`).

use std::fs::File;

use ndarray::{Array1, Array3, Array4, Axis, Ix1};
use ndarray_npy::{NpzReader, ReadNpyExt};
use nnunet_dist::image::{Resampling, compute_new_shape, resample_data, resample_labels};

use crate::common;

fn triple<T: Copy + std::fmt::Debug>(array: Array1<T>) -> [T; 3] {
    array.to_vec().try_into().unwrap()
}

/// Reads a spacing; the fixtures store them as different number types.
fn spacing(npz: &mut NpzReader<File>, name: &str) -> [f64; 3] {
    match npz.by_name::<ndarray::OwnedRepr<f64>, Ix1>(name) {
        Ok(array) => triple(array),
        Err(_) => triple(npz.by_name::<ndarray::OwnedRepr<i64>, Ix1>(name).unwrap()).map(|mm| mm as f64),
    }
}

#[test]
fn data_and_labels_agree_with_the_reference() {
    let Some(root) = common::shared() else { return };
    let case = root.join("fixtures/hippocampus/hippocampus_001");
    let open = |suffix: &str| File::open(format!("{}{suffix}", case.display())).unwrap();
    let data = Array4::<f32>::read_npy(open("_data.npy")).unwrap();
    let labels = Array4::<i16>::read_npy(open("_seg.npy")).unwrap();

    for path in common::fixtures("fixtures/resample", ".npz") {
        let mut npz = NpzReader::new(File::open(&path).unwrap()).unwrap();
        let shape = triple(npz.by_name::<ndarray::OwnedRepr<i64>, Ix1>("new_shape").unwrap()).map(|n| n as usize);
        let (current, new) = (spacing(&mut npz, "cur_spacing"), spacing(&mut npz, "new_spacing"));
        for (order, name) in [(3, "data_o3"), (1, "data_o1")] {
            let expected: Array4<f32> = npz.by_name(name).unwrap();
            let resampling = Resampling { order, order_z: 0, force_separate_z: None };
            let ours = resample_data(data.view(), shape, current, new, &resampling);
            assert_eq!(ours.dim(), expected.dim());
            let worst = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{}: {name} differs by {worst:.1e} at most", path.display());
            assert!(worst < 2e-5, "{}: {name} differs by {worst}", path.display());
        }
        let expected: Array4<i16> = npz.by_name("seg_o1").unwrap();
        let expected: Array3<i16> = expected.index_axis_move(Axis(0), 0);
        let resampling = Resampling { order: 1, order_z: 0, force_separate_z: None };
        let ours = resample_labels(labels.index_axis(Axis(0), 0), shape, current, new, &resampling);
        let differing = ours.iter().zip(&expected).filter(|(a, b)| a != b).count();
        println!("{}: {differing} of {} labels differ", path.display(), ours.len());
        // If a class is at exactly one half, the last digit of a sum decides.
        assert!((differing as f64) < 5e-4 * ours.len() as f64);
    }
}

#[derive(serde::Deserialize)]
struct NewShape {
    old_shape: [usize; 3],
    old_spacing: [f64; 3],
    new_spacing: [f64; 3],
    new_shape: [usize; 3],
}

#[test]
fn new_shapes_are_identical() {
    for path in common::fixtures("fixtures/planner", "compute_new_shape.json") {
        let cases: Vec<NewShape> = serde_json::from_reader(File::open(&path).unwrap()).unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            assert_eq!(compute_new_shape(case.old_shape, case.old_spacing, case.new_spacing), case.new_shape);
        }
    }
}
