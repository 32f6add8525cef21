//! An image that is written as it comes, decompressed, and no further than a limit.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::write::MultiGzDecoder;

use super::refusal::Refusal;

/// Bytes that an image's files may take once they are decompressed.
pub struct Room {
    left: u64,
    limit: u64,
}

impl Room {
    /// All of it.
    pub fn new(limit: u64) -> Self {
        Self { left: limit, limit }
    }
}

/// An image on its way to the disk.
pub struct ImageFile {
    /// Without its ending.
    path: PathBuf,
    file_ending: String,
    to: To,
}

enum To {
    /// Nowhere yet: it takes two bytes to tell what they are.
    Begin(Vec<u8>),
    Plain(Limited),
    Gzip(Box<MultiGzDecoder<Limited>>),
}

/// A file that takes no more than so many bytes.
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
    /// To be written to `folder` under this name, as a file of the kind that the networks were trained with.
    pub fn new(folder: &Path, name: &str, file_ending: &str) -> Self {
        Self { path: folder.join(name), file_ending: file_ending.to_owned(), to: To::Begin(Vec::new()) }
    }

    /// Appends what has come.
    ///
    /// # Errors
    /// The image is larger than the room, or damaged, or the disk is full.
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

    /// Begins the file; its first bytes tell whether it is compressed.
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

    /// The whole file, which takes some of the room.
    ///
    /// # Errors
    /// As those of [`ImageFile::write`], or the image does not come to its end.
    pub fn finish(mut self, room: &mut Room) -> Result<PathBuf, Refusal> {
        let finished = match &mut self.to {
            To::Begin(_) => return Err(Refusal::unusable(format!("{} is empty", self.name()))),
            To::Plain(file) => Ok(file.left),
            // Its checksum stands at its end.
            To::Gzip(decoder) => decoder.try_finish().map(|()| decoder.get_ref().left),
        };
        room.left = finished.map_err(|error| self.describe(error, room))?;
        Ok(self.path)
    }

    fn describe(&self, error: io::Error, room: &Room) -> Refusal {
        if error.get_ref().is_some_and(|inner| inner.is::<TooLarge>()) {
            return Refusal::too_large(format!(
                "the image's files are larger than {} MiB when decompressed, which the server allows",
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

/// The disk is full, or no disk.
pub fn no_space(error: io::Error) -> Refusal {
    Refusal::internal(format!("the image cannot be stored: {error}"))
}
