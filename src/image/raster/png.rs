//! PNG: grayscale, color or palette, 1 to 16 bits.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

use super::{Pixels, check_declared_size, geometry, labels_as_volume, volume_of};
use crate::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use crate::{ImageError, LabelMap, ScalarType, Volume};
use nnunet_core::fsio::{self, PartialFile};

/// Reader and writer of PNG files.
pub struct Png;

impl Png {
    fn open(path: &Path) -> Result<png::Decoder<BufReader<File>>, ImageError> {
        let file = File::open(path).map_err(|error| ImageError::new(path, error))?;
        Ok(png::Decoder::new(BufReader::new(file)))
    }

    /// Reads samples after `transformations`, `(channel, 1, y, x)`.
    fn read(path: &Path, transformations: png::Transformations) -> Result<Volume, ImageError> {
        let fail = |error: png::DecodingError| ImageError::new(path, format!("is not a valid PNG file: {error}"));
        let mut decoder = Self::open(path)?;
        decoder.set_transformations(transformations);
        let mut reader = decoder.read_info().map_err(fail)?;
        let size = reader.output_buffer_size().unwrap_or(usize::MAX);
        check_declared_size(path, size as u64)?;
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
        volume_of(&samples, shape).ok_or_else(|| ImageError::new(path, "has rows of different lengths"))
    }
}

/// Unpacks samples of 1, 2, 4 or 8 bits, most significant bits first.
fn unpack(row: &[u8], bits: usize) -> impl Iterator<Item = f32> {
    let per_byte = 8 / bits;
    let mask = (1u16 << bits) - 1;
    row.iter()
        .flat_map(move |byte| (0..per_byte).map(move |i| f32::from((u16::from(*byte) >> (8 - bits * (i + 1))) & mask)))
}

impl ImageReader for Png {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        let fail = |error: png::DecodingError| ImageError::new(path, format!("is not a valid PNG file: {error}"));
        let mut decoder = Self::open(path)?;
        decoder.set_transformations(png::Transformations::EXPAND);
        let reader = decoder.read_info().map_err(fail)?;
        let channels = reader.output_color_type().0.samples();
        let (width, height) = reader.info().size();
        let scalar_type =
            if reader.output_color_type().1 == png::BitDepth::Sixteen { ScalarType::U16 } else { ScalarType::U8 };
        Ok(ImageHeader { shape: [channels, 1, height as usize, width as usize], scalar_type, geometry: geometry() })
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        Self::read(path, png::Transformations::EXPAND)
    }

    /// Reads labels: palette indices and unscaled samples, not colors.
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
        let pixels = Pixels::from_volume(volume).map_err(|defect| fail(&defect))?;
        let (channels, z, height, width) = volume.data.dim();
        if z != 1 {
            return Err(fail(&format_args!("PNG can hold one slice, not {z}")));
        }
        let write = |file: &mut BufWriter<&mut PartialFile>| -> Result<(), png::EncodingError> {
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
