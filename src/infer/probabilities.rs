//! Class probabilities in nnU-Net's file format: `CASE.npz` with `probabilities`, `(class, z, y, x)` in f32, in the raw
//! image's voxel grid.
//!
//! They are larger than a label map by a factor of the number of classes, so they are written and read class by class.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use ndarray::{Array4, ArrayView3};
use zip::read::ZipFile;
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

use nnunet_core::fsio;
use nnunet_data::store::npy;

/// Name of the array within the archive.
const ENTRY: &str = "probabilities.npy";
/// Deflate level: higher levels take several times as long and save a tenth.
const COMPRESSION: i64 = 1;
/// Elements converted at a time.
const CHUNK: usize = 1 << 14;

/// Error for a file of probabilities that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {defect}", path.display())]
pub struct ProbabilityError {
    /// Path of the file.
    pub path: PathBuf,
    /// Problem with the file.
    pub defect: String,
}

impl ProbabilityError {
    /// Creates an error for the file at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}

/// Writes `probabilities`, `(class, z, y, x)`.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn save_probabilities(path: &Path, probabilities: &Array4<f32>) -> Result<(), ProbabilityError> {
    stream_probabilities(path, probabilities.dim().into(), |write| {
        probabilities
            .outer_iter()
            .try_for_each(|class| write(class).map_err(|error| ProbabilityError::new(path, error)))
    })
}

/// Writes probabilities of `shape`, `(class, z, y, x)`, that `make` passes on class by class.
///
/// # Errors
/// Returns an error if the file cannot be written, or the error of `make`.
pub fn stream_probabilities<E: From<ProbabilityError>>(
    path: &Path,
    shape: [usize; 4],
    make: impl FnOnce(&mut dyn FnMut(ArrayView3<f32>) -> io::Result<()>) -> Result<(), E>,
) -> Result<(), E> {
    let mut failed = None;
    let written = fsio::write_unsynced(path, |file| {
        let mut archive = ZipWriter::new(file);
        let options = SimpleFileOptions::default().compression_level(Some(COMPRESSION)).large_file(true);
        archive.start_file(ENTRY, options)?;
        archive.write_all(&npy::encode_header::<f32>(&shape))?;
        let mut bytes = Vec::new();
        let made = make(&mut |class| {
            bytes.clear();
            for value in class {
                bytes.extend(value.to_ne_bytes());
                if bytes.len() >= CHUNK * size_of::<f32>() {
                    archive.write_all(&bytes)?;
                    bytes.clear();
                }
            }
            archive.write_all(&bytes)
        });
        if let Err(error) = made {
            failed = Some(error);
            return Err(io::Error::other("aborted"));
        }
        archive.finish()?;
        Ok(())
    });
    match (failed, written) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(ProbabilityError::new(path, format_args!("cannot be written: {error}")).into()),
        (None, Ok(())) => Ok(()),
    }
}

/// Open file of probabilities.
pub struct ProbabilityArchive {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

impl ProbabilityArchive {
    /// Opens a file written by this program or by nnU-Net.
    ///
    /// # Errors
    /// Returns an error if it cannot be read or is not a NumPy archive.
    pub fn open(path: &Path) -> Result<Self, ProbabilityError> {
        let file = File::open(path).map_err(|error| ProbabilityError::new(path, error))?;
        let archive = ZipArchive::new(BufReader::with_capacity(1 << 18, file));
        let archive =
            archive.map_err(|error| ProbabilityError::new(path, format_args!("is not a NumPy archive: {error}")))?;
        Ok(Self { path: path.to_owned(), archive })
    }

    /// Starts reading the classes.
    ///
    /// # Errors
    /// Returns an error if there is no four-dimensional f32 array `probabilities`, or if it is truncated.
    pub fn maps(&mut self) -> Result<ProbabilityMaps<'_>, ProbabilityError> {
        let path = &self.path;
        let entry = self.archive.by_name(ENTRY);
        let mut entry = entry.map_err(|error| ProbabilityError::new(path, format_args!("{ENTRY}: {error}")))?;
        let fail = |defect: String| ProbabilityError::new(path, format_args!("{ENTRY} {defect}"));
        let (header, shape) = npy::read_header::<f32>(&mut entry).map_err(fail)?;
        let values = shape.iter().try_fold(size_of::<f32>(), |product, extent| product.checked_mul(*extent));
        let expected = values.and_then(|bytes| bytes.checked_add(header));
        if expected.map(|bytes| bytes as u64) != Some(entry.size()) {
            return Err(fail(format!("has {} bytes, which does not match its shape {shape:?}", entry.size())));
        }
        Ok(ProbabilityMaps { path, entry, shape, read: 0 })
    }
}

/// Reader of the classes of a file of probabilities, one after the other.
pub struct ProbabilityMaps<'a> {
    path: &'a Path,
    entry: ZipFile<'a, BufReader<File>>,
    shape: [usize; 4],
    /// Number of classes read so far.
    read: usize,
}

impl ProbabilityMaps<'_> {
    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        self.path
    }

    /// Returns the shape `(class, z, y, x)`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Calls `visit` with chunks of the next class in voxel order, each with the index of its first voxel.
    ///
    /// # Errors
    /// Returns an error if the file is damaged, or if all classes have been read.
    pub fn next_class(&mut self, mut visit: impl FnMut(usize, &[f32])) -> Result<(), ProbabilityError> {
        let Self { path, entry, shape, read } = self;
        let fail = |defect: &dyn std::fmt::Display| ProbabilityError::new(path, format_args!("{ENTRY}: {defect}"));
        if *read == shape[0] {
            return Err(fail(&"has no more classes"));
        }
        let voxels: usize = shape[1..].iter().product();
        let mut values = vec![0f32; CHUNK.min(voxels)];
        let mut done = 0;
        while done < voxels {
            let part = &mut values[..CHUNK.min(voxels - done)];
            entry.read_exact(bytemuck::cast_slice_mut(part)).map_err(|error| fail(&error))?;
            visit(done, part);
            done += part.len();
        }
        *read += 1;
        // The checksum is verified at the end of the entry.
        if *read == shape[0] {
            entry.read(&mut [0]).map_err(|error| fail(&error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<Array4<f32>, ProbabilityError> {
        let mut archive = ProbabilityArchive::open(path)?;
        let mut maps = archive.maps()?;
        let shape = maps.shape();
        let mut values = Vec::new();
        for _ in 0..shape[0] {
            maps.next_class(|first, part| {
                assert_eq!(first, values.len() % (shape[1] * shape[2] * shape[3]));
                values.extend_from_slice(part);
            })?;
        }
        assert!(maps.next_class(|_, _| {}).unwrap_err().to_string().contains("no more classes"));
        Ok(Array4::from_shape_vec(shape, values).unwrap())
    }

    #[test]
    fn probabilities_survive_the_disk_and_other_programs_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case.npz");
        let probabilities =
            Array4::from_shape_fn((3, 20, 40, 30), |(c, z, y, x)| (c * 7 + z + y * 2 + x * 3) as f32 / 200.0);
        save_probabilities(&path, &probabilities).unwrap();
        assert_eq!(read(&path).unwrap(), probabilities);
        let mut npz = ndarray_npy::NpzReader::new(File::open(&path).unwrap()).unwrap();
        let theirs: Array4<f32> = npz.by_name("probabilities").unwrap();
        assert_eq!(theirs, probabilities);
    }

    #[test]
    fn a_file_that_is_something_else_is_named_with_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case.npz");
        let defect = || read(&path).unwrap_err().to_string();
        assert!(defect().contains("case.npz: No such file"), "{}", defect());
        std::fs::write(&path, b"PK, but no archive").unwrap();
        assert!(defect().contains("is not a NumPy archive"), "{}", defect());
        let write = |name: &str, contents: &[u8]| {
            let mut archive = ZipWriter::new(File::create(&path).unwrap());
            archive.start_file(name, SimpleFileOptions::default()).unwrap();
            archive.write_all(contents).unwrap();
            archive.finish().unwrap();
        };
        write("softmax.npy", b"");
        assert!(defect().contains("probabilities.npy: "), "{}", defect());
        write(ENTRY, &npy::encode_header::<i16>(&[1, 1, 1, 1]));
        assert!(defect().contains("<i2"), "{}", defect());
        write(ENTRY, &npy::encode_header::<f32>(&[2, 1 << 20, 1 << 20, 1 << 20]));
        assert!(defect().contains("does not match its shape"), "{}", defect());
        write(ENTRY, b"\x93NUMPY\x01\x00\x00\x00{}");
        assert!(defect().contains("descr"), "{}", defect());

        save_probabilities(&path, &Array4::from_elem((1, 9, 9, 9), 0.25)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 3;
        bytes[middle] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        assert!(defect().contains("probabilities.npy"), "{}", defect());
    }
}
