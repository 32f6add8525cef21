//! Compares fingerprints and splits with those of nnU-Net v2 for the same data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nnunet_dist::dataset::{Dataset, Fingerprint, IntensityProperties, Splits, extract_fingerprint};

use crate::common;
use crate::skip::skip;

#[test]
fn fingerprints_equal_nnunets() {
    for (reference, dataset) in fixtures_with_data("dataset_fingerprint.json") {
        let expected: Fingerprint = read(&reference);
        let found = extract_fingerprint(&Dataset::open(&dataset).unwrap()).unwrap();
        let name = dataset.display();
        assert_eq!(found.shapes_after_crop, expected.shapes_after_crop, "{name}");
        assert_spacings(&found.spacings, &expected.spacings);
        close(found.median_relative_size_after_cropping, expected.median_relative_size_after_cropping, 1e-12);

        let expected = &expected.foreground_intensity_properties_per_channel;
        let found = &found.foreground_intensity_properties_per_channel;
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (channel, expected) in expected {
            println!("{name} channel {channel}\n  nnU-Net {expected:?}\n  ours    {:?}", found[channel]);
            // The sample is nnU-Net's own, so only the rounding of its f32 sums differs.
            values(&found[channel]).into_iter().zip(values(expected)).for_each(|(a, b)| close(a, b, 1e-5));
        }
    }
}

#[test]
fn generated_splits_equal_nnunets() {
    for (reference, dataset) in fixtures_with_data("splits_final.json") {
        let cases: Vec<String> = Dataset::open(&dataset).unwrap().cases.into_iter().map(|case| case.id).collect();
        let splits = Splits::generate(&cases).unwrap();
        assert_eq!(splits, Splits::load(&reference).unwrap(), "{}", reference.display());
        splits.check_cases(&cases).unwrap();
    }
}

/// Reads `{"N": [[index, ..]; 5], ..}`: the validation cases of each fold among N cases.
#[test]
fn folds_equal_scikit_learns_for_any_number_of_cases() {
    for path in common::fixtures("fixtures/misc", "kfold_indices.json") {
        let by_count: BTreeMap<String, Vec<Vec<usize>>> = read(&path);
        for (count, folds) in by_count {
            let case = |index: usize| format!("case_{index:05}");
            let cases: Vec<String> = (0..count.parse().unwrap()).map(case).collect();
            let splits = Splits::generate(&cases).unwrap();
            assert_eq!(splits.folds().len(), folds.len());
            for (number, expected) in folds.into_iter().enumerate() {
                let (train, val) = splits.fold(number).unwrap();
                assert_eq!(val, expected.into_iter().map(case).collect::<Vec<_>>(), "{count} cases, fold {number}");
                let train_expected: Vec<_> = cases.iter().filter(|case| !val.contains(case)).collect();
                assert!(train.iter().eq(train_expected), "{count} cases, fold {number}");
            }
        }
    }
}

/// All fixtures of this name, with the raw dataset they were made from; those without one are skipped.
fn fixtures_with_data(name: &str) -> Vec<(PathBuf, PathBuf)> {
    let Some(root) = common::shared() else { return Vec::new() };
    let datasets: Vec<_> =
        folders(&root.join("data")).into_iter().filter(|path| path.join("dataset.json").exists()).collect();
    let fixtures = folders(&root.join("fixtures"));
    let nested: Vec<PathBuf> = fixtures.iter().flat_map(|folder| folders(folder)).collect();
    let mut found = Vec::new();
    for fixture in fixtures.into_iter().chain(nested).filter(|folder| folder.join(name).exists()) {
        let topic = lower_name(&fixture);
        match datasets.iter().find(|dataset| lower_name(dataset).contains(&topic)) {
            Some(dataset) => found.push((fixture.join(name), dataset.clone())),
            None => skip(format_args!("no raw data for {}", fixture.display())),
        }
    }
    assert!(!found.is_empty(), "no {name} with its raw data in {}", root.display());
    found
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut folders: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn lower_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().to_lowercase()
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn values(p: &IntensityProperties) -> [f64; 7] {
    [p.max, p.mean, p.median, p.min, p.percentile_00_5, p.percentile_99_5, p.std]
}

fn assert_spacings(found: &[Vec<f64>], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len());
    found.iter().flatten().zip(expected.iter().flatten()).for_each(|(&a, &b)| close(a, b, 1e-7));
}

#[track_caller]
fn close(found: f64, expected: f64, relative: f64) {
    assert!((found - expected).abs() <= relative * expected.abs().max(1e-6), "{found} instead of {expected}");
}
