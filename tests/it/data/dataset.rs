//! Raw datasets: all defects are reported at once, and both layouts give the same cases.

use std::fs;
use std::path::{Path, PathBuf};

use nnunet_dist::dataset::{CaseFiles, Dataset, DatasetError, extract_fingerprint, find_images, validate};
use tempfile::TempDir;

use crate::common;

const V2: &str = r#"{"channel_names": {"0": "A", "1": "B"}, "labels": {"background": 0, "organ": 1, "ignore": 2},
    "numTraining": 4, "file_ending": ".nii"}"#;
const DECATHLON: &str = r#"{"modality": {"0": "A", "1": "B"}, "labels": {"0": "background", "1": "organ"},
    "numTraining": 2, "test": [], "tensorImageSize": "4D", "training": [
    {"image": "./imagesTr/b.nii", "label": "./labelsTr/b.nii"},
    {"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}]}"#;

#[test]
fn every_problem_of_every_case_is_listed_at_once() {
    let folder = Folder::new(&V2.replace("\"numTraining\": 4", "\"numTraining\": 5"));
    let good = Nifti::default();
    let (images, labels) = ("imagesTr", "labelsTr");
    for case in ["a_good", "b_header", "c_values", "d_files", "e_broken"] {
        good.write(&folder.path(images, &format!("{case}_0000")));
        good.write(&folder.path(images, &format!("{case}_0001")));
        good.write(&folder.path(labels, case));
    }
    fs::write(folder.0.path().join("imagesTr/._a_good_0000.nii"), "of macOS").unwrap();

    Nifti { spacing: [1.0, 1.0, 1.1], origin: [5.0, 0.0, 0.0], ..good.clone() }
        .write(&folder.path(images, "b_header_0001"));
    Nifti { direction: [-1.0, 1.0, 1.0], ..good.clone() }.write(&folder.path(labels, "b_header"));
    good.with(&[(3, f32::NAN), (7, f32::INFINITY), (8, f32::NAN)]).write(&folder.path(images, "c_values_0000"));
    good.with(&[(0, 7.0), (1, -1.0), (2, 2.0)]).write(&folder.path(labels, "c_values"));
    fs::remove_file(folder.path(images, "d_files_0001")).unwrap();
    good.write(&folder.path(images, "d_files_0002"));
    fs::remove_file(folder.path(labels, "d_files")).unwrap();
    for channel in ["e_broken_0000", "e_broken_0001"] {
        Nifti::of_shape([1, 2, 3, 5]).write(&folder.path(images, channel));
    }
    truncate(&folder.path(images, "e_broken_0001"));
    good.with(&[(4, 0.5)]).write(&folder.path(labels, "e_broken"));
    good.write(&folder.path(labels, "f_label_only"));

    let problems = validate(&folder.open());
    let expected = [
        ("dataset.json", "numTraining is 5, but there are 6 cases"),
        ("imagesTr/b_header_0001.nii", "spacing [1.1, 1.0, 1.0] mm differs from [1.0, 1.0, 1.0] mm"),
        ("imagesTr/b_header_0001.nii", "origin ["),
        ("labelsTr/b_header.nii", "direction ["),
        ("imagesTr/c_values_0000.nii", "NaN in 2 voxels"),
        ("imagesTr/c_values_0000.nii", "infinite in 1 voxels"),
        ("labelsTr/c_values.nii", "labels [-1, 7] are not in dataset.json"),
        ("imagesTr/d_files_0001.nii", "missing"),
        ("labelsTr/d_files.nii", "missing"),
        ("labelsTr/e_broken.nii", "shape [2, 3, 4] differs from [2, 3, 5]"),
        ("imagesTr/e_broken_0001.nii", ""),
        ("labelsTr/e_broken.nii", "integer"),
        ("imagesTr/f_label_only_0000.nii", "missing"),
    ];
    for (file, defect) in expected {
        let lists = |line: &&String| line.contains(file) && line.contains(defect);
        assert!(problems.iter().any(|line| lists(&line)), "{file}: {defect} is not in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    assert!(problems.iter().all(|line| line.lines().count() == 1), "{problems:#?}");
}

#[test]
fn a_wrong_number_of_channels_is_reported_once() {
    let folder = Folder::new(&V2.replace("4,", "2,"));
    for case in ["a", "b"] {
        Nifti::default().write(&folder.path("labelsTr", case));
    }
    Nifti::default().write(&folder.path("imagesTr", "a_0000"));
    Nifti::of_shape([2, 2, 3, 4]).write(&folder.path("imagesTr", "b_0000"));
    let problems = validate(&folder.open());
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].contains("a_0000.nii: has 1 channels, expected 2"), "{problems:#?}");
    assert!(folder.open().cases[0].load(2).unwrap_err().to_string().contains("expected 2"));
}

#[test]
fn the_layouts_of_nnunet_and_the_decathlon_give_the_same_cases() {
    let channels = |first: usize| [Nifti::counting(first), Nifti::counting(first + 24)];
    let v2 = Folder::new(&V2.replace("4,", "2,").replace(r#", "ignore": 2"#, ""));
    let decathlon = Folder::new(DECATHLON);
    for (case, start) in [("a", 1), ("b", 1000)] {
        let [first, second] = channels(start);
        first.write(&v2.path("imagesTr", &format!("{case}_0000")));
        second.write(&v2.path("imagesTr", &format!("{case}_0001")));
        let both = Nifti { voxels: [first.voxels, second.voxels].concat(), ..Nifti::of_shape([2, 2, 3, 4]) };
        both.write(&decathlon.path("imagesTr", case));
        for folder in [&v2, &decathlon] {
            Nifti::default().with(&[(5, 1.0)]).write(&folder.path("labelsTr", case));
        }
    }
    // Not listed in dataset.json, so it is not a case.
    Nifti::default().write(&decathlon.path("imagesTr", "c"));

    let (v2_set, decathlon_set) = (v2.open(), decathlon.open());
    for dataset in [&v2_set, &decathlon_set] {
        assert_eq!(validate(dataset), [""; 0]);
    }
    let ids = |dataset: &Dataset| dataset.cases.iter().map(|case| case.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&v2_set), ["a", "b"]);
    assert_eq!(ids(&decathlon_set), ["a", "b"]);
    for (a, b) in v2_set.cases.iter().zip(&decathlon_set.cases) {
        let (a, b) = (a.load(2).unwrap(), b.load(2).unwrap());
        assert_eq!(a.image.data, b.image.data);
        assert_eq!(a.image.geometry, b.image.geometry);
        assert_eq!(a.label.unwrap().data, b.label.unwrap().data);
    }
    assert_eq!(extract_fingerprint(&v2_set).unwrap(), extract_fingerprint(&decathlon_set).unwrap());
    assert_eq!(v2_set.json.labels, decathlon_set.json.labels);

    let to_predict = |folder: &Folder| find_images(&folder.0.path().join("imagesTr"), ".nii", 2).unwrap();
    let files = |cases: Vec<CaseFiles>| cases.into_iter().map(|case| (case.id, case.images.len())).collect::<Vec<_>>();
    assert_eq!(files(to_predict(&v2)), [("a".into(), 2), ("b".into(), 2)]);
    assert_eq!(files(to_predict(&decathlon)), [("a".into(), 1), ("b".into(), 1), ("c".into(), 1)]);
}

#[test]
fn cases_may_be_listed_by_name_with_files_anywhere() {
    let elsewhere = Folder::new("{}");
    let files = format!(r#"{{"images": ["p.nii", {:?}], "label": "labelsTr/q.nii"}}"#, elsewhere.path("imagesTr", "r"));
    let mut json: serde_json::Value = serde_json::from_str(&V2.replace("4,", "1,")).unwrap();
    json["dataset"]["x"] = serde_json::from_str(&files).unwrap();
    let folder = Folder::new(&json.to_string());
    Nifti::counting(0).write(&folder.0.path().join("p.nii"));
    Nifti::counting(9).write(&elsewhere.path("imagesTr", "r"));
    Nifti::default().write(&folder.path("labelsTr", "q"));
    let dataset = folder.open();
    assert_eq!(validate(&dataset), [""; 0]);
    let case = dataset.cases[0].load(2).unwrap();
    assert_eq!((case.id.as_str(), case.image.data[[1, 0, 0, 0]]), ("x", 9.0));
}

#[test]
fn an_invalid_dataset_is_an_error_that_names_the_file() {
    let folder = Folder::new("{");
    let message = |error: DatasetError| error.to_string();
    let open = || Dataset::open(folder.0.path()).map_err(message).unwrap_err();
    assert!(open().contains("dataset.json: EOF"), "{}", open());
    fs::write(folder.0.path().join("dataset.json"), V2).unwrap();
    assert!(open().contains("imagesTr: contains no *.nii"), "{}", open());
    fs::remove_dir_all(folder.0.path().join("imagesTr")).unwrap();
    assert!(open().contains("imagesTr: No such file"), "{}", open());
    fs::remove_file(folder.0.path().join("dataset.json")).unwrap();
    assert!(open().contains("dataset.json: No such file"), "{}", open());
}

/// There is nothing to plan from without any foreground.
#[test]
fn a_dataset_without_foreground_has_no_fingerprint() {
    let folder = Folder::new(V2);
    Nifti::default().write(&folder.path("imagesTr", "a_0000"));
    Nifti::default().write(&folder.path("imagesTr", "a_0001"));
    Nifti::default().write(&folder.path("labelsTr", "a"));
    let error = extract_fingerprint(&folder.open()).unwrap_err().to_string();
    assert!(error.contains("foreground"), "{error}");
}

#[test]
fn real_datasets_are_valid() {
    let Some(root) = common::shared() else { return };
    let mut count = 0;
    for entry in fs::read_dir(root.join("data")).unwrap() {
        let path = entry.unwrap().path();
        if path.join("dataset.json").exists() {
            assert_eq!(validate(&Dataset::open(&path).unwrap()), [""; 0]);
            count += 1;
        }
    }
    assert!(count > 0, "no dataset in {}", root.display());
}

/// A raw dataset in a temporary folder.
struct Folder(TempDir);

impl Folder {
    fn new(json: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("dataset.json"), json).unwrap();
        for name in ["imagesTr", "labelsTr"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, folder: &str, name: &str) -> PathBuf {
        self.0.path().join(folder).join(format!("{name}.nii"))
    }

    fn open(&self) -> Dataset {
        Dataset::open(self.0.path()).unwrap()
    }
}

/// A NIfTI-1 file of `f32`, written byte by byte, so that it can contain defects that a library would not write.
#[derive(Clone)]
struct Nifti {
    /// `(channel, z, y, x)`
    shape: [usize; 4],
    /// The other fields are `(x, y, z)`.
    spacing: [f32; 3],
    origin: [f32; 3],
    /// The diagonal.
    direction: [f32; 3],
    voxels: Vec<f32>,
}

impl Default for Nifti {
    fn default() -> Self {
        Self::of_shape([1, 2, 3, 4])
    }
}

impl Nifti {
    fn of_shape(shape: [usize; 4]) -> Self {
        let voxels = vec![0.0; shape.iter().product()];
        Self { shape, spacing: [1.0; 3], origin: [0.0; 3], direction: [1.0; 3], voxels }
    }

    fn counting(first: usize) -> Self {
        Self { voxels: (first..first + 24).map(|value| value as f32).collect(), ..Self::default() }
    }

    fn with(&self, voxels: &[(usize, f32)]) -> Self {
        let mut changed = self.clone();
        voxels.iter().for_each(|&(index, value)| changed.voxels[index] = value);
        changed
    }

    fn write(&self, path: &Path) {
        let mut bytes = vec![0u8; 352];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let [channels, z, y, x] = self.shape.map(|extent| extent as i16);
        let dim = [if channels == 1 { 3 } else { 4 }, x, y, z, channels, 1, 1, 1];
        let mut pixdim = [1.0; 8];
        pixdim[1..4].copy_from_slice(&self.spacing);
        put(0, &348i32.to_le_bytes());
        put(40, &dim.map(i16::to_le_bytes).concat());
        put(70, &16i16.to_le_bytes()); // f32
        put(72, &32i16.to_le_bytes());
        put(76, &pixdim.map(f32::to_le_bytes).concat());
        put(108, &352f32.to_le_bytes());
        put(254, &1i16.to_le_bytes()); // the affine below holds
        for axis in 0..3 {
            let mut row = [0.0, 0.0, 0.0, self.origin[axis]];
            row[axis] = self.spacing[axis] * self.direction[axis];
            put(280 + 16 * axis, &row.map(f32::to_le_bytes).concat());
        }
        put(344, b"n+1\0");
        bytes.extend(self.voxels.iter().flat_map(|voxel| voxel.to_le_bytes()));
        fs::write(path, bytes).unwrap();
    }
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 10]).unwrap();
}
