//! BMP: 8-bit grayscale, color or palette.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use image::codecs::bmp::{BmpDecoder, BmpEncoder};
use image::{ColorType, ImageDecoder};

use super::{Pixels, check_declared_size, geometry, labels_as_volume, volume_of};
use crate::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use crate::{ImageError, LabelMap, ScalarType, Volume};
use nnunet_core::fsio;

/// Reader and writer of BMP files.
pub struct Bmp;

/// A file with its header read.
struct Picture {
    decoder: BmpDecoder<BufReader<File>>,
    /// Palette, if the pixels are indices.
    palette: Option<Vec<[u8; 3]>>,
}

impl Picture {
    fn open(path: &Path) -> Result<Self, ImageError> {
        let mut file = File::open(path).map_err(|error| ImageError::new(path, error))?;
        if is_run_length_encoded(&mut file).map_err(|error| ImageError::new(path, error))? {
            return Err(ImageError::new(path, "has unsupported run-length encoding; save it without compression"));
        }
        let mut decoder = BmpDecoder::new(BufReader::new(file)).map_err(|error| damaged(path, &error))?;
        let palette = decoder.get_palette().map(<[_]>::to_vec);
        decoder.set_indexed_color(palette.is_some());
        Ok(Self { decoder, palette })
    }

    /// Whether all palette entries are gray.
    fn is_gray(&self) -> bool {
        self.palette.as_ref().is_some_and(|palette| palette.iter().all(|[r, g, b]| r == g && g == b))
    }

    /// `(y, x)`.
    fn extents(&self) -> [usize; 2] {
        let (width, height) = self.decoder.dimensions();
        [height as usize, width as usize]
    }

    /// Samples per pixel in the file: 1 for an index, 3 or 4 for a color.
    fn samples(&self) -> usize {
        if self.palette.is_some() { 1 } else { usize::from(self.decoder.color_type().channel_count()) }
    }

    fn channels(&self) -> usize {
        if self.palette.is_some() && !self.is_gray() { 3 } else { self.samples() }
    }

    /// Indices or colors, `(y, x, sample)`.
    fn read(self, path: &Path) -> Result<Vec<u8>, ImageError> {
        let [height, width] = self.extents();
        let claimed = (height as u64).saturating_mul(width as u64).saturating_mul(self.samples() as u64);
        check_declared_size(path, claimed)?;
        let mut bytes = vec![0; claimed as usize];
        self.decoder.read_image(&mut bytes).map_err(|error| damaged(path, &error))?;
        Ok(bytes)
    }
}

/// Whether the pixels are run-length encoded (`BI_RLE8`, `BI_RLE4`). The decoder panics if a run names a color beyond
/// the palette.
fn is_run_length_encoded(file: &mut File) -> io::Result<bool> {
    const RUNS: [u32; 2] = [1, 2];
    // File header, then the image header up to its compression field. An image header of 12 bytes (the old format) has
    // no such field.
    let mut start = [0; 34];
    let is_short = file.read_exact(&mut start).is_err();
    file.rewind()?;
    let field = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    Ok(!is_short && field(14) > 12 && RUNS.contains(&field(30)))
}

fn damaged(path: &Path, error: &image::ImageError) -> ImageError {
    ImageError::new(path, format!("is not a valid BMP file: {error}"))
}

impl ImageReader for Bmp {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        let picture = Picture::open(path)?;
        let [height, width] = picture.extents();
        Ok(ImageHeader {
            shape: [picture.channels(), 1, height, width],
            scalar_type: ScalarType::U8,
            geometry: geometry(),
        })
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        let picture = Picture::open(path)?;
        let ([height, width], channels) = (picture.extents(), picture.channels());
        let palette = picture.palette.clone();
        let bytes = picture.read(path)?;
        let pixels: Vec<f32> = match palette {
            None => bytes.into_iter().map(f32::from).collect(),
            Some(palette) => {
                let color = |index: &u8| palette.get(usize::from(*index)).copied().unwrap_or_default();
                bytes.iter().flat_map(|index| color(index).into_iter().take(channels)).map(f32::from).collect()
            }
        };
        volume_of(&pixels, [height, width, channels])
            .ok_or_else(|| ImageError::new(path, "has rows of different lengths"))
    }

    /// Reads labels: gray values, or the indices of a color palette.
    fn read_label_values(&self, path: &Path) -> Result<Volume, ImageError> {
        let picture = Picture::open(path)?;
        if picture.palette.is_none() || picture.is_gray() {
            return self.read_volume(path);
        }
        let [height, width] = picture.extents();
        let pixels: Vec<f32> = picture.read(path)?.into_iter().map(f32::from).collect();
        volume_of(&pixels, [height, width, 1]).ok_or_else(|| ImageError::new(path, "has rows of different lengths"))
    }
}

impl ImageWriter for Bmp {
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
        self.write_volume(path, &labels_as_volume(labels))
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        let fail = |error: &dyn std::fmt::Display| ImageError::new(path, format!("cannot be written: {error}"));
        let (channels, z, height, width) = volume.data.dim();
        let Pixels::Bits8(pixels) = Pixels::from_volume(volume).map_err(|defect| fail(&defect))? else {
            return Err(fail(&"BMP can only hold integers from 0 to 255"));
        };
        if z != 1 {
            return Err(fail(&format_args!("BMP can hold one slice, not {z}")));
        }
        let color = if channels == 1 { ColorType::L8 } else { ColorType::Rgb8 };
        let mut bytes = Vec::new();
        let encoded = BmpEncoder::new(&mut bytes).encode(&pixels, width as u32, height as u32, color);
        encoded.map_err(|error| fail(&error))?;
        fsio::write_bytes(path, &bytes).map_err(|error| fail(&error))
    }
}
