//! Kinds of TIFF files that other programs write: masks of one bit, planes of channels, half precision, white as 0.

use std::path::{Path, PathBuf};

use nnunet_dist::image::{read_header, read_labels, read_volume};

/// Tags and types of the TIFF specification.
const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const BITS: u16 = 258;
const PHOTOMETRIC: u16 = 262;
const STRIP_OFFSETS: u16 = 273;
const SAMPLES: u16 = 277;
const STRIP_BYTES: u16 = 279;
const PLANAR: u16 = 284;
const SAMPLE_FORMAT: u16 = 339;

/// An uncompressed little-endian TIFF with one strip per plane.
struct Tiff {
    size: [u32; 2],
    bits: u16,
    photometric: u16,
    samples: u16,
    format: u16,
    planes: Vec<Vec<u8>>,
}

impl Tiff {
    fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let samples = usize::from(self.samples);
        let per_sample = |value: u16| vec![u32::from(value); samples];
        let mut bytes = b"II\x2a\0\0\0\0\0".to_vec();
        let mut offsets = Vec::new();
        for plane in &self.planes {
            offsets.push(bytes.len() as u32);
            bytes.extend(plane);
        }
        let lengths: Vec<u32> = self.planes.iter().map(|plane| plane.len() as u32).collect();
        let is_planar = self.planes.len() > 1;
        // (tag, type: 3 for 16 bits and 4 for 32 bits, values)
        let fields: [(u16, u16, Vec<u32>); 9] = [
            (WIDTH, 4, vec![self.size[0]]),
            (HEIGHT, 4, vec![self.size[1]]),
            (BITS, 3, per_sample(self.bits)),
            (PHOTOMETRIC, 3, vec![self.photometric.into()]),
            (STRIP_OFFSETS, 4, offsets),
            (SAMPLES, 3, vec![self.samples.into()]),
            (STRIP_BYTES, 4, lengths),
            (PLANAR, 3, vec![if is_planar { 2 } else { 1 }]),
            (SAMPLE_FORMAT, 3, per_sample(self.format)),
        ];
        let mut entries = Vec::new();
        for (tag, kind, values) in &fields {
            let raw: Vec<u8> = match kind {
                3 => values.iter().flat_map(|value| (*value as u16).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            };
            entries.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
            entries.extend((values.len() as u32).to_le_bytes());
            if raw.len() <= 4 {
                entries.extend(&raw);
                entries.extend(vec![0; 4 - raw.len()]);
            } else {
                entries.extend((bytes.len() as u32).to_le_bytes());
                bytes.extend(&raw);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let directory = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&directory.to_le_bytes());
        bytes.extend((fields.len() as u16).to_le_bytes());
        bytes.extend(entries);
        bytes.extend([0; 4]);
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// A grayscale image of 10 x 3 pixels.
fn gray(bits: u16, photometric: u16, format: u16, pixels: Vec<u8>) -> Tiff {
    Tiff { size: [10, 3], bits, photometric, samples: 1, format, planes: vec![pixels] }
}

/// Packs rows of 10 samples, most significant bits first, each row from a byte on.
fn packed(values: &[u8], bits: usize) -> Vec<u8> {
    let pack = |row: &[u8]| {
        let mut bytes = vec![0u8; (row.len() * bits).div_ceil(8)];
        for (x, value) in row.iter().enumerate() {
            bytes[x * bits / 8] |= value << (8 - bits - x * bits % 8);
        }
        bytes
    };
    values.chunks(10).flat_map(pack).collect()
}

#[test]
fn masks_of_few_bits_hold_their_class_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for bits in [1usize, 2, 4, 8] {
        let values: Vec<u8> = (0..30).map(|pixel| ((pixel * 7 / 3) % (1 << bits.min(3))) as u8).collect();
        // Black is 0, then white is 0.
        for photometric in [1, 0] {
            let path = gray(bits as u16, photometric, 1, packed(&values, bits)).write(folder.path(), "mask.tif");
            let labels = read_labels(&path).unwrap().data;
            let expected: Vec<i16> = values.iter().map(|value| i16::from(*value)).collect();
            assert_eq!(labels.into_raw_vec_and_offset().0, expected, "{bits} bits, photometric {photometric}");
            assert_eq!(read_header(&path).unwrap().shape, [1, 1, 3, 10]);
        }
    }
}

#[test]
fn channels_may_be_planes() {
    let folder = tempfile::tempdir().unwrap();
    for bytes_per_sample in [1usize, 2] {
        let plane = |value: u16| -> Vec<u8> {
            (0..30u16).flat_map(|pixel| (value + pixel).to_le_bytes()[..bytes_per_sample].to_vec()).collect()
        };
        let planes = vec![plane(1), plane(101), plane(201)];
        let tiff =
            Tiff { size: [10, 3], bits: 8 * bytes_per_sample as u16, photometric: 2, samples: 3, format: 1, planes };
        let volume = read_volume(&tiff.write(folder.path(), "planar.tif")).unwrap();
        assert_eq!(volume.data.dim(), (3, 1, 3, 10));
        for (channel, data) in volume.data.outer_iter().enumerate() {
            let expected: Vec<f32> = (0..30).map(|pixel| (1 + 100 * channel + pixel) as f32).collect();
            assert_eq!(data.iter().copied().collect::<Vec<f32>>(), expected, "channel {channel}");
        }
    }
}

#[test]
fn half_precision_and_white_as_zero_keep_their_values() {
    let folder = tempfile::tempdir().unwrap();
    // 0.5, -2.0 and 1.0 as IEEE half precision.
    let halves = [0x3800u16, 0xc000, 0x3c00];
    let pixels = (0..30).flat_map(|pixel| halves[pixel % 3].to_le_bytes()).collect();
    let volume = read_volume(&gray(16, 1, 3, pixels).write(folder.path(), "half.tif")).unwrap();
    assert_eq!(volume.data.iter().copied().take(3).collect::<Vec<f32>>(), [0.5, -2.0, 1.0]);
    let pixels: Vec<u8> = (0..30u16).flat_map(|pixel| (1000 * pixel).to_le_bytes()).collect();
    let volume = read_volume(&gray(16, 0, 1, pixels).write(folder.path(), "white.tif")).unwrap();
    assert!(volume.data.iter().enumerate().all(|(pixel, value)| *value == 1000.0 * pixel as f32));
}
