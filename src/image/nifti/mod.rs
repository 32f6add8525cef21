//! NIfTI-1, NIfTI-2 and ANALYZE 7.5, compressed or not, in one file or as a header/image pair.
//!
//! Follows nibabel: the sform takes precedence over the qform, a scl_slope of 0 or NaN means no scaling, and axes
//! beyond the third become channels. As in ITK, `xyzt_units` scales lengths to mm, and a file with two axes is a 2D image. A truncated file, an invalid header or a checksum mismatch is an error, and sizes
//! are checked before any allocation.

mod affine;
mod forms;
mod header;
mod stored_forms;
mod write;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ndarray::Array4;

use self::header::{Header, MAX_LEN};
pub use self::stored_forms::NiftiForms;
use super::raw_voxels::{Encoding, RawVoxels, VoxelStream, describe_io_error, is_gzip};
use super::reader_writer::{ImageHeader, ImageReader, ImageWriter, warn_once};
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
        if let Some(remark) = &header.remark {
            warn_once(path, remark);
        }
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

/// Comparison with the crate `nifti`, an independent reader of NIfTI-1.
#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use ndarray::{Array3, Array4};
    use nifti::{Endianness, IntoNdArray, NiftiHeader, NiftiObject, ReaderOptions};

    use super::header::VoxelType;
    use super::*;
    use crate::Geometry;

    /// Files of the corpus that the other reader does not read, with the reason.
    const NOT_COMPARED: [(&str, &str); 6] = [
        ("analyze.hdr", "it needs the magic number"),
        ("complex64.nii.gz", "it panics on complex voxels"),
        ("gz_multimember.nii.gz", "it reads the first gzip member only"),
        ("nifti2.nii.gz", "it reads NIfTI-1 only"),
        ("rgb24.nii.gz", "it panics on colors"),
        ("slope_nan.nii", "it multiplies by a slope of NaN"),
    ];

    /// Compares header fields and voxels of both readers; they must be equal.
    fn compare(path: &Path) {
        let name = path.display();
        let theirs = ReaderOptions::new().read_file(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let header = Files::from_path(path).read_header().unwrap();
        compare_headers(&header, theirs.header());
        let voxels = theirs.into_volume().into_ndarray::<f64>().unwrap();
        // Theirs has x first and in Fortran order; both are the order of the file.
        let voxels = voxels.t();
        let ours = Nifti.read_volume(path).unwrap();
        assert_eq!(ours.geometry, header.geometry, "{name}");
        assert_eq!(ours.data.len(), voxels.len(), "{name}");
        assert!(ours.data.iter().zip(&voxels).all(|(ours, theirs)| *ours == *theirs as f32), "{name}");
    }

    fn compare_headers(ours: &Header, theirs: &NiftiHeader) {
        let mut extents = [1; 7];
        for (extent, dim) in extents.iter_mut().zip(theirs.dim().unwrap()) {
            *extent = usize::from(*dim);
        }
        let [x, y, z, channels @ ..] = extents;
        assert_eq!(ours.shape, [channels.iter().product(), z, y, x]);
        assert_eq!(ours.voxel, VoxelType::from_code(theirs.datatype.into()).unwrap());
        assert_eq!(ours.big_endian, theirs.endianness == Endianness::Big);
        assert_eq!(ours.offset, theirs.vox_offset as u64);
        let (slope, intercept) = ours.scaling.unwrap_or((1.0, 0.0));
        if theirs.scl_slope != 0.0 {
            assert_eq!((slope as f32, intercept as f32), (theirs.scl_slope, theirs.scl_inter));
        }
        let affine = affine::from_geometry(&ours.geometry);
        let is_near = |ours: f64, theirs: f32| (ours - f64::from(theirs)).abs() < 1e-5 * ours.abs().max(1.0);
        if theirs.sform_code > 0 {
            let rows = [theirs.srow_x, theirs.srow_y, theirs.srow_z];
            assert!(affine.iter().flatten().zip(rows.iter().flatten()).all(|(ours, theirs)| is_near(*ours, *theirs)));
        } else if theirs.qform_code > 0 {
            let origin = [theirs.quatern_x, theirs.quatern_y, theirs.quatern_z];
            assert!(affine.iter().zip(origin).all(|(row, theirs)| is_near(row[3], theirs)));
            let spacing = ours.geometry.spacing.iter().rev();
            assert!(spacing.zip(&theirs.pixdim[1..]).all(|(ours, theirs)| is_near(*ours, *theirs)));
        }
    }

    #[test]
    fn reads_the_corpus_as_the_crate_nifti_does() {
        let Some(root) = std::env::var_os("NNUNET_TEST_DATA") else { return };
        let folder = Path::new(&root).join("data/nifti_odd");
        let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
        let manifest: Vec<serde_json::Value> = serde_json::from_str(&manifest).unwrap();
        let valid = manifest.iter().filter(|entry| entry["expect"] == "ok");
        let names: Vec<&str> = valid.map(|entry| entry["file"].as_str().unwrap()).collect();
        assert!(names.len() > 30);
        for name in names {
            let path = folder.join(name);
            match NOT_COMPARED.iter().find(|(excluded, _)| *excluded == name) {
                None => compare(&path),
                Some((_, reason)) => assert!(catch_unwind(|| compare(&path)).is_err(), "{name} is read: not {reason}"),
            }
        }
    }

    #[test]
    fn writes_files_that_the_crate_nifti_reads() {
        let folder = tempfile::tempdir().unwrap();
        let (s, c) = 0.3f64.sin_cos();
        let geometry = Geometry {
            spacing: [3.0, 0.75, 0.5],
            origin: [-12.5, 40.25, 7.0],
            direction: [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, -1.0]],
            ..Geometry::default()
        };
        let image = |channels: usize, scale: f32, offset: f32| {
            let value = |(c, z, y, x): (usize, usize, usize, usize)| (c * 60 + z * 20 + y * 5 + x) as f32;
            Array4::from_shape_fn((channels, 3, 4, 5), |at| value(at) * scale + offset)
        };
        // Written as uint8, int16, uint16 and float32.
        let images = [image(1, 1.0, 0.0), image(2, 1.0, -7.0), image(1, 1000.0, 0.0), image(3, 0.25, -7.0)];
        for (number, data) in images.into_iter().enumerate() {
            for ending in ["nii", "nii.gz"] {
                let path = folder.path().join(format!("image_{number}.{ending}"));
                Nifti.write_volume(&path, &Volume { data: data.clone(), geometry: geometry.clone() }).unwrap();
                compare(&path);
            }
        }
        for largest in [3, 1000] {
            let data = Array3::from_shape_fn((2, 6, 7), |(z, y, x)| if (z + y + x) % 3 == 0 { largest } else { 1 });
            let path = folder.path().join(format!("labels_{largest}.nii.gz"));
            Nifti.write_labels(&path, &LabelMap { data, geometry: geometry.clone() }).unwrap();
            compare(&path);
        }
    }
}
