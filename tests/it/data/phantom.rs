//! Phantoms are deterministic in the seed, and intensity alone does not segment them.

use std::collections::BTreeMap;
use std::path::Path;

use nnunet_dist::image::{read_labels, read_volume};
use nnunet_dist::phantom::{self, PhantomOptions};

/// Contents of all files below `folder`, by path relative to it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in std::fs::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn generate(options: &PhantomOptions) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    options.generate(folder.path()).unwrap();
    files(folder.path())
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let options = PhantomOptions { train_cases: 2, test_cases: 1, shape: [12, 16, 14], seed: 5 };
    let first = generate(&options);
    let names: Vec<_> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "dataset.json",
            "imagesTr/phantom_000_0000.nii.gz",
            "imagesTr/phantom_001_0000.nii.gz",
            "imagesTs/phantom_002_0000.nii.gz",
            "labelsTr/phantom_000.nii.gz",
            "labelsTr/phantom_001.nii.gz",
            "labelsTs/phantom_002.nii.gz",
        ]
    );
    assert!(first == generate(&options), "same seed, other files");
    let other = generate(&PhantomOptions { seed: 6, ..options });
    assert!(first.iter().all(|(name, bytes)| name == "dataset.json" || other[name] != *bytes));
}

#[test]
fn image_and_labels_lie_on_the_same_voxels() {
    let folder = tempfile::tempdir().unwrap();
    PhantomOptions { train_cases: 6, test_cases: 0, shape: [24, 24, 24], seed: 7 }.generate(folder.path()).unwrap();
    let mut geometries = Vec::new();
    for index in 0..6 {
        let (image, labels) = case(folder.path(), index);
        assert_eq!(image.data.shape()[1..], *labels.data.shape());
        assert_eq!(image.geometry, labels.geometry);
        for class in [1, 2] {
            assert!(labels.data.iter().any(|&label| label == class), "case {index} has no class {class}");
        }
        geometries.push((labels.data.shape().to_vec(), image.geometry.spacing));
    }
    geometries.dedup();
    assert!(geometries.len() > 1, "shape and spacing vary");
}

#[test]
fn no_threshold_finds_a_class() {
    let folder = tempfile::tempdir().unwrap();
    let cases = 6;
    phantom::generate(folder.path(), cases, 0, 1).unwrap();
    for class in [1, 2] {
        // Not even with the best threshold for each case, chosen with its truth.
        let dice: Vec<f64> = (0..cases)
            .map(|index| {
                let (image, labels) = case(folder.path(), index);
                best_threshold_dice(image.data.iter().zip(labels.data.iter().map(|&label| label == class)))
            })
            .collect();
        let mean = dice.iter().sum::<f64>() / cases as f64;
        assert!(mean < 0.6, "class {class}: {dice:?}");
    }
}

/// The best Dice of any threshold, with the class above or below it.
fn best_threshold_dice<'a>(voxels: impl Iterator<Item = (&'a f32, bool)>) -> f64 {
    let mut voxels: Vec<_> = voxels.collect();
    voxels.sort_by(|a, b| a.0.total_cmp(b.0));
    let of_class = voxels.iter().filter(|(_, inside)| *inside).count();
    let mut best = 0.0_f64;
    let mut hits_below = 0;
    for (index, (_, inside)) in voxels.iter().enumerate() {
        hits_below += usize::from(*inside);
        let below = index + 1;
        let dice = |hits: usize, chosen: usize| 2.0 * hits as f64 / (chosen + of_class) as f64;
        best = best.max(dice(hits_below, below)).max(dice(of_class - hits_below, voxels.len() - below));
    }
    best
}

fn case(dataset: &Path, index: usize) -> (nnunet_dist::image::Volume, nnunet_dist::image::LabelMap) {
    let image = read_volume(&dataset.join(format!("imagesTr/phantom_{index:03}_0000.nii.gz"))).unwrap();
    let labels = read_labels(&dataset.join(format!("labelsTr/phantom_{index:03}.nii.gz"))).unwrap();
    (image, labels)
}
