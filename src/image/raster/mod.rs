//! Raster images: PNG, TIFF and BMP, grayscale or color.
//!
//! These formats have no physical size: the in-plane spacing is 1 and, as in nnU-Net, the spacing along z is 999. A
//! TIFF file with several pages is a 3D image with its spacing in a JSON file beside it.

mod bmp;
mod png;
mod tiff;

use std::path::Path;

use ndarray::{Array4, ArrayView3, Axis};

pub use self::bmp::Bmp;
pub use self::png::Png;
use super::raw_voxels::file_len;
use super::scalar_type::components_last;
use super::volume::Plane;
use super::{Geometry, ImageError, LabelMap, Volume};
pub use tiff::Tiff;

/// Maximum expansion factor when decompressing a file.
const MAX_INFLATION: u64 = 4096;

/// Geometry of a 2D image.
fn geometry() -> Geometry {
    Geometry::from_plane(&Plane { spacing: [1.0; 2], origin: [0.0; 2], direction: [[1.0, 0.0], [0.0, 1.0]] })
}

/// Checks the size declared by the header against the size of the file, before allocating.
fn check_declared_size(path: &Path, claimed: u64) -> Result<(), ImageError> {
    let length = file_len(path)?;
    match claimed > length.saturating_mul(MAX_INFLATION) {
        true => Err(ImageError::new(path, format!("declares {claimed} bytes of pixels in a file of {length} bytes"))),
        false => Ok(()),
    }
}

/// Converts pixels `(y, x, channel)` to a volume `(channel, 1, y, x)`.
fn volume_of(pixels: &[f32], [height, width, channels]: [usize; 3]) -> Option<Volume> {
    let pixels = ArrayView3::from_shape((height, width, channels), pixels).ok()?;
    let data = Array4::from_shape_fn((channels, 1, height, width), |(c, _, y, x)| pixels[[y, x, c]]);
    Some(Volume { data, geometry: geometry() })
}

/// Grayscale or color pixels to write.
enum Pixels {
    Bits8(Vec<u8>),
    Bits16(Vec<u16>),
}

impl Pixels {
    /// Converts `(channel, z, y, x)` to `(z, y, x, channel)` integers.
    fn from_volume(Volume { data, .. }: &Volume) -> Result<Self, String> {
        let channels = data.len_of(Axis(0));
        if !matches!(channels, 1 | 3) {
            return Err(format!("cannot hold {channels} channels, only 1 (grayscale) or 3 (RGB)"));
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
