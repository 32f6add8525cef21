//! From files to headers and voxels.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ndarray::Array4;

use super::header::{Header, MAX_LEN, Number};
use crate::image::seam::ImageHeader;
use crate::image::{ImageError, Volume};

/// No deflate stream grows by more than this (RFC 1951: 258 bytes from 2 bits).
const MAX_INFLATION: u64 = 1032;
/// Bytes converted at a time.
const BLOCK: usize = 1 << 18;

/// Reads extent and geometry.
pub fn header(path: &Path) -> Result<ImageHeader, ImageError> {
    let files = Files::of(path);
    let header = files.read_header()?;
    files.check_length(&header)?;
    let [channels, z, y, x] = header.shape;
    Ok(ImageHeader { shape: [channels * header.voxel.components, z, y, x], geometry: header.geometry })
}

/// Reads everything.
pub fn volume(path: &Path) -> Result<Volume, ImageError> {
    let files = Files::of(path);
    let header = files.read_header()?;
    files.check_length(&header)?;
    let fail = |error: io::Error| ImageError::new(&files.voxels, describe(&error));
    let mut source = Source::open(&files.voxels).map_err(fail)?;
    source.skip(header.offset).map_err(fail)?;
    let numbers = read_numbers(&mut source, &header).map_err(fail)?;
    source.finish().map_err(fail)?;

    let [channels, z, y, x] = header.shape;
    let numbers = if header.voxel.components == 1 { numbers } else { components_first(&numbers, &header) };
    let shape = (channels * header.voxel.components, z, y, x);
    let data = Array4::from_shape_vec(shape, numbers).expect("as many numbers as the header says");
    Ok(Volume { data, geometry: header.geometry })
}

/// The file or files of an image.
struct Files {
    header: PathBuf,
    voxels: PathBuf,
}

impl Files {
    fn of(path: &Path) -> Self {
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
        let fail = |error: io::Error| ImageError::new(&self.header, describe(&error));
        let mut bytes = Vec::with_capacity(MAX_LEN);
        let source = Source::open(&self.header).map_err(fail)?;
        source.take(MAX_LEN as u64).read_to_end(&mut bytes).map_err(fail)?;
        Header::parse(&bytes, self.is_pair()).map_err(|defect| ImageError::new(&self.header, defect))
    }

    /// Holds the header's claim against the size of the file, before memory is asked for.
    fn check_length(&self, header: &Header) -> Result<(), ImageError> {
        let fail = |error: io::Error| ImageError::new(&self.voxels, describe(&error));
        let length = std::fs::metadata(&self.voxels).map_err(fail)?.len();
        let claimed =
            (header.numbers() as u64).saturating_mul(header.voxel.number.size() as u64).saturating_add(header.offset);
        let most = match is_gzip(&self.voxels).map_err(fail)? {
            true => length.saturating_mul(MAX_INFLATION),
            false => length,
        };
        if claimed > most {
            let defect = format!("is cut short: its header claims {claimed} bytes, there are {most} at most");
            return Err(ImageError::new(&self.voxels, defect));
        }
        Ok(())
    }
}

/// Bytes of a file, decompressed where they are compressed, whatever its name says.
enum Source {
    Plain(File),
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
}

impl Source {
    fn open(path: &Path) -> io::Result<Self> {
        let gzip = is_gzip(path)?;
        let file = File::open(path)?;
        Ok(match gzip {
            true => Self::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file)))),
            false => Self::Plain(file),
        })
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.seek(SeekFrom::Current(bytes as i64)).map(|_| ()),
            Self::Gzip(decoder) => {
                let skipped = io::copy(&mut decoder.take(bytes), &mut io::sink())?;
                if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
            }
        }
    }

    /// Reads what follows the voxels, because a compressed file's checksum stands at its end.
    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(decoder) => io::copy(decoder, &mut io::sink()).map(|_| ()),
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}

fn is_gzip(path: &Path) -> io::Result<bool> {
    let mut magic = Vec::with_capacity(2);
    File::open(path)?.take(2).read_to_end(&mut magic)?;
    Ok(magic == [0x1f, 0x8b])
}

/// Reads all numbers of an image as scaled intensities, in the order of the file.
fn read_numbers(source: &mut impl Read, header: &Header) -> io::Result<Vec<f32>> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(header.numbers()).map_err(io::Error::other)?;
    let size = header.voxel.number.size();
    let mut block = vec![0u8; BLOCK.min(header.numbers() * size)];
    let mut left = header.numbers() * size;
    while left > 0 {
        let block = &mut block[..BLOCK.min(left)];
        source.read_exact(block)?;
        left -= block.len();
        convert(block, header, &mut numbers);
    }
    Ok(numbers)
}

/// Appends a block's numbers. Scaling is done in double precision, as nibabel does.
fn convert(block: &[u8], header: &Header, numbers: &mut Vec<f32>) {
    macro_rules! of {
        ($type:ty) => {{
            const SIZE: usize = size_of::<$type>();
            let read = |bytes: &[u8]| {
                let bytes = bytes.try_into().expect("chunks of this size");
                if header.big_endian { <$type>::from_be_bytes(bytes) } else { <$type>::from_le_bytes(bytes) }
            };
            match header.scaling {
                None => numbers.extend(block.chunks_exact(SIZE).map(|bytes| read(bytes) as f64 as f32)),
                Some((slope, intercept)) => numbers
                    .extend(block.chunks_exact(SIZE).map(|bytes| (read(bytes) as f64 * slope + intercept) as f32)),
            }
        }};
    }
    match header.voxel.number {
        Number::U8 => of!(u8),
        Number::I8 => of!(i8),
        Number::U16 => of!(u16),
        Number::I16 => of!(i16),
        Number::U32 => of!(u32),
        Number::I32 => of!(i32),
        Number::U64 => of!(u64),
        Number::I64 => of!(i64),
        Number::F32 => of!(f32),
        Number::F64 => of!(f64),
    }
}

/// Colours and complex parts lie side by side in the file; here each is a channel.
fn components_first(numbers: &[f32], header: &Header) -> Vec<f32> {
    let components = header.voxel.components;
    let voxels = header.shape[1..].iter().product::<usize>();
    let channels = numbers.chunks_exact(voxels * components);
    channels
        .flat_map(|voxels| (0..components).flat_map(|c| voxels.iter().skip(c).step_by(components)))
        .copied()
        .collect()
}

/// An error as a defect of the file.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "is cut short: the file ends within its data".into(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => format!("is damaged: {error}"),
        _ => error.to_string(),
    }
}
