//! TIFF: one page is a 2D image, several pages are the slices of a 3D image.
//!
//! The spacing is in a JSON file beside the image, as in nnU-Net v2 (`tif_reader_writer.py`): `{"spacing": [z, y, x]}`.

use std::fs::File;
use std::io::{BufReader, Cursor, Write};
use std::path::{Path, PathBuf};

use ndarray::Array4;
use nnunet_core::{fsio, user_file};
use serde_json::{Value, json};
use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult};
use tiff::encoder::{Compression, DeflateLevel, TiffEncoder, colortype};
use tiff::tags::{SampleFormat, Tag};

use super::{Pixels, check_declared_size, geometry, labels_as_volume};
use crate::inexact::InexactValues;
use crate::reader_writer::{ImageHeader, ImageReader, ImageWriter, warn_once};
use crate::{Geometry, ImageError, LabelMap, ScalarType, Volume};

/// Reader and writer of TIFF files.
pub struct Tiff;

/// `PhotometricInterpretation` of images whose value 0 is white. Intensities and labels keep their stored values, as in
/// tifffile.
const WHITE_IS_ZERO: u16 = 0;

/// An open file with its current page.
struct Pages<'a> {
    path: &'a Path,
    decoder: Decoder<BufReader<File>>,
    /// `(y, x, channel)` of a page.
    shape: [usize; 3],
    scalar_type: ScalarType,
}

impl<'a> Pages<'a> {
    fn open(path: &'a Path) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(|error| ImageError::new(path, error))?;
        let decoder = Decoder::new(BufReader::new(file)).map_err(|error| damaged(path, &error))?;
        let mut pages = Self { path, decoder, shape: [0; 3], scalar_type: ScalarType::U8 };
        pages.shape = pages.page_shape()?;
        pages.scalar_type = pages.page_scalar_type()?;
        check_declared_size(path, pages.shape.iter().map(|extent| *extent as u64).product())?;
        Ok(pages)
    }

    fn page_shape(&mut self) -> Result<[usize; 3], ImageError> {
        let fail = |error: tiff::TiffError| damaged(self.path, &error);
        let (width, height) = self.decoder.dimensions().map_err(fail)?;
        let channels = match self.decoder.colortype().map_err(fail)? {
            ColorType::Gray(_) | ColorType::Palette(_) => 1,
            ColorType::GrayA(_) => 2,
            ColorType::Multiband { num_samples, .. } => usize::from(num_samples),
            ColorType::RGB(_) => 3,
            ColorType::RGBA(_) => 4,
            other => {
                return Err(ImageError::new(self.path, format!("has pixels of type {other:?}, not grayscale or RGB")));
            }
        };
        Ok([height as usize, width as usize, channels])
    }

    fn page_scalar_type(&mut self) -> Result<ScalarType, ImageError> {
        let bits = self.decoder.colortype().map_err(|error| damaged(self.path, &error))?.bit_depth();
        let format = self.decoder.find_tag(Tag::SampleFormat).ok().flatten();
        let format = format.and_then(|value| value.into_u16_vec().ok()?.first().copied()).unwrap_or(1);
        Ok(match (SampleFormat::from_u16(format), bits) {
            (Some(SampleFormat::IEEEFP), 64) => ScalarType::F64,
            (Some(SampleFormat::IEEEFP), _) => ScalarType::F32,
            (Some(SampleFormat::Int), 0..=8) => ScalarType::I8,
            (Some(SampleFormat::Int), 9..=16) => ScalarType::I16,
            (Some(SampleFormat::Int), 17..=32) => ScalarType::I32,
            (Some(SampleFormat::Int), _) => ScalarType::I64,
            (_, 0..=8) => ScalarType::U8,
            (_, 9..=16) => ScalarType::U16,
            (_, 17..=32) => ScalarType::U32,
            _ => ScalarType::U64,
        })
    }

    /// Advances to the next page, which must have the shape of the first; `false` if there is none.
    fn next(&mut self) -> Result<bool, ImageError> {
        if !self.decoder.more_images() {
            return Ok(false);
        }
        self.decoder.next_image().map_err(|error| damaged(self.path, &error))?;
        let (first, shape) = (self.shape, self.page_shape()?);
        match shape == first {
            true => Ok(true),
            false => {
                Err(ImageError::new(self.path, format!("has pages of {first:?} and of {shape:?} (y, x, channel)")))
            }
        }
    }

    /// Samples of the current page, `(y, x, channel)`, as stored: white may be 0.
    fn samples(&mut self) -> Result<Vec<f32>, ImageError> {
        let fail = |error: tiff::TiffError| damaged(self.path, &error);
        let bits = self.decoder.colortype().map_err(fail)?.bit_depth();
        let photometric = self.decoder.find_tag(Tag::PhotometricInterpretation).map_err(fail)?;
        let is_inverted = photometric.and_then(|value| value.into_u16().ok()) == Some(WHITE_IS_ZERO);
        let mut read = DecodingResult::U8(Vec::new());
        let layout = self.decoder.read_image_to_buffer(&mut read).map_err(fail)?;
        let mut inexact = InexactValues::default();
        macro_rules! integers {
            ($values:expr, $largest:expr) => {
                $values
                    .into_iter()
                    .map(|value| {
                        // The decoder has inverted the values of files in which white is 0.
                        let stored = if is_inverted { $largest - value } else { value };
                        inexact.look_at(stored as f64);
                        stored as f32
                    })
                    .collect()
            };
        }
        macro_rules! floats {
            ($values:expr) => {
                $values.into_iter().map(|value| if is_inverted { 1.0 - value } else { value } as f32).collect()
            };
        }
        let [height, width, channels] = self.shape;
        let (planes, per_plane) = if layout.planes > 1 { (channels, 1) } else { (1, channels) };
        let samples: Vec<f32> = match read {
            DecodingResult::U8(packed) if bits < 8 => {
                let largest = (1u8 << bits) - 1;
                integers!(unpack(&packed, bits, [planes * height, width * per_plane]), largest)
            }
            DecodingResult::U8(values) => integers!(values, u8::MAX),
            DecodingResult::U16(values) => integers!(values, u16::MAX),
            DecodingResult::U32(values) => integers!(values, u32::MAX),
            DecodingResult::U64(values) => integers!(values, u64::MAX),
            DecodingResult::I8(values) => integers!(values, 0),
            DecodingResult::I16(values) => integers!(values, 0),
            DecodingResult::I32(values) => integers!(values, 0),
            DecodingResult::I64(values) => integers!(values, 0),
            DecodingResult::F16(values) => values.into_iter().map(|value| value.to_f32()).collect(),
            DecodingResult::F32(values) => floats!(values),
            DecodingResult::F64(values) => {
                values.iter().for_each(|value| inexact.look_at(*value));
                floats!(values)
            }
        };
        if let Some(remark) = inexact.remark() {
            warn_once(self.path, &remark);
        }
        if samples.len() != self.shape.iter().product::<usize>() {
            return Err(ImageError::new(self.path, "has rows of different lengths"));
        }
        Ok(if planes == 1 { samples } else { interleave(&samples, planes) })
    }
}

/// Unpacks rows of samples of 1, 2 or 4 bits, most significant bits first; each row begins at a byte.
fn unpack(bytes: &[u8], bits: u8, [rows, width]: [usize; 2]) -> Vec<u8> {
    let bits = usize::from(bits);
    let stride = (width * bits).div_ceil(8).max(1);
    let sample = |row: &[u8], x: usize| {
        let shift = 8 - bits - x * bits % 8;
        row.get(x * bits / 8).map(|byte| byte >> shift & ((1u8 << bits) - 1))
    };
    bytes.chunks(stride).take(rows).flat_map(|row| (0..width).filter_map(move |x| sample(row, x))).collect()
}

/// Converts planes, one after the other, to interleaved samples.
fn interleave(samples: &[f32], planes: usize) -> Vec<f32> {
    let pixels = samples.len() / planes;
    (0..samples.len()).map(|index| samples[index % planes * pixels + index / planes]).collect()
}

fn damaged(path: &Path, error: &tiff::TiffError) -> ImageError {
    ImageError::new(path, format!("is not a valid TIFF file: {error}"))
}

/// Geometry: 2D for a single page without a spacing file; 1 mm for several pages without one.
fn geometry_of(path: &Path, pages: usize) -> Result<Geometry, ImageError> {
    let spacing = read_spacing(path)?;
    if spacing.is_none() && pages > 1 {
        let json = path.with_extension("json");
        tracing::warn!("{}: no spacing in {}, assuming 1 mm", path.display(), json.display());
    }
    Ok(match spacing {
        Some(spacing) => Geometry { spacing, ..Geometry::default() },
        None if pages > 1 => Geometry::default(),
        None => geometry(),
    })
}

impl ImageReader for Tiff {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        let mut pages = Pages::open(path)?;
        let mut count = 1;
        while pages.next()? {
            count += 1;
        }
        let [height, width, channels] = pages.shape;
        let shape = [channels, count, height, width];
        Ok(ImageHeader { shape, scalar_type: pages.scalar_type, geometry: geometry_of(path, count)? })
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        let mut pages = Pages::open(path)?;
        let mut slices = vec![pages.samples()?];
        while pages.next()? {
            check_declared_size(path, (slices.len() * slices[0].len()) as u64)?;
            slices.push(pages.samples()?);
        }
        let [height, width, channels] = pages.shape;
        let shape = (channels, slices.len(), height, width);
        let data = Array4::from_shape_fn(shape, |(c, z, y, x)| slices[z][(y * width + x) * channels + c]);
        Ok(Volume { data, geometry: geometry_of(path, slices.len())? })
    }
}

impl ImageWriter for Tiff {
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
        write(path, &labels_as_volume(labels), false)
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        write(path, volume, true)
    }
}

/// Writes one page per slice, and a spacing file unless the image is 2D.
fn write(path: &Path, volume: &Volume, is_image: bool) -> Result<(), ImageError> {
    let fail = |error: &dyn std::fmt::Display| ImageError::new(path, format!("cannot be written: {error}"));
    let pixels = Pixels::from_volume(volume).map_err(|defect| fail(&defect))?;
    let bytes = encode(&pixels, volume.data.dim()).map_err(|error| fail(&error))?;
    // The spacing is written first, so that an image never exists without it.
    if volume.geometry.plane().is_none() {
        write_spacing(path, volume.geometry.spacing, is_image)?;
    }
    fsio::write_atomically(path, |file| file.write_all(&bytes)).map_err(|error| fail(&error))
}

fn encode(pixels: &Pixels, (c, z, y, x): (usize, usize, usize, usize)) -> Result<Vec<u8>, tiff::TiffError> {
    let mut bytes = Cursor::new(Vec::new());
    let compression = Compression::Deflate(DeflateLevel::default());
    let mut encoder = TiffEncoder::new(&mut bytes)?.with_compression(compression);
    let (width, height, page) = (x as u32, y as u32, y * x * c);
    for z in 0..z {
        let page = z * page..(z + 1) * page;
        match (pixels, c) {
            (Pixels::Bits8(all), 1) => encoder.write_image::<colortype::Gray8>(width, height, &all[page]),
            (Pixels::Bits8(all), _) => encoder.write_image::<colortype::RGB8>(width, height, &all[page]),
            (Pixels::Bits16(all), 1) => encoder.write_image::<colortype::Gray16>(width, height, &all[page]),
            (Pixels::Bits16(all), _) => encoder.write_image::<colortype::RGB16>(width, height, &all[page]),
        }?;
    }
    Ok(bytes.into_inner())
}

/// Reads the spacing of an image, in mm along `(z, y, x)`; `None` if there is no such file.
///
/// `case.tif` and `case_0000.tif` both use `case.json`.
fn read_spacing(image: &Path) -> Result<Option<[f64; 3]>, ImageError> {
    let candidates = [image.with_extension("json"), without_channel(image)];
    let Some(path) = candidates.into_iter().find(|path| path.is_file()) else { return Ok(None) };
    let json: Value = user_file::read_json(&path).map_err(|error| ImageError::new(&path, error))?;
    let Some(spacing) = json.get("spacing") else { return Ok(None) };
    let numbers: Vec<f64> = spacing.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    match numbers.as_slice() {
        &[z, y, x] if [z, y, x].iter().all(|mm| mm.is_finite() && *mm > 0.0) => Ok(Some([z, y, x])),
        _ => Err(ImageError::new(&path, format!("spacing is {spacing}, not three numbers above 0"))),
    }
}

/// Writes the spacing of an image. `has_channel`: the name ends in a channel number to strip (false for label maps).
fn write_spacing(image: &Path, spacing: [f64; 3], has_channel: bool) -> Result<(), ImageError> {
    let path = if has_channel { without_channel(image) } else { image.with_extension("json") };
    fsio::write_json(&path, &json!({ "spacing": spacing })).map_err(|error| ImageError::new(&path, error))
}

/// `case.json` for `case_0000.tif`.
fn without_channel(image: &Path) -> PathBuf {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    let digits = |digits: &str| digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_digit());
    let case = stem.rsplit_once('_').filter(|(case, channel)| !case.is_empty() && digits(channel));
    image.with_file_name(format!("{}.json", case.map_or(&*stem, |(case, _)| case)))
}
