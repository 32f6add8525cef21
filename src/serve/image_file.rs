//! Streams an image to disk, decompressed and up to a size limit.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::write::MultiGzDecoder;

use super::refusal::Refusal;

/// Remaining bytes for the decompressed files of an image.
pub struct Room {
    left: u64,
    limit: u64,
}

impl Room {
    /// Nothing used yet.
    pub fn new(limit: u64) -> Self {
        Self { left: limit, limit }
    }
}

/// An image file being written.
pub struct ImageFile {
    /// Without the file ending.
    path: PathBuf,
    file_ending: String,
    to: To,
}

enum To {
    /// Not opened yet: two bytes are needed to detect compression.
    Begin(Vec<u8>),
    Plain(Limited),
    Gzip(Box<MultiGzDecoder<Limited>>),
}

/// A file with a maximum number of bytes.
struct Limited {
    file: File,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("too large")]
struct TooLarge;

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| io::Error::other(TooLarge))?;
        self.file.write_all(bytes)?;
        self.left = left;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl ImageFile {
    /// An image to be written to `folder` under this name, with the file ending the networks were trained with.
    pub fn new(folder: &Path, name: &str, file_ending: &str) -> Self {
        Self { path: folder.join(name), file_ending: file_ending.to_owned(), to: To::Begin(Vec::new()) }
    }

    /// Appends received bytes.
    ///
    /// # Errors
    /// Returns an error if the image exceeds the limit, is damaged, or cannot be written.
    pub fn write(&mut self, chunk: &[u8], room: &mut Room) -> Result<(), Refusal> {
        let written = match &mut self.to {
            To::Plain(file) => file.write_all(chunk),
            To::Gzip(decoder) => decoder.write_all(chunk),
            To::Begin(begin) => {
                begin.extend_from_slice(chunk);
                if begin.len() < 2 {
                    return Ok(());
                }
                let begin = std::mem::take(begin);
                self.open(&begin, room)?;
                return self.write(&begin, room);
            }
        };
        written.map_err(|error| self.describe(error, room))
    }

    /// Opens the file; its first bytes show whether it is compressed.
    fn open(&mut self, begin: &[u8], room: &Room) -> Result<(), Refusal> {
        let is_nifti = self.file_ending.ends_with(".nii") || self.file_ending.ends_with(".nii.gz");
        let ending = if is_nifti { ".nii" } else { &self.file_ending };
        self.path.as_mut_os_string().push(ending);
        let file = Limited { file: File::create(&self.path).map_err(no_space)?, left: room.left };
        self.to = match is_nifti && begin.starts_with(&[0x1f, 0x8b]) {
            true => To::Gzip(Box::new(MultiGzDecoder::new(file))),
            false => To::Plain(file),
        };
        Ok(())
    }

    /// Completes the file and deducts its size from the room.
    ///
    /// # Errors
    /// Returns an error in the cases of [`ImageFile::write`], and if the compressed data is truncated.
    pub fn finish(mut self, room: &mut Room) -> Result<PathBuf, Refusal> {
        let finished = match &mut self.to {
            To::Begin(_) => return Err(Refusal::unusable(format!("{} is empty", self.name()))),
            To::Plain(file) => Ok(file.left),
            // The checksum is at the end.
            To::Gzip(decoder) => decoder.try_finish().map(|()| decoder.get_ref().left),
        };
        room.left = finished.map_err(|error| self.describe(error, room))?;
        Ok(self.path)
    }

    fn describe(&self, error: io::Error, room: &Room) -> Refusal {
        if error.get_ref().is_some_and(|inner| inner.is::<TooLarge>()) {
            return Refusal::too_large(format!(
                "the decompressed image files are larger than {} MiB, the limit of this server",
                room.limit >> 20
            ));
        }
        match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Refusal::unusable(format!("{} is damaged: {error}", self.name()))
            }
            _ => no_space(error),
        }
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Refusal if writing to the disk fails.
pub fn no_space(error: io::Error) -> Refusal {
    Refusal::internal(format!("the image cannot be stored: {error}"))
}
