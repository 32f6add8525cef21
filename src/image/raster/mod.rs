//! Raster images, PNG, TIFF and BMP, grey or colour.
//!
//! They know no millimetres: spacing is 1 in the plane and, as nnU-Net has it, 999 across. A TIFF file with several pages
//! is a 3D image, whose spacing stands in a JSON file beside it.

mod bmp;
mod png;
mod spacing_file;
mod tiff;

use std::path::Path;

use ndarray::{Array4, ArrayView3, Axis};

pub use self::bmp::Bmp;
pub use self::png::Png;
pub use self::tiff::Tiff;
use super::number::components_last;
use super::stored::file_len;
use super::volume::Plane;
use super::{Geometry, ImageError, LabelMap, Volume};

/// No file grows by more than this when decompressed.
const MAX_INFLATION: u64 = 4096;

/// Of a 2D image.
fn geometry() -> Geometry {
    Geometry::of_plane(&Plane { spacing: [1.0; 2], origin: [0.0; 2], direction: [[1.0, 0.0], [0.0, 1.0]] })
}

/// Holds the header's claim against the size of the file, before memory is asked for.
fn check_claim(path: &Path, claimed: u64) -> Result<(), ImageError> {
    let length = file_len(path)?;
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
    /// Converts `(channel, z, y, x)` to `(z, y, x, channel)` integers.
    fn of(data: &Array4<f32>) -> Result<Self, String> {
        let channels = data.len_of(Axis(0));
        if !matches!(channels, 1 | 3) {
            return Err(format!("cannot hold {channels} channels, only grey or colour"));
        }
        let largest = data.iter().copied().fold(0.0, f32::max);
        if let Some(value) = data.iter().find(|value| value.fract() != 0.0 || **value < 0.0 || **value > 65535.0) {
            return Err(format!("cannot hold {value}, only integers from 0 to 65535"));
        }
        let pixels = components_last(data).into_iter();
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
