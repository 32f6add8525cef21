//! Unusual and broken NIfTI files (`data/nifti_odd`) are read as nibabel reads them, or refused with an error that
//! names them.

use std::path::Path;

use ndarray::{Array3, Array4};
use nnunet_dist::image::{self, Geometry, LabelMap, Volume, read_header, read_labels, read_volume};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::common;

#[derive(Deserialize)]
struct Entry {
    file: String,
    note: String,
    expect: String,
    shape: Option<Vec<usize>>,
    affine: Option<[[f64; 4]; 4]>,
    min: Option<f64>,
    max: Option<f64>,
    mean: Option<f64>,
    first: Option<Vec<f64>>,
    #[serde(rename = "sha256_f32_F")]
    sha256: Option<String>,
}

#[test]
fn every_file_is_read_as_the_manifest_expects() {
    let Some(root) = common::shared() else { return };
    let folder = root.join("data/nifti_odd");
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let entries: Vec<Entry> = serde_json::from_str(&manifest).unwrap();
    assert!(!entries.is_empty());
    for entry in &entries {
        let result = read_volume(&folder.join(&entry.file));
        match (entry.expect.as_str(), result) {
            ("ok", Ok(volume)) => compare(entry, &volume, &folder),
            ("ok", Err(error)) => panic!("{} ({}): {error}", entry.file, entry.note),
            ("error", Ok(_)) => panic!("{} ({}) was read", entry.file, entry.note),
            ("error" | "ok_or_error", Err(error)) => assert!(error.to_string().contains(&entry.file), "{error}"),
            ("ok_or_error", Ok(_)) => {}
            (other, _) => panic!("{}: unknown expectation {other}", entry.file),
        }
    }
}

fn compare(entry: &Entry, volume: &Volume, folder: &Path) {
    let name = &entry.file;
    let header = read_header(&folder.join(name)).unwrap();
    let (c, z, y, x) = volume.data.dim();
    assert_eq!((header.shape, &header.geometry), ([c, z, y, x], &volume.geometry), "{name}");

    let (Some(shape), Some(affine)) = (&entry.shape, entry.affine) else { return };
    let spatial: Vec<usize> = (0..3).map(|axis| shape.get(axis).copied().unwrap_or(1)).collect();
    assert_eq!(spatial, [x, y, z], "{name}");
    for (row, theirs) in affine.iter().take(3).enumerate() {
        let sign = if row < 2 { -1.0 } else { 1.0 };
        for (axis, theirs) in theirs.iter().take(3).enumerate() {
            let ours = volume.geometry.direction[row][axis] * volume.geometry.spacing[2 - axis] * sign;
            assert!((ours - theirs).abs() < 1e-5, "{name}: {ours} instead of {theirs}");
        }
        assert!((volume.geometry.origin[row] * sign - theirs[3]).abs() < 1e-4, "{name}");
    }

    // Complex and color files: one channel per component; the manifest has no statistics of them.
    let (Some(min), Some(max), Some(mean)) = (entry.min, entry.max, entry.mean) else { return };
    assert_eq!(c, shape.iter().skip(3).product::<usize>(), "{name}");
    let values: Vec<f64> = volume.data.iter().map(|value| f64::from(*value)).collect();
    let close = |ours: f64, theirs: f64| (ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0);
    assert!(close(values.iter().copied().fold(f64::INFINITY, f64::min), min), "{name}: min");
    assert!(close(values.iter().copied().fold(f64::NEG_INFINITY, f64::max), max), "{name}: max");
    assert!(close(values.iter().sum::<f64>() / values.len() as f64, mean), "{name}: mean");
    for (ours, theirs) in values.iter().zip(entry.first.iter().flatten()) {
        assert!(close(*ours, *theirs), "{name}: {ours} instead of {theirs}");
    }
    if let Some(expected) = &entry.sha256 {
        let digest = Sha256::digest(volume.data.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(&hex, expected, "{name}");
    }
}

fn oblique() -> Geometry {
    let (s, c) = 0.3f64.sin_cos();
    Geometry {
        spacing: [3.0, 0.75, 0.5],
        origin: [-12.5, 40.25, 7.0],
        direction: [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, -1.0]],
        ..Geometry::default()
    }
}

fn assert_same_place(a: &Geometry, b: &Geometry) {
    let numbers = |g: &Geometry| [&g.spacing[..], &g.origin, &g.direction.concat()].concat();
    for (a, b) in numbers(a).iter().zip(numbers(b)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn written_images_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let data = Array4::from_shape_fn((2, 3, 4, 5), |(c, z, y, x)| (c * 60 + z * 20 + y * 5 + x) as f32 - 7.25);
    let volume = Volume { data, geometry: oblique() };
    for name in ["a.nii", "a.nii.gz"] {
        let path = folder.path().join(name);
        image::write_volume(&path, &volume).unwrap();
        let read = read_volume(&path).unwrap();
        assert_eq!(read.data, volume.data);
        assert_same_place(&read.geometry, &volume.geometry);
    }
    for largest in [3, 255, 1000] {
        let data = Array3::from_shape_fn((1, 6, 7), |(_, y, x)| if (y + x) % 3 == 0 { largest } else { 1 });
        let labels = LabelMap { data, geometry: oblique() };
        for name in ["l.nii.gz", "l.png", "l.tif"] {
            let path = folder.path().join(name);
            image::write_labels(&path, &labels).unwrap();
            assert_eq!(read_labels(&path).unwrap().data, labels.data, "{name}");
        }
    }
    let colours = Array4::from_shape_fn((3, 1, 4, 5), |(c, _, y, x)| (c * 20 + y * 5 + x) as f32);
    let volume = Volume { data: colours, geometry: Geometry::default() };
    // A TIFF file has its spacing in a JSON file.
    for (name, spacing) in [("c.png", [999.0, 1.0, 1.0]), ("c.tiff", [1.0; 3])] {
        let path = folder.path().join(name);
        image::write_volume(&path, &volume).unwrap();
        let read = read_volume(&path).unwrap();
        assert_eq!(read.data, volume.data, "{name}");
        assert_eq!(read.geometry.spacing, spacing);
        assert_eq!(read_header(&path).unwrap().shape, [3, 1, 4, 5]);
    }
}

#[test]
fn values_that_are_not_labels_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.nii.gz");
    let mut data = Array4::<f32>::zeros((1, 2, 3, 4));
    data[[0, 1, 2, 3]] = 0.5;
    image::write_volume(&path, &Volume { data, geometry: Geometry::default() }).unwrap();
    let error = read_labels(&path).unwrap_err().to_string();
    assert!(error.contains("labels.nii.gz") && error.contains("(3, 2, 1)"), "{error}");
}

/// Any header leads to a value or an error, quickly.
#[test]
fn a_damaged_file_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.nii");
    let data = Array4::from_shape_fn((1, 3, 4, 5), |(_, z, y, x)| (z * 20 + y * 5 + x) as f32);
    image::write_volume(&path, &Volume { data, geometry: oblique() }).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged.nii");
    for position in 0..352 {
        for value in [0x00, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[position] = value;
            std::fs::write(&damaged, bytes).unwrap();
            if let Err(error) = read_volume(&damaged) {
                assert!(error.to_string().contains("damaged.nii"), "{error}");
            }
        }
    }
    let compressed = folder.path().join("whole.nii.gz");
    image::write_volume(&compressed, &read_volume(&path).unwrap()).unwrap();
    let whole = std::fs::read(&compressed).unwrap();
    let cut = folder.path().join("cut.nii.gz");
    for length in 0..whole.len() {
        std::fs::write(&cut, &whole[..length]).unwrap();
        let error = read_volume(&cut).expect_err("a cut file").to_string();
        assert!(error.contains("cut.nii.gz"), "{error}");
    }
}
