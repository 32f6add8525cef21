//! NIfTI-1, NIfTI-2 and ANALYZE 7.5, compressed or not, in one file or as a header/image pair.
//!
//! Follows nibabel: the sform takes precedence over the qform, a scl_slope of 0 or NaN means no scaling, and axes
//! beyond the third become channels. A truncated file, an invalid header or a checksum mismatch is an error, and sizes
//! are checked before any allocation.

mod affine;
mod header;
mod write;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ndarray::Array4;

use self::header::{Header, MAX_LEN};
use super::raw_voxels::{Encoding, RawVoxels, VoxelStream, describe_io_error, is_gzip};
use super::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use super::scalar_type::components_first;
use super::{ImageError, LabelMap, Volume};

/// Reader and writer of NIfTI files.
pub struct Nifti;

impl ImageReader for Nifti {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        let files = Files::from_path(path);
        let header = files.read_header()?;
        files.raw_voxels(&header)?.check()?;
        let [channels, z, y, x] = header.shape;
        let shape = [channels * header.voxel.components, z, y, x];
        Ok(ImageHeader { shape, scalar_type: header.voxel.scalar_type, geometry: header.geometry })
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        let files = Files::from_path(path);
        let header = files.read_header()?;
        let numbers = files.raw_voxels(&header)?.read()?;
        let [channels, z, y, x] = header.shape;
        let components = header.voxel.components;
        let numbers = components_first(numbers, components, z * y * x);
        let data = Array4::from_shape_vec((channels * components, z, y, x), numbers);
        Ok(Volume { data: data.expect("length matches the header"), geometry: header.geometry })
    }
}

impl ImageWriter for Nifti {
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
        write::labels(path, labels)
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        write::volume(path, volume)
    }
}

/// The file or the two files of an image.
struct Files {
    header: PathBuf,
    voxels: PathBuf,
}

impl Files {
    fn from_path(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (stem, gz) = match name.strip_suffix(".gz") {
            Some(stem) => (stem, ".gz"),
            None => (name.as_str(), ""),
        };
        match stem.strip_suffix(".hdr").or_else(|| stem.strip_suffix(".img")) {
            Some(stem) => Self {
                header: path.with_file_name(format!("{stem}.hdr{gz}")),
                voxels: path.with_file_name(format!("{stem}.img{gz}")),
            },
            None => Self { header: path.to_owned(), voxels: path.to_owned() },
        }
    }

    fn is_pair(&self) -> bool {
        self.header != self.voxels
    }

    fn read_header(&self) -> Result<Header, ImageError> {
        let fail = |error: io::Error| ImageError::new(&self.header, describe_io_error(&error));
        let mut bytes = Vec::with_capacity(MAX_LEN);
        let stream = VoxelStream::open(&self.header, 0, encoding(&self.header)?).map_err(fail)?;
        stream.take(MAX_LEN as u64).read_to_end(&mut bytes).map_err(fail)?;
        Header::parse(&bytes, self.is_pair()).map_err(|defect| ImageError::new(&self.header, defect))
    }

    /// Location and encoding of the voxels. A compressed file is compressed as a whole.
    fn raw_voxels(&self, header: &Header) -> Result<RawVoxels, ImageError> {
        Ok(RawVoxels {
            path: self.voxels.clone(),
            begin: 0,
            skip: header.offset,
            encoding: encoding(&self.voxels)?,
            scalar_type: header.voxel.scalar_type,
            big_endian: header.big_endian,
            count: header.numbers(),
            scaling: header.scaling,
        })
    }
}

fn encoding(path: &Path) -> Result<Encoding, ImageError> {
    let gzip = is_gzip(path, 0).map_err(|error| ImageError::new(path, describe_io_error(&error)))?;
    Ok(if gzip { Encoding::Gzip } else { Encoding::Raw })
}
