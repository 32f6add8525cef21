//! The place of NIfTI images: units, planes, forms that cannot be used, padding, and label maps that stay on their image
//! for readers of every form.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use ndarray::Array3;
use nnunet_dist::dataset::{Dataset, extract_fingerprint, validate};
use nnunet_dist::image::{Geometry, LabelMap, read_header, read_labels, read_volume, write_labels};
use nnunet_dist::plan::{PlannerOptions, plan};
use tempfile::TempDir;

/// A NIfTI-1 file of `uint8`, written byte by byte.
#[derive(Clone)]
struct Nifti {
    /// Extents along x, y, z; two for a plane.
    extents: Vec<usize>,
    units: u8,
    /// qfac and voxel sizes.
    pixdim: [f32; 4],
    codes: [i16; 2],
    quaternion: [f32; 3],
    offset: [f32; 3],
    sform: [[f32; 4]; 3],
}

impl Default for Nifti {
    /// 2 x 3 x 4 mm, with an sform and a qform at different places.
    fn default() -> Self {
        Self {
            extents: vec![5, 4, 3],
            units: 2,
            pixdim: [1.0, 2.0, 3.0, 4.0],
            codes: [1, 2],
            quaternion: [0.0, 0.0, 1.0],
            offset: [-10.0, 20.0, 30.0],
            sform: [[2.0, 0.0, 0.0, 5.0], [0.0, 3.0, 0.0, 6.0], [0.0, 0.0, 4.0, 7.0]],
        }
    }
}

impl Nifti {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; 352];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let mut dim = [1i16; 8];
        dim[0] = self.extents.len() as i16;
        self.extents.iter().zip(&mut dim[1..]).for_each(|(extent, dim)| *dim = *extent as i16);
        put(0, &348i32.to_le_bytes());
        put(40, &dim.map(i16::to_le_bytes).concat());
        put(70, &2i16.to_le_bytes()); // uint8
        put(72, &8i16.to_le_bytes());
        put(76, &self.pixdim.map(f32::to_le_bytes).concat());
        put(108, &352f32.to_le_bytes());
        put(123, &[self.units]);
        put(252, &self.codes.map(i16::to_le_bytes).concat());
        put(256, &self.quaternion.map(f32::to_le_bytes).concat());
        put(268, &self.offset.map(f32::to_le_bytes).concat());
        put(280, &self.sform.as_flattened().iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
        put(344, b"n+1\0");
        let voxels: usize = self.extents.iter().product();
        bytes.extend((0..voxels).map(|voxel| (voxel % 3) as u8));
        bytes
    }

    fn write(&self, folder: &TempDir, name: &str) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, self.bytes()).unwrap();
        path
    }
}

fn close(found: &[f64], expected: &[f64]) -> bool {
    found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-4)
}

#[test]
fn lengths_are_millimeters_in_every_unit_and_form() {
    let folder = tempfile::tempdir().unwrap();
    for (units, scale) in [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (2 + 8, 1.0), (3 + 16, 0.001)] {
        for codes in [[0, 2], [1, 2], [1, 0], [0, 0]] {
            let geometry =
                read_header(&Nifti { units, codes, ..Nifti::default() }.write(&folder, "a.nii")).unwrap().geometry;
            let spacing = [4.0, 3.0, 2.0].map(|mm: f64| mm * scale);
            assert!(close(&geometry.spacing, &spacing), "units {units}, codes {codes:?}: {geometry:?}");
            let origin = match codes {
                [_, 2] => [-5.0, -6.0, 7.0],
                [1, _] => [10.0, -20.0, 30.0],
                // The center of the image.
                _ => [-4.0, 4.5, -4.0],
            };
            assert!(
                close(&geometry.origin, &origin.map(|mm| mm * scale)),
                "units {units}, codes {codes:?}: {geometry:?}"
            );
        }
    }
}

/// As nibabel and ITK read different forms, all header fields of the image have to be in the label map.
#[test]
fn label_maps_repeat_the_forms_of_their_image() {
    let folder = tempfile::tempdir().unwrap();
    for units in [0, 1, 2, 3] {
        for codes in [[0, 2], [1, 2], [4, 1], [1, 0], [0, 0]] {
            for extents in [vec![5, 4, 3], vec![5, 4]] {
                let image = Nifti { units, codes, extents, ..Nifti::default() };
                let path = image.write(&folder, "image.nii");
                let labels = read_labels(&path).unwrap();
                let copy = folder.path().join("labels.nii");
                write_labels(&copy, &labels).unwrap();
                let (ours, theirs) = (fs::read(&copy).unwrap(), image.bytes());
                // dim, pixdim, units, codes and forms.
                for fields in [40..56, 76..92, 123..124, 252..328] {
                    assert_eq!(ours[fields.clone()], theirs[fields.clone()], "{units} {codes:?} bytes {fields:?}");
                }
                let again = read_labels(&copy).unwrap();
                assert_eq!((again.data, &again.geometry), (labels.data, &labels.geometry));
                // Stores keep the geometry of a case as JSON.
                let json = serde_json::to_string(&labels.geometry).unwrap();
                let kept: Geometry = serde_json::from_str(&json).unwrap();
                assert_eq!(kept.nifti, labels.geometry.nifti);
            }
        }
    }
}

#[test]
fn another_place_is_not_written_with_the_forms_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut labels = read_labels(&Nifti::default().write(&folder, "image.nii")).unwrap();
    labels.geometry.origin[0] += 1.0;
    let path = folder.path().join("moved.nii");
    write_labels(&path, &labels).unwrap();
    assert!(close(&read_header(&path).unwrap().geometry.origin, &labels.geometry.origin));
}

#[test]
fn an_unusable_sform_gives_way_to_the_qform_then_to_pixdim() {
    let folder = tempfile::tempdir().unwrap();
    let zero = [[0.0; 4]; 3];
    let flat = [[2.0, 4.0, 0.0, 5.0], [1.0, 2.0, 0.0, 6.0], [0.0, 0.0, 4.0, 7.0]];
    let nan = [[f32::NAN; 4]; 3];
    for sform in [zero, flat, nan] {
        let image = Nifti { sform, ..Nifti::default() };
        let path = image.write(&folder, "a.nii");
        let geometry = read_header(&path).unwrap().geometry;
        assert!(close(&geometry.spacing, &[4.0, 3.0, 2.0]) && close(&geometry.origin, &[10.0, -20.0, 30.0]));
        let copy = folder.path().join("labels.nii");
        write_labels(&copy, &read_labels(&path).unwrap()).unwrap();
        let bytes = fs::read(&copy).unwrap();
        assert_eq!(bytes[252..256], [1, 0, 0, 0], "the sform that no reader can use is not repeated");

        let pixdim = Nifti { codes: [0, 2], ..image.clone() }.write(&folder, "b.nii");
        assert!(close(&read_header(&pixdim).unwrap().geometry.spacing, &[4.0, 3.0, 2.0]));
        let nothing = Nifti { codes: [0, 2], pixdim: [1.0, 2.0, 0.0, 4.0], ..image }.write(&folder, "c.nii");
        let error = read_header(&nothing).unwrap_err().to_string();
        assert!(error.contains("c.nii") && error.contains("sform") && error.contains("pixdim along y"), "{error}");
    }
}

#[test]
fn zeros_after_a_gzip_member_are_padding() {
    let folder = tempfile::tempdir().unwrap();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&Nifti::default().bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    for padding in [1, 512, 100_000] {
        let path = folder.path().join("padded.nii.gz");
        fs::write(&path, [&packed[..], &vec![0; padding]].concat()).unwrap();
        assert_eq!(read_volume(&path).unwrap().data.dim(), (1, 3, 4, 5));
    }
    let path = folder.path().join("garbage.nii.gz");
    fs::write(&path, [&packed[..], b"garbage"].concat()).unwrap();
    assert!(read_volume(&path).is_err());
}

#[test]
fn an_extent_beyond_nifti_1_is_written_as_nifti_2() {
    let folder = tempfile::tempdir().unwrap();
    let geometry = Geometry { spacing: [2.0, 0.5, 0.25], origin: [1.5, -2.5, 3.5], ..Geometry::default() };
    for (shape, length) in [([1, 2, 32_767], 348), ([1, 2, 32_768], 540), ([40_000, 1, 2], 540)] {
        let data = Array3::from_shape_fn(shape, |(z, y, x)| ((x + y + z) % 5) as i16);
        for name in ["long.nii", "long.nii.gz"] {
            let path = folder.path().join(name);
            write_labels(&path, &LabelMap { data: data.clone(), geometry: geometry.clone() }).unwrap();
            let read = read_labels(&path).unwrap();
            assert_eq!(read.data, data);
            assert!(close(&read.geometry.spacing, &geometry.spacing) && close(&read.geometry.origin, &geometry.origin));
        }
        let bytes = fs::read(folder.path().join("long.nii")).unwrap();
        assert_eq!(i32::from_le_bytes(bytes[..4].try_into().unwrap()), length);
    }
}

/// A dataset of planes of 48 x 40 pixels of 2 mm.
fn planes(root: &Path) {
    for name in ["imagesTr", "labelsTr"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    let plane = Nifti {
        extents: vec![40, 48],
        pixdim: [1.0, 2.0, 2.0, 0.0],
        sform: [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0; 4]],
        ..Nifti::default()
    };
    for case in 0..5 {
        fs::write(root.join(format!("imagesTr/{case}_0000.nii")), plane.bytes()).unwrap();
        fs::write(root.join(format!("labelsTr/{case}.nii")), plane.bytes()).unwrap();
    }
    let json = r#"{"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1, "b": 2}, "numTraining": 5,
        "file_ending": ".nii"}"#;
    fs::write(root.join("dataset.json"), json).unwrap();
}

#[test]
fn files_with_two_axes_are_planes() {
    let folder = tempfile::tempdir().unwrap();
    planes(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(validate(&dataset), [""; 0]);
    let fingerprint = extract_fingerprint(&dataset).unwrap();
    assert_eq!(fingerprint.spacings[0], [1998.0, 2.0, 2.0]);
    let plans = plan("planes", &dataset.json, &fingerprint, &PlannerOptions::default()).unwrap();
    assert_eq!(plans.configurations.keys().collect::<Vec<_>>(), ["2d"]);
    assert_eq!(plans.configuration("2d").unwrap().patch_size, [48, 40]);
    // Two axes are written, also where the image was of another format.
    let labels = read_labels(&folder.path().join("labelsTr/0.nii")).unwrap();
    for name in ["a.mha", "b.nii"] {
        write_labels(&folder.path().join(name), &labels).unwrap();
    }
    let other = read_labels(&folder.path().join("a.mha")).unwrap();
    write_labels(&folder.path().join("c.nii"), &other).unwrap();
    for name in ["b.nii", "c.nii"] {
        let bytes = fs::read(folder.path().join(name)).unwrap();
        assert_eq!(bytes[40..46], [2, 0, 40, 0, 48, 0], "{name}");
        assert!(close(&read_header(&folder.path().join(name)).unwrap().geometry.spacing, &[1998.0, 2.0, 2.0]));
    }
}
