//! 2D raster images, PNG and TIFF, 8 or 16 bit, grey or colour.
//!
//! They know no millimetres: spacing is 1 in the plane and, as nnU-Net has it, 999 across.

use std::fs::File;
use std::io::{BufReader, BufWriter, Cursor, Write};
use std::path::Path;

use ndarray::{Array4, ArrayView3};
use tiff::{
    ColorType as TiffColor,
    decoder::{Decoder, DecodingResult},
    encoder::{TiffEncoder, colortype},
};

use super::seam::{ImageHeader, ImageReader, ImageWriter};
use super::{Geometry, ImageError, LabelMap, Volume};
use crate::fsio;

/// nnU-Net's spacing across a 2D image (`natural_image_reader_writer.py`).
const SLICE_SPACING: f64 = 999.0;
/// No file grows by more than this when decompressed.
const MAX_INFLATION: u64 = 4096;

/// PNG files.
pub struct Png;
/// TIFF files with one page.
pub struct Tiff;

fn geometry() -> Geometry {
    Geometry { spacing: [SLICE_SPACING, 1.0, 1.0], ..Geometry::default() }
}

/// Holds the header's claim against the size of the file, before memory is asked for.
fn check_claim(path: &Path, claimed: u64) -> Result<(), ImageError> {
    let length = std::fs::metadata(path).map_err(|error| ImageError::new(path, error))?.len();
    match claimed > length.saturating_mul(MAX_INFLATION) {
        true => Err(ImageError::new(path, format!("claims {claimed} bytes of pixels in a file of {length}"))),
        false => Ok(()),
    }
}

/// Pixels `(y, x, channel)` as a volume `(channel, 1, y, x)`.
fn volume_of(pixels: &[f32], [height, width, channels]: [usize; 3]) -> Option<Volume> {
    let pixels = ArrayView3::from_shape((height, width, channels), pixels).ok()?;
    let data = Array4::from_shape_fn((channels, 1, height, width), |(c, _, y, x)| pixels[[y, x, c]]);
    Some(Volume { data, geometry: geometry() })
}

/// Grey or colour pixels to be written.
enum Pixels {
    Bits8(Vec<u8>),
    Bits16(Vec<u16>),
}

impl Pixels {
    /// Converts `(channel, 1, y, x)` to `(y, x, channel)` integers.
    fn of(data: &Array4<f32>) -> Result<Self, String> {
        let (channels, z, height, width) = data.dim();
        if z != 1 || !matches!(channels, 1 | 3) {
            return Err(format!("cannot hold {channels} channels of {z} slices, only grey or colour of one slice"));
        }
        let largest = data.iter().copied().fold(0.0, f32::max);
        if let Some(value) = data.iter().find(|value| value.fract() != 0.0 || **value < 0.0 || **value > 65535.0) {
            return Err(format!("cannot hold {value}, only integers from 0 to 65535"));
        }
        let pixels =
            (0..height * width * channels).map(|i| data[[i % channels, 0, i / channels / width, i / channels % width]]);
        Ok(match largest <= 255.0 {
            true => Self::Bits8(pixels.map(|value| value as u8).collect()),
            false => Self::Bits16(pixels.map(|value| value as u16).collect()),
        })
    }
}

fn labels_as_volume(labels: &LabelMap) -> Volume {
    let (z, y, x) = labels.data.dim();
    let data = Array4::from_shape_fn((1, z, y, x), |(_, z, y, x)| f32::from(labels.data[[z, y, x]]));
    Volume { data, geometry: labels.geometry.clone() }
}

impl Png {
    fn open(path: &Path) -> Result<png::Decoder<BufReader<File>>, ImageError> {
        let file = File::open(path).map_err(|error| ImageError::new(path, error))?;
        Ok(png::Decoder::new(BufReader::new(file)))
    }

    /// Reads samples after `transformations`: `(y, x, channel)`.
    fn read(path: &Path, transformations: png::Transformations) -> Result<Volume, ImageError> {
        let fail = |error: png::DecodingError| ImageError::new(path, format!("is not a whole PNG file: {error}"));
        let mut decoder = Self::open(path)?;
        decoder.set_transformations(transformations);
        let mut reader = decoder.read_info().map_err(fail)?;
        let size = reader.output_buffer_size();
        check_claim(path, size as u64)?;
        let mut bytes = vec![0; size];
        let frame = reader.next_frame(&mut bytes).map_err(fail)?;
        reader.finish().map_err(fail)?;
        let shape = [frame.height as usize, frame.width as usize, frame.color_type.samples()];
        let row_samples = shape[1] * shape[2];
        let rows = bytes[..frame.buffer_size()].chunks_exact(frame.line_size);
        let samples: Vec<f32> = match frame.bit_depth {
            png::BitDepth::Sixteen => {
                rows.flat_map(|row| row.as_chunks().0.iter().map(|pair| f32::from(u16::from_be_bytes(*pair)))).collect()
            }
            depth => rows.flat_map(|row| unpack(row, depth as usize).take(row_samples)).collect(),
        };
        volume_of(&samples, shape).ok_or_else(|| ImageError::new(path, "has rows of differing length"))
    }
}

/// Samples of 1, 2, 4 or 8 bits, the first in the highest bits.
fn unpack(row: &[u8], bits: usize) -> impl Iterator<Item = f32> {
    let per_byte = 8 / bits;
    let mask = (1u16 << bits) - 1;
    row.iter()
        .flat_map(move |byte| (0..per_byte).map(move |i| f32::from((u16::from(*byte) >> (8 - bits * (i + 1))) & mask)))
}

impl ImageReader for Png {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        let fail = |error: png::DecodingError| ImageError::new(path, format!("is not a whole PNG file: {error}"));
        let mut decoder = Self::open(path)?;
        decoder.set_transformations(png::Transformations::EXPAND);
        let reader = decoder.read_info().map_err(fail)?;
        let channels = reader.output_color_type().0.samples();
        let (width, height) = reader.info().size();
        Ok(ImageHeader { shape: [channels, 1, height as usize, width as usize], geometry: geometry() })
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        Self::read(path, png::Transformations::EXPAND)
    }

    /// The palette's indices and the unscaled bits are the labels, not the colours they stand for.
    fn read_label_values(&self, path: &Path) -> Result<Volume, ImageError> {
        Self::read(path, png::Transformations::IDENTITY)
    }
}

impl ImageWriter for Png {
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
        self.write_volume(path, &labels_as_volume(labels))
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        let fail = |error: &dyn std::fmt::Display| ImageError::new(path, format!("cannot be written: {error}"));
        let pixels = Pixels::of(&volume.data).map_err(|defect| fail(&defect))?;
        let (channels, _, height, width) = volume.data.dim();
        let write = |file: &mut BufWriter<&mut File>| -> Result<(), png::EncodingError> {
            let mut encoder = png::Encoder::new(file, width as u32, height as u32);
            encoder.set_color(if channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
            let bytes = match pixels {
                Pixels::Bits8(bytes) => bytes,
                Pixels::Bits16(values) => {
                    encoder.set_depth(png::BitDepth::Sixteen);
                    values.into_iter().flat_map(u16::to_be_bytes).collect()
                }
            };
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&bytes)?;
            writer.finish()
        };
        fsio::write_atomically(path, |file| write(file).map_err(std::io::Error::from)).map_err(|error| fail(&error))
    }
}

impl Tiff {
    fn open(path: &Path) -> Result<(Decoder<BufReader<File>>, [usize; 3]), ImageError> {
        let fail = |error: tiff::TiffError| ImageError::new(path, format!("is not a whole TIFF file: {error}"));
        let file = File::open(path).map_err(|error| ImageError::new(path, error))?;
        let mut decoder = Decoder::new(BufReader::new(file)).map_err(fail)?;
        let (width, height) = decoder.dimensions().map_err(fail)?;
        let channels = match decoder.colortype().map_err(fail)? {
            TiffColor::Gray(_) | TiffColor::Palette(_) => 1,
            TiffColor::GrayA(_) => 2,
            TiffColor::RGB(_) => 3,
            TiffColor::RGBA(_) => 4,
            other => return Err(ImageError::new(path, format!("has pixels of type {other:?}, not grey or RGB"))),
        };
        if decoder.more_images() {
            return Err(ImageError::new(path, "has several pages; only 2D images are read from TIFF"));
        }
        Ok((decoder, [height as usize, width as usize, channels]))
    }
}

impl ImageReader for Tiff {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        let (_, [height, width, channels]) = Self::open(path)?;
        Ok(ImageHeader { shape: [channels, 1, height, width], geometry: geometry() })
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        let (mut decoder, shape) = Self::open(path)?;
        check_claim(path, shape.iter().map(|extent| *extent as u64).product())?;
        let pixels = decoder.read_image();
        let pixels = pixels.map_err(|error| ImageError::new(path, format!("is not a whole TIFF file: {error}")))?;
        macro_rules! floats {
            ($values:expr) => {
                $values.into_iter().map(|value| value as f32).collect::<Vec<f32>>()
            };
        }
        let samples = match pixels {
            DecodingResult::U8(values) => floats!(values),
            DecodingResult::U16(values) => floats!(values),
            DecodingResult::U32(values) => floats!(values),
            DecodingResult::U64(values) => floats!(values),
            DecodingResult::I8(values) => floats!(values),
            DecodingResult::I16(values) => floats!(values),
            DecodingResult::I32(values) => floats!(values),
            DecodingResult::I64(values) => floats!(values),
            DecodingResult::F32(values) => values,
            DecodingResult::F64(values) => floats!(values),
            _ => return Err(ImageError::new(path, "has numbers of a type that cannot be read")),
        };
        volume_of(&samples, shape).ok_or_else(|| ImageError::new(path, "has rows of differing length"))
    }
}

impl ImageWriter for Tiff {
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
        self.write_volume(path, &labels_as_volume(labels))
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        let fail = |error: &dyn std::fmt::Display| ImageError::new(path, format!("cannot be written: {error}"));
        let pixels = Pixels::of(&volume.data).map_err(|defect| fail(&defect))?;
        let (channels, _, height, width) = volume.data.dim();
        let (width, height) = (width as u32, height as u32);
        let mut bytes = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut bytes).map_err(|error| fail(&error))?;
        let written = match (&pixels, channels) {
            (Pixels::Bits8(values), 1) => encoder.write_image::<colortype::Gray8>(width, height, values),
            (Pixels::Bits8(values), _) => encoder.write_image::<colortype::RGB8>(width, height, values),
            (Pixels::Bits16(values), 1) => encoder.write_image::<colortype::Gray16>(width, height, values),
            (Pixels::Bits16(values), _) => encoder.write_image::<colortype::RGB16>(width, height, values),
        };
        written.map_err(|error| fail(&error))?;
        fsio::write_atomically(path, |file| file.write_all(bytes.get_ref())).map_err(|error| fail(&error))
    }
}
