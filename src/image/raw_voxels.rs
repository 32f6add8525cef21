//! Reads the scalars of a file. The input is not trusted: the size declared by the header is checked against the file
//! size before allocating.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use flate2::bufread::ZlibDecoder;
use nnunet_core::memory;

use super::gzip::GzipMembers;
use super::inexact::InexactValues;
use super::reader_writer::warn_once;
use super::{ImageError, ScalarType};

/// Maximum expansion factor of a deflate stream (RFC 1951: 258 bytes from 2 bits).
const MAX_INFLATION: u64 = 1032;
/// Maximum number of bytes after the voxels in a compressed file.
const MAX_EXCESS: u64 = 1 << 20;
/// Bytes converted at a time.
const BLOCK: usize = 1 << 18;

/// Encoding of the voxel data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Raw,
    Gzip,
    Zlib,
    /// Decimal numbers separated by white space.
    Text,
}

/// Location and format of the voxel data in a file.
#[derive(Clone, Debug)]
pub struct RawVoxels {
    pub path: PathBuf,
    /// Byte offset of the (compressed) data.
    pub begin: u64,
    /// Bytes to skip after decompression.
    pub skip: u64,
    pub encoding: Encoding,
    pub scalar_type: ScalarType,
    pub big_endian: bool,
    pub count: usize,
    /// Slope and intercept.
    pub scaling: Option<(f64, f64)>,
}

impl RawVoxels {
    /// Checks that the file is large enough for `count` scalars.
    pub fn check(&self) -> Result<(), ImageError> {
        let packed = file_len(&self.path)?.saturating_sub(self.begin);
        let bytes = (self.count as u64).saturating_mul(self.scalar_type.size() as u64).saturating_add(self.skip);
        let (claimed, most) = match self.encoding {
            Encoding::Raw => (bytes, packed),
            Encoding::Gzip | Encoding::Zlib => (bytes, packed.saturating_mul(MAX_INFLATION)),
            // A digit and a space each, except for the last.
            Encoding::Text => ((self.count as u64).saturating_mul(2).saturating_sub(1), packed),
        };
        match claimed > most {
            true => {
                Err(self.fail(format!("is truncated: its header declares {claimed} bytes, there are at most {most}")))
            }
            false => Ok(()),
        }
    }

    /// Reads the scalars in file order.
    pub fn read(&self) -> Result<Vec<f32>, ImageError> {
        self.check()?;
        let fail = |error: io::Error| self.fail(describe_io_error(&error));
        // Every command needs a second copy, to crop or convert the image.
        memory::check_fits(memory::byte_product([self.count, 2 * size_of::<f32>()]))
            .map_err(|excess| self.fail(format!("declares {} voxels, which need {excess}", self.count)))?;
        let mut numbers = Vec::new();
        let mut inexact = InexactValues::default();
        numbers.try_reserve_exact(self.count).map_err(|error| self.fail(error))?;
        let mut stream = VoxelStream::open(&self.path, self.begin, self.encoding).map_err(fail)?;
        if self.encoding == Encoding::Text {
            let mut text = String::new();
            stream.read_to_string(&mut text).map_err(fail)?;
            self.parse(&text, &mut numbers, &mut inexact)?;
            self.warn_of(&inexact);
            return Ok(numbers);
        }
        stream.skip(self.skip).map_err(fail)?;
        let mut left = self.count * self.scalar_type.size();
        let mut block = vec![0u8; BLOCK.min(left)];
        while left > 0 {
            let block = &mut block[..BLOCK.min(left)];
            stream.read_exact(block).map_err(fail)?;
            left -= block.len();
            self.scalar_type.decode(block, self.big_endian, self.scaling, &mut numbers, &mut inexact);
        }
        stream.finish().map_err(fail)?;
        self.warn_of(&inexact);
        Ok(numbers)
    }

    fn warn_of(&self, inexact: &InexactValues) {
        if let Some(remark) = inexact.remark() {
            warn_once(&self.path, &remark);
        }
    }

    fn parse(&self, text: &str, numbers: &mut Vec<f32>, inexact: &mut InexactValues) -> Result<(), ImageError> {
        let (slope, intercept) = self.scaling.unwrap_or((1.0, 0.0));
        for word in text.split_ascii_whitespace().take(self.count) {
            let number: f64 = word.parse().map_err(|_| self.fail(format!("{word:?} in its voxels is not a number")))?;
            let value = number * slope + intercept;
            inexact.look_at(value);
            numbers.push(value as f32);
        }
        match numbers.len() < self.count {
            true => Err(self.fail(format!("is truncated: {} of {} numbers", numbers.len(), self.count))),
            false => Ok(()),
        }
    }

    fn fail(&self, defect: impl std::fmt::Display) -> ImageError {
        ImageError::new(&self.path, defect)
    }
}

/// Decompressed bytes of a file.
pub enum VoxelStream {
    Plain(BufReader<File>),
    Gzip(Box<GzipMembers<BufReader<File>>>),
    Zlib(Box<ZlibDecoder<BufReader<File>>>),
}

impl VoxelStream {
    /// Opens the file at byte `begin`.
    pub fn open(path: &Path, begin: u64, encoding: Encoding) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(begin))?;
        let file = BufReader::with_capacity(1 << 16, file);
        Ok(match encoding {
            Encoding::Raw | Encoding::Text => Self::Plain(file),
            Encoding::Gzip => Self::Gzip(Box::new(GzipMembers::new(file))),
            Encoding::Zlib => Self::Zlib(Box::new(ZlibDecoder::new(file))),
        })
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if let Self::Plain(file) = self {
            return file.seek_relative(i64::try_from(bytes).map_err(io::Error::other)?);
        }
        match io::copy(&mut self.take(bytes), &mut io::sink())? < bytes {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    /// Reads past the voxels to the end of the stream, where a compressed file has its checksum.
    fn finish(&mut self) -> io::Result<()> {
        if matches!(self, Self::Plain(_)) {
            return Ok(());
        }
        match io::copy(&mut self.take(MAX_EXCESS + 1), &mut io::sink())? > MAX_EXCESS {
            true => Err(io::Error::new(io::ErrorKind::InvalidData, "decompresses to more than its header declares")),
            false => Ok(()),
        }
    }
}

impl Read for VoxelStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zlib(decoder) => decoder.read(buffer),
        }
    }
}

/// Whether the bytes from `begin` on are gzip-compressed, regardless of the file name.
pub fn is_gzip(path: &Path, begin: u64) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(begin))?;
    let mut magic = Vec::with_capacity(2);
    file.take(2).read_to_end(&mut magic)?;
    Ok(magic == [0x1f, 0x8b])
}

pub fn file_len(path: &Path) -> Result<u64, ImageError> {
    let metadata = std::fs::metadata(path).map_err(|error| ImageError::new(path, error))?;
    // Opening a pipe would block.
    if metadata.is_file() { Ok(metadata.len()) } else { Err(ImageError::new(path, "is not a file")) }
}

/// Path of the data file named in `field` of the header; it must be in the header's folder or below.
pub fn resolve_data_file(header: &Path, field: &str, name: &str) -> Result<PathBuf, ImageError> {
    let parts = || Path::new(name).components();
    let inside = parts().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || name.contains('\0') || !parts().any(|part| matches!(part, Component::Normal(_))) {
        let defect = format!("{field} is {name:?}; the data file must be in the folder of the header");
        return Err(ImageError::new(header, defect));
    }
    Ok(header.with_file_name("").join(name))
}

/// Describes an I/O error as a defect of the file.
pub fn describe_io_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "is truncated: the file ends within its data".into(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => format!("is damaged: {error}"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn rejects_a_data_file_outside_of_the_folder() {
        let header = Path::new("/data/case/a.mhd");
        assert_eq!(resolve_data_file(header, "ElementDataFile", "a.raw").unwrap(), Path::new("/data/case/a.raw"));
        assert_eq!(
            resolve_data_file(header, "ElementDataFile", "./raw/a.raw").unwrap(),
            Path::new("/data/case/./raw/a.raw")
        );
        for name in ["../a.raw", "/etc/passwd", "raw/../../a", "", "."] {
            let error = resolve_data_file(header, "ElementDataFile", name).unwrap_err().to_string();
            assert!(error.contains("a.mhd: ElementDataFile is"), "{error}");
        }
    }

    #[test]
    fn rejects_sizes_that_differ_from_the_header() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut encoder = GzEncoder::new(file.as_file_mut(), Compression::fast());
        encoder.write_all(&vec![0; 8 << 20]).unwrap();
        encoder.finish().unwrap();
        let raw_voxels = |count| RawVoxels {
            path: file.path().to_owned(),
            begin: 0,
            skip: 0,
            encoding: Encoding::Gzip,
            scalar_type: ScalarType::U8,
            big_endian: false,
            count,
            scaling: None,
        };
        assert_eq!(raw_voxels(8 << 20).read().unwrap().len(), 8 << 20);
        assert!(raw_voxels(100).read().unwrap_err().to_string().contains("more than its header declares"));
        assert!(raw_voxels(9 << 20).read().unwrap_err().to_string().contains("truncated"));
        assert!(raw_voxels(usize::MAX).read().unwrap_err().to_string().contains("header declares"));
    }
}
