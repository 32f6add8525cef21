//! MetaImage, NRRD, BMP and stacks of TIFF pages: values and geometry equal those of SimpleITK, Pillow and tifffile,
//! writing round-trips, and damaged files are refused with an error that names them.

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4};
use nnunet_dist::image::{
    Geometry, LabelMap, Plane, ScalarType, Volume, read_header, read_labels, read_volume, write_labels, write_volume,
};
use tempfile::TempDir;

/// A file made by `tests/images/make.py`.
fn made(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)
}

/// `x + 4 y + 12 z`, plus 100 per channel.
fn ramp(channels: usize, z: usize) -> Array4<f32> {
    Array4::from_shape_fn((channels, z, 3, 4), |(c, z, y, x)| (100 * c + 12 * z + 4 * y + x) as f32)
}

/// As SimpleITK states it: direction row-major, all along (x, y, z).
fn geometry(spacing: [f64; 3], origin: [f64; 3], direction: [f64; 9]) -> Geometry {
    let [x, y, z] = spacing;
    let direction = std::array::from_fn(|row| std::array::from_fn(|axis| direction[3 * row + axis]));
    Geometry { spacing: [z, y, x], origin, direction, ..Geometry::default() }
}

const IDENTITY: [f64; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];

fn assert_near(ours: &Geometry, theirs: &Geometry, name: &str) {
    let flat =
        |geometry: &Geometry| [&geometry.spacing[..], &geometry.origin[..], geometry.direction.as_flattened()].concat();
    let near = flat(ours).iter().zip(flat(theirs)).all(|(a, b)| (a - b).abs() < 1e-9);
    assert!(near, "{name}: {ours:?} instead of {theirs:?}");
}

#[test]
fn files_of_other_programs_are_read_as_those_programs_do() {
    let (c, s) = (0.3f64.cos(), 0.3f64.sin());
    let turned = geometry([0.5, 0.75, 2.0], [1.0, -2.0, 3.0], [c, 0.0, s, s, 0.0, -c, 0.0, 1.0, 0.0]);
    let upright = Geometry::default();
    let plane = Plane { spacing: [0.5, 0.75], origin: [1.0, -2.0], direction: [[c, -s], [s, c]] };
    let plane = Geometry::from_plane(&plane);
    assert_eq!(plane.spacing, [999.0 * 0.75, 0.75, 0.5], "as nnU-Net has it");
    let flat = Geometry { spacing: [999.0, 1.0, 1.0], ..Geometry::default() };
    let stack = Geometry { spacing: [2.0, 0.75, 0.5], ..Geometry::default() };
    for (name, channels, z, number, geometry) in [
        ("packed.mha", 1, 2, ScalarType::I16, &turned),
        ("packed.mhd", 1, 2, ScalarType::I16, &turned),
        ("plain.mhd", 1, 2, ScalarType::I16, &turned),
        ("packed.nrrd", 1, 2, ScalarType::I16, &turned),
        ("packed.nhdr", 1, 2, ScalarType::I16, &turned),
        ("plane.mha", 1, 1, ScalarType::I16, &plane),
        ("plane.nrrd", 1, 1, ScalarType::I16, &plane),
        ("vector.mha", 2, 2, ScalarType::F32, &upright),
        ("vector.nrrd", 2, 2, ScalarType::F32, &upright),
        ("four.mha", 2, 2, ScalarType::U8, &upright),
        ("four.nrrd", 2, 2, ScalarType::U8, &upright),
        ("long.nrrd", 1, 2, ScalarType::I64, &upright),
        ("stack_0000.tif", 1, 2, ScalarType::U16, &stack),
        ("grey.bmp", 1, 1, ScalarType::U8, &flat),
    ] {
        let volume = read_volume(&made(name)).unwrap();
        assert_eq!(volume.data, ramp(channels, z), "{name}");
        assert_near(&volume.geometry, geometry, name);
        let header = read_header(&made(name)).unwrap();
        assert_eq!((header.shape, header.scalar_type), ([channels, z, 3, 4], number), "{name}");
        assert_eq!(header.geometry, volume.geometry, "{name}");
    }
    let colour = read_volume(&made("colour.bmp")).unwrap().data;
    assert_eq!(colour.dim(), (3, 1, 3, 4));
    assert!(colour.outer_iter().all(|channel| channel == ramp(1, 1).index_axis(ndarray::Axis(0), 0)));
    assert_eq!(read_labels(&made("grey.bmp")).unwrap().data[[0, 2, 3]], 11);
}

/// A folder for files written by hand.
struct Made(TempDir);

impl Made {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, header: &str, voxels: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, [header.as_bytes(), voxels].concat()).unwrap();
        path
    }

    /// A MetaImage of 2 x 2 x 2 voxels.
    fn meta(&self, kind: &str, fields: &str, voxels: &[u8]) -> PathBuf {
        let header = format!("ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\n{fields}ElementType = {kind}\n");
        self.write("a.mha", &format!("{header}ElementDataFile = LOCAL\n"), voxels)
    }

    fn nrrd(&self, fields: &str, voxels: &[u8]) -> PathBuf {
        self.write("a.nrrd", &format!("NRRD0004\n# a comment\nkey:=value\n{fields}\n"), voxels)
    }
}

fn little(numbers: std::ops::Range<i16>) -> Vec<u8> {
    numbers.flat_map(i16::to_le_bytes).collect()
}

fn big(numbers: std::ops::Range<i16>) -> Vec<u8> {
    numbers.flat_map(i16::to_be_bytes).collect()
}

fn flat(volume: &Volume) -> Vec<f32> {
    volume.data.iter().copied().collect()
}

/// Expected values are SimpleITK 2.5's for the same files.
#[test]
fn fields_of_a_metaimage_mean_the_same_as_in_itk() {
    let made = Made::new();
    let first: Vec<f32> = (0..8).map(|number| number as f32).collect();
    let longs: Vec<u8> = (0..8i32).flat_map(i32::to_le_bytes).collect();
    let doubles: Vec<u8> = (0..8).flat_map(|number| f64::from(number).to_be_bytes()).collect();
    let quarter = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
    let flipped = [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    let rotation = "BinaryDataByteOrderMSB = True\nRotation = 0 1 0 -1 0 0 0 0 1\nPosition = 1 2 3\n\
                    ElementToIntensityFunctionSlope = 2\n";
    for (kind, fields, voxels, expected) in [
        ("MET_LONG", "", longs, geometry([1.0; 3], [0.0; 3], IDENTITY)),
        ("MET_DOUBLE", "ElementByteOrderMSB = True\n", doubles, geometry([1.0; 3], [0.0; 3], IDENTITY)),
        ("MET_SHORT", "ElementSize = 2 3 4\n", little(0..8), geometry([2.0, 3.0, 4.0], [0.0; 3], IDENTITY)),
        ("MET_SHORT", rotation, big(0..8), geometry([1.0; 3], [1.0, 2.0, 3.0], quarter)),
        ("MET_SHORT", "ElementSpacing = -1 2 3\n", little(0..8), geometry([1.0, 2.0, 3.0], [0.0; 3], flipped)),
        ("MET_SHORT", "BinaryData = False\n", b"0 1 2 3\n4 5 6 7\n".to_vec(), geometry([1.0; 3], [0.0; 3], IDENTITY)),
        (
            "MET_SHORT",
            "HeaderSize = -1\n",
            [b"junk".to_vec(), little(0..8)].concat(),
            geometry([1.0; 3], [0.0; 3], IDENTITY),
        ),
    ] {
        let volume = read_volume(&made.meta(kind, fields, &voxels)).unwrap();
        assert_eq!(flat(&volume), first, "{fields}");
        assert_near(&volume.geometry, &expected, fields);
    }
}

/// Expected values are SimpleITK 2.5's for the same files.
#[test]
fn fields_of_an_nrrd_file_mean_the_same_as_in_itk() {
    let made = Made::new();
    let basis = "type: short\ndimension: 3\nsizes: 2 2 2\nendian: little\nencoding: raw\n";
    let place = "space directions: (1,0,0) (0, 2, 0) (0,0,3)\nspace origin: (1,2,3)\n";
    let spacing = [1.0, 2.0, 3.0];
    let ras = geometry(spacing, [-1.0, -2.0, 3.0], [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]);
    let las = geometry(spacing, [1.0, -2.0, 3.0], [1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]);
    let lps = geometry(spacing, [1.0, 2.0, 3.0], IDENTITY);
    for (fields, expected) in [
        (format!("{basis}space: right-anterior-superior\n{place}"), ras),
        (format!("{basis}space: LAS\n{place}"), las),
        (format!("{basis}space: left-posterior-superior\n{place}"), lps.clone()),
        (format!("{basis}space: scanner-xyz\n{place}"), lps.clone()),
        (format!("{basis}space dimension: 3\n{place}"), lps),
        (format!("{basis}spacings: 1 2 3\n"), geometry(spacing, [0.0; 3], IDENTITY)),
        (format!("{basis}spacings: 1 2 3\naxis mins: 1 2 3\n"), geometry(spacing, [1.5, 3.0, 4.5], IDENTITY)),
    ] {
        let volume = read_volume(&made.nrrd(&fields, &little(0..8))).unwrap();
        assert_eq!(flat(&volume), (0..8).map(|number| number as f32).collect::<Vec<_>>(), "{fields}");
        assert_near(&volume.geometry, &expected, &fields);
    }
    // The channel axis may be the slowest one, or in the middle.
    let list = "type: short\ndimension: 4\nsizes: 2 2 2 2\nendian: big\nencoding: raw\nspace: LPS\n";
    let slowest = format!("{list}space directions: (1,0,0) (0,2,0) (0,0,3) none\nkinds: domain domain domain list\n");
    let volume = read_volume(&made.nrrd(&slowest, &big(0..16))).unwrap();
    assert_eq!(flat(&volume), (0..16).map(|number| number as f32).collect::<Vec<_>>());
    let middle = format!("{list}space directions: (1,0,0) none (0,2,0) (0,0,3)\nkinds: domain vector domain domain\n");
    let volume = read_volume(&made.nrrd(&middle, &big(0..16))).unwrap();
    assert_eq!(flat(&volume)[..4], [0.0, 1.0, 4.0, 5.0]);
    assert_eq!(volume.data[[1, 1, 0, 1]], 11.0);
    assert_eq!(volume.geometry.spacing, [3.0, 2.0, 1.0]);
    let text = "type: float\ndimension: 2\nsizes: 2 2\nencoding: ascii\n";
    assert_eq!(flat(&read_volume(&made.nrrd(text, b"1 2.5 -3\n4e1")).unwrap()), [1.0, 2.5, -3.0, 40.0]);
}

#[test]
fn written_images_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (c, s) = (0.6, 0.8);
    let turned = geometry([0.7, 1.1, 2.5], [-3.25, 4.0, 1e-3], [c, -s, 0.0, 0.0, 0.0, -1.0, s, c, 0.0]);
    let plane = Geometry::from_plane(&Plane { spacing: [0.3, 0.2], origin: [5.0, 6.0], direction: [[c, -s], [s, c]] });
    let stacked = Geometry { spacing: [2.5, 1.1, 0.7], ..Geometry::default() };
    let flat = Geometry { spacing: [999.0, 1.0, 1.0], ..Geometry::default() };
    for (name, geometry, z) in [
        ("a.mha", &turned, 3),
        ("a.mhd", &turned, 3),
        ("a.nrrd", &turned, 3),
        ("a.nhdr", &turned, 3),
        ("b.mha", &plane, 1),
        ("b.nrrd", &plane, 1),
        ("a.tif", &stacked, 3),
        ("b.tiff", &flat, 1),
        ("b.bmp", &flat, 1),
    ] {
        let path = folder.path().join(name);
        let data = Array3::from_shape_fn((z, 4, 5), |(z, y, x)| ((z + y * x) % 7) as i16);
        write_labels(&path, &LabelMap { data: data.clone(), geometry: geometry.clone() }).unwrap();
        assert_eq!(read_header(&path).unwrap().scalar_type, ScalarType::U8, "{name}");
        let back = read_labels(&path).unwrap();
        assert_eq!(back.data, data, "{name}");
        assert_near(&back.geometry, geometry, name);

        let is_raster = [".tif", ".tiff", ".bmp"].iter().any(|ending| name.ends_with(ending));
        let channels = if is_raster { 3 } else { 2 };
        for factor in [1.0, -3.0, 0.25] {
            let data = Array4::from_shape_fn((channels, z, 4, 5), |(c, z, y, x)| {
                factor * (50 * c + 20 * z + 5 * y + x) as f32
            });
            let written = write_volume(&path, &Volume { data: data.clone(), geometry: geometry.clone() });
            if is_raster && factor != 1.0 {
                assert!(written.unwrap_err().to_string().contains(name));
                continue;
            }
            written.unwrap();
            let number = if factor == 1.0 {
                ScalarType::U8
            } else if factor < 0.0 {
                ScalarType::I16
            } else {
                ScalarType::F32
            };
            assert_eq!(read_header(&path).unwrap().scalar_type, number, "{name}");
            let back = read_volume(&path).unwrap();
            assert_eq!(back.data, data, "{name}");
            assert_near(&back.geometry, geometry, name);
        }
    }
    // The header of a 2D file has two axes, and the spacing of a channel's TIFF file is in `case.json`, where nnU-Net
    // expects it.
    assert!(fs::read_to_string(folder.path().join("a.mhd")).unwrap().contains("NDims = 3\n"));
    assert!(fs::read(folder.path().join("b.mha")).unwrap().windows(10).any(|field| field == b"NDims = 2\n"));
    let channel = folder.path().join("case_0001.tif");
    write_volume(&channel, &Volume { data: Array4::zeros((1, 3, 4, 5)), geometry: stacked.clone() }).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("case.json")).unwrap()).unwrap();
    assert_eq!(json, serde_json::json!({"spacing": [2.5, 1.1, 0.7]}));
    assert_near(&read_header(&channel).unwrap().geometry, &stacked, "case_0001.tif");
}

#[test]
fn damaged_files_are_refused_by_name_and_field() {
    let made = Made::new();
    let good = little(0..8);
    let meta = |fields: &str| made.meta("MET_SHORT", fields, &good);
    for (fields, defect) in [
        ("DimSize = 2 2\n", "DimSize has 2 entries for 3 axes"),
        ("DimSize = 2 0 2\n", "DimSize is \"2 0 2\""),
        ("DimSize = 99999999999 99999999999 9\n", "over the addressable size"),
        ("DimSize = 4000 4000 4000\n", "is truncated"),
        ("DimSize = -1 2 2\n", "DimSize is"),
        ("NDims = 7\n", "NDims is 7"),
        ("ElementNumberOfChannels = 0\n", "ElementNumberOfChannels is 0"),
        ("ElementNumberOfChannels = 18446744073709551615\n", "ElementNumberOfChannels"),
        ("CompressedData = True\n", "is damaged"),
        ("CompressedData = perhaps\n", "CompressedData is"),
        ("ElementSpacing = 1 0 1\n", "a spacing of 0 mm"),
        ("Offset = 1 nan 1\n", "an origin of NaN mm"),
        ("TransformMatrix = 1 0 0 1 0 0 0 0 1\n", "determinant 0"),
        ("TransformMatrix = 1 0 0 1\n", "TransformMatrix has 4 entries, not 9"),
        ("HeaderSize = 9999\n", "is truncated"),
        ("ObjectType = Tube\n", "ObjectType is Tube"),
        ("BinaryData = False\n", "a.mha: "),
    ] {
        let error = read_volume(&meta(fields)).unwrap_err().to_string();
        assert!(error.contains("a.mha") && error.contains(defect), "{fields}: {error}");
    }
    assert!(
        read_volume(&made.meta("MET_STRING", "", &good))
            .unwrap_err()
            .to_string()
            .contains("ElementType MET_STRING is not supported")
    );
    assert!(read_header(&made.meta("MET_SHORT", "", &good[..15])).unwrap_err().to_string().contains("truncated"));
    for file in ["../a.raw", "/etc/passwd", "LIST", "slice%03d.raw", "missing.raw", "."] {
        let header = format!("NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = {file}\n");
        let error = read_volume(&made.write("b.mhd", &header, &[])).unwrap_err().to_string();
        let expected = if file == "missing.raw" { "missing.raw: No such file" } else { "b.mhd: ElementDataFile is" };
        assert!(error.contains(expected), "{file}: {error}");
    }
    let no_data = read_volume(&made.write("c.mha", "NDims = 3\n", &[0; 64])).unwrap_err().to_string();
    assert!(no_data.contains("c.mha: is not a MetaImage file"), "{no_data}");

    let basis = "type: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n";
    for (fields, defect) in [
        (basis.to_owned(), "endian is missing"),
        (format!("{basis}endian: middle\n"), "endian is middle"),
        (format!("{basis}endian: little\nencoding: bzip2\n"), "encoding bzip2 is not supported"),
        (format!("{basis}endian: little\nencoding: gzip\n"), "a.nrrd: "),
        (format!("{basis}endian: little\nencoding: ascii\n"), "a.nrrd: "),
        (format!("{basis}endian: little\nsizes: 2 2\n"), "sizes has 2 entries"),
        (format!("{basis}endian: little\nsizes: 9000 9000 9000\n"), "is truncated"),
        (format!("{basis}endian: little\nsizes: 9999999999 9999999999 9999999999\n"), "over the addressable size"),
        (format!("{basis}endian: little\ndimension: 5\n"), "dimension is 5"),
        (format!("{basis}endian: little\ntype: block\n"), "type block is not supported"),
        (
            format!("{basis}endian: little\nspace: MARS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"),
            "space MARS is not supported",
        ),
        (format!("{basis}endian: little\nspace directions: (1,0) (0,1) (0,0)\n"), "must have 3 components"),
        (format!("{basis}endian: little\nspace directions: (1,0,0) (0,1,0) (0,0,0)\n"), "its header states"),
        (format!("{basis}endian: little\nspace directions: (1,0,0) (0,1,0) (0,0,1\n"), "no `)`"),
        (format!("{basis}endian: little\nkinds: list vector domain\n"), "kinds: 1 of 3 axes"),
        (format!("{basis}endian: little\nline skip: 3\n"), "line skip is 3"),
        (format!("{basis}endian: little\ndata file: ../a.raw\n"), "data file is \"../a.raw\""),
        (format!("{basis}endian: little\ndata file: LIST\n"), "data file is LIST"),
    ] {
        let error = read_volume(&made.nrrd(&fields, &good)).unwrap_err().to_string();
        assert!(error.contains("a.nrrd") && error.contains(defect), "{fields}: {error}");
    }
    let no_magic = read_volume(&made.write("b.nrrd", "PNG\n", &[])).unwrap_err().to_string();
    assert!(no_magic.contains("b.nrrd: is not an NRRD file"), "{no_magic}");

    // The pixels of BMP and TIFF files are truncated.
    for (name, kept) in [("grey.bmp", 900), ("colour.bmp", 60), ("stack_0000.tif", 200)] {
        let bytes = fs::read(self::made(name)).unwrap();
        let path = made.write(name, "", &bytes[..kept.min(bytes.len() - 1)]);
        let error = read_volume(&path).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    fs::write(made.0.path().join("s.json"), r#"{"spacing": [1, 2]}"#).unwrap();
    let path = made.write("s.tif", "", &fs::read(self::made("stack_0000.tif")).unwrap());
    assert!(read_volume(&path).unwrap_err().to_string().contains("s.json: spacing is [1,2]"));
}
