//! A folder with a series of DICOM files is read as an image with sorted slices in the right position, or refused with
//! the defect and a remedy.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use nnunet_dist::dataset::find_images;
use nnunet_dist::image::{ScalarType, read_header, read_series, read_volume};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use tempfile::TempDir;

use crate::series::{IMPLICIT, Series};

fn folder(series: &Series) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    series.write(folder.path());
    // As in exports; neither file is a slice.
    std::fs::write(folder.path().join("readme.txt"), "from the scanner").unwrap();
    std::fs::write(folder.path().join(".hidden"), "x").unwrap();
    folder
}

fn error(series: &Series) -> String {
    let folder = folder(series);
    let error = read_volume(folder.path()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1);
    error
}

#[test]
fn slices_are_sorted_and_in_their_place() {
    let series = Series::default();
    let folder = folder(&series);
    let volume = read_volume(folder.path()).unwrap();
    // The last file written is the lowest slice, and comes first.
    assert_eq!(volume.data.dim(), (1, 4, 2, 3));
    assert_eq!(volume.data[[0, 0, 0, 0]], 300.0 - 1024.0);
    assert_eq!(volume.data[[0, 3, 1, 2]], 5.0 - 1024.0);
    let geometry = &volume.geometry;
    assert_eq!(geometry.spacing, [2.5, 0.75, 0.5]);
    assert_eq!(geometry.origin, [-10.0, 20.0, 0.0]);
    assert_eq!(geometry.direction, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
    let header = read_header(folder.path()).unwrap();
    assert_eq!((header.shape, header.scalar_type), ([1, 4, 2, 3], ScalarType::U16));
    assert_eq!(&header.geometry, geometry);

    // Coronal slices from back to front, in implicit VR.
    let positions = (0..3).map(|k| [0.0, 30.0 - 3.0 * f64::from(k), 0.0]).collect();
    let coronal = Series { orientation: "1\\0\\0\\0\\0\\-1", syntax: IMPLICIT, positions, ..series };
    let volume = read_volume(self::folder(&coronal).path()).unwrap();
    // Rows run downwards, so the normal (x to the left, y down) points to the back.
    assert_eq!(volume.geometry.direction, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]);
    assert_eq!(volume.geometry.origin, [0.0, 24.0, 0.0]);
    assert_eq!(volume.geometry.spacing[0], 3.0);
    assert_eq!(volume.data[[0, 0, 0, 0]], 200.0 - 1024.0);
}

#[test]
fn pixels_follow_from_bits_sign_and_rescaling() {
    let signed = Series { bits: [16, 16, 15], signed: true, rescale: ["2", "10"], ..Series::default() };
    let volume = read_volume(folder(&signed).path()).unwrap();
    assert_eq!(volume.data[[0, 3, 0, 1]], 2.0 * -299.0 + 10.0);
    let bytes = Series { bits: [8, 8, 7], rescale: ["1", "0"], photometric: "MONOCHROME1", ..Series::default() };
    let volume = read_volume(folder(&bytes).path()).unwrap();
    assert_eq!(volume.data[[0, 2, 0, 1]], 101.0, "stored numbers, as pydicom has them");
    // A single file is an image of one slice.
    let folder = folder(&bytes);
    let volume = read_volume(&folder.path().join("1.2.3.1_00.dcm")).unwrap();
    assert_eq!((volume.data.dim(), volume.geometry.spacing[0]), ((1, 1, 2, 3), 5.0));
}

#[test]
fn slices_that_form_no_regular_stack_are_refused() {
    let at = |z: &[f64]| -> Vec<[f64; 3]> { z.iter().map(|z| [0.0, 0.0, *z]).collect() };
    let of = |positions| Series { positions, ..Series::default() };
    let missing = error(&of(at(&[0.0, 2.0, 4.0, 10.0, 12.0])));
    assert!(missing.contains("slices are missing: 2 between 1.2.3.1_02.dcm and 1.2.3.1_03.dcm (4.00 mm)"), "{missing}");
    let uneven = error(&of(at(&[0.0, 2.0, 4.0, 7.0, 9.0])));
    assert!(uneven.contains("not equidistant: 3.000 mm from 1.2.3.1_02.dcm"), "{uneven}");
    let twice = error(&of(at(&[0.0, 2.0, 2.0])));
    assert!(twice.contains("have the same position"), "{twice}");
    let tilted = error(&of((0..4).map(|k| [0.0, f64::from(k), 3.0 * f64::from(k)]).collect()));
    assert!(tilted.contains("gantry tilt") && tilted.contains("18.4 degrees"), "{tilted}");
    // Rounding to a tenth of a millimeter is tolerated.
    let rounded = of((0..40).map(|k| [0.0, 0.0, (f64::from(k) * 6.25).round() / 10.0]).collect());
    let spacing = read_volume(folder(&rounded).path()).unwrap().geometry.spacing[0];
    assert!((spacing - 0.625).abs() < 0.002, "{spacing}");
}

#[test]
fn unreadable_files_are_refused_with_a_remedy() {
    for (series, defect) in [
        (Series { frames: Some("30"), ..Series::default() }, "has 30 frames; convert the series with `dcm2niix`"),
        (Series { photometric: "RGB", ..Series::default() }, "is not grayscale"),
        (Series { bits: [16, 17, 16], ..Series::default() }, "BitsStored 17"),
        (Series { bits: [32, 32, 31], ..Series::default() }, "PixelData has 12 bytes for 6 pixels of 4"),
        (Series { orientation: "1\\0\\0", ..Series::default() }, "ImageOrientationPatient is"),
        (Series { orientation: "1\\0\\0\\1\\0\\0", ..Series::default() }, "not two perpendicular directions"),
    ] {
        let error = error(&series);
        assert!(error.contains("1.2.3.1_0") && error.contains(defect), "{defect}: {error}");
    }
    // The file claims a compressed transfer syntax.
    let folder = folder(&Series { positions: vec![[0.0; 3]], ..Series::default() });
    let path = folder.path().join("1.2.3.1_00.dcm");
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(20).position(|window| window == b"1.2.840.10008.1.2.1\0").unwrap();
    let mut compressed = bytes.clone();
    compressed[at..at + 20].copy_from_slice(b"1.2.840.10008.1.2.5\0");
    std::fs::write(&path, &compressed).unwrap();
    let error = read_volume(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is compressed (RLE, 1.2.840.10008.1.2.5)") && error.contains("gdcmconv --raw"), "{error}");
    std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let error = read_volume(folder.path()).unwrap_err().to_string();
    assert!(error.contains("1.2.3.1_00.dcm"), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(read_volume(folder.path()).unwrap_err().to_string().contains("has no DICOM image"));
}

#[test]
fn one_of_several_series_is_chosen() {
    let folder = folder(&Series::default());
    Series { uid: "1.2.3.2", positions: vec![[0.0; 3]], ..Series::default() }.write(folder.path());
    let error = read_volume(folder.path()).unwrap_err().to_string();
    assert!(error.contains("has 2 series, select one with --series: 1.2.3.1 (CT \"thorax\", 4 files"), "{error}");
    assert_eq!(read_series(folder.path(), Some("1.2.3.1")).unwrap().data.dim(), (1, 4, 2, 3));
    assert!(
        read_series(folder.path(), Some("9")).unwrap_err().to_string().contains("has no series 9; available: 1.2.3.1")
    );

    let program = || Command::cargo_bin("nnunet-dist").unwrap();
    let output = folder.path().join("out.nii.gz");
    let convert = |flags: &[&str]| program().arg("convert").arg(folder.path()).arg(&output).args(flags).assert();
    convert(&[]).code(3).stderr(contains("select one with --series"));
    convert(&["--series", "1.2.3.1"]).success();
    assert_eq!(read_header(&output).unwrap().scalar_type, ScalarType::I16);
    convert(&["--series", "1.2.3.1"]).code(3).stderr(contains("already exists").and(contains("--overwrite")));
    convert(&["--series", "1.2.3.1", "--overwrite"]).success();
}

#[test]
fn folders_of_dicom_files_are_cases_to_predict() {
    let cases = tempfile::tempdir().unwrap();
    for case in ["b", "a"] {
        let folder = cases.path().join(case);
        std::fs::create_dir(&folder).unwrap();
        Series::default().write(&folder);
    }
    std::fs::create_dir(cases.path().join("other")).unwrap();
    let found = find_images(cases.path(), ".nii.gz", 1).unwrap();
    let names: Vec<_> = found.iter().map(|case| case.id.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(found[0].load(1).unwrap().image.data.dim(), (1, 4, 2, 3));
    // A folder of slices is itself a case.
    let found = find_images(&cases.path().join("a"), ".nii.gz", 1).unwrap();
    assert_eq!(
        found.iter().map(|case| (case.id.clone(), case.images.clone())).collect::<Vec<_>>(),
        [("a".to_owned(), vec![cases.path().join("a")] as Vec<PathBuf>)]
    );
}

/// Found by fuzzing: the parser allocated the claimed length of an element before checking that the data exist.
#[test]
fn an_element_longer_than_its_file_is_refused_before_it_is_read() {
    let findings = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/findings");
    for (found, claim) in [
        ("dicom_memory.dcm", "(312E,312E) declares 1610614784 bytes"),
        ("dicom_after_pixels.dcm", "(0000,2D00) declares 808333361 bytes"),
        ("dicom_meta.dcm", "(0854,3E00) declares 404781056 bytes"),
        ("dicom_syntax.dcm", "(0000,0000) declares 4160752128 bytes"),
        ("dicom_odd_length.dcm", "(00FF,0000) declares 1128875008 bytes"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(findings.join(found), folder.path().join("slice.dcm")).unwrap();
        let error = read_series(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("slice.dcm") && error.contains(claim), "{error}");
    }
}
