//! Receives images: streams a request body into image files, decompressed and up to a size limit, and checks their
//! headers before memory is allocated.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{BodyDataStream, Bytes};
use axum::http::StatusCode;
use futures_util::{Stream, StreamExt};
use multer::Multipart;
use nnunet_data::dataset::{CaseFiles, DatasetError, DatasetJson};
use nnunet_data::preprocess::Preprocessor;
use nnunet_image::{GzipWriter, read_header};
use nnunet_infer::InferError;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::api_error::ApiError;
use super::options::ServeLimits;

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
    Gzip(Box<GzipWriter<Limited>>),
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
    pub fn write(&mut self, chunk: &[u8], room: &mut Room) -> Result<(), ApiError> {
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
    fn open(&mut self, begin: &[u8], room: &Room) -> Result<(), ApiError> {
        let is_nifti = self.file_ending.ends_with(".nii") || self.file_ending.ends_with(".nii.gz");
        let ending = if is_nifti { ".nii" } else { &self.file_ending };
        self.path.as_mut_os_string().push(ending);
        let file = Limited { file: File::create(&self.path).map_err(no_space)?, left: room.left };
        self.to = match is_nifti && begin.starts_with(&[0x1f, 0x8b]) {
            true => To::Gzip(Box::new(GzipWriter::new(file))),
            false => To::Plain(file),
        };
        Ok(())
    }

    /// Completes the file and deducts its size from the room.
    ///
    /// # Errors
    /// Returns an error in the cases of [`ImageFile::write`], and if the compressed data is truncated.
    pub fn finish(mut self, room: &mut Room) -> Result<PathBuf, ApiError> {
        let finished = match std::mem::replace(&mut self.to, To::Begin(Vec::new())) {
            To::Begin(_) => return Err(ApiError::unusable(format!("{} is empty", self.name()))),
            To::Plain(file) => Ok(file.left),
            // The checksum is at the end.
            To::Gzip(decoder) => decoder.finish().map(|file| file.left),
        };
        room.left = finished.map_err(|error| self.describe(error, room))?;
        Ok(self.path)
    }

    fn describe(&self, error: io::Error, room: &Room) -> ApiError {
        if error.get_ref().is_some_and(|inner| inner.is::<TooLarge>()) {
            return ApiError::too_large(format!(
                "the decompressed image files are larger than {} MiB, the limit of this server",
                room.limit >> 20
            ));
        }
        match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                ApiError::unusable(format!("{} is damaged: {error}", self.name()))
            }
            _ => no_space(error),
        }
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Error response if writing to the disk fails.
pub fn no_space(error: io::Error) -> ApiError {
    ApiError::internal(format!("the image cannot be stored: {error}"))
}

/// Checks that an image has the channels of the networks, and fits into `image_bytes` both as stored and after
/// resampling. A file with few voxels and a spacing of meters may exceed any memory after resampling to millimeters.
///
/// # Errors
/// Returns an [unusable](ApiError::unusable) or [too large](ApiError::too_large) error.
pub fn check_headers(
    files: &CaseFiles,
    channels: usize,
    image_bytes: u64,
    preprocessors: &[Preprocessor],
) -> Result<(), ApiError> {
    let folder = files.images[0].parent().unwrap_or(&files.images[0]);
    let unreadable = |error| ApiError::from_infer_error(&InferError::Dataset(DatasetError::Image(error)), folder);
    let headers = files.images.iter().map(|image| read_header(image).map_err(unreadable));
    let headers = headers.collect::<Result<Vec<_>, _>>()?;
    let found: usize = headers.iter().map(|header| header.shape[0]).sum();
    if found != channels {
        return Err(ApiError::unusable(format!("the image has {found} channels, the networks take {channels}")));
    }
    let bytes = |[z, y, x]: [usize; 3]| {
        [z, y, x, channels, 4].iter().fold(1u64, |product, factor| product.saturating_mul(*factor as u64))
    };
    for header in &headers {
        let [_, z, y, x] = header.shape;
        let resampled =
            preprocessors.iter().map(|stage| (stage.shape_after_resampling(header), " at the networks' spacing"));
        for (shape, where_) in [([z, y, x], "")].into_iter().chain(resampled) {
            if bytes(shape) > image_bytes {
                return Err(ApiError::too_large(format!(
                    "an image of {shape:?} voxels{where_} takes {} MiB, over the limit of {} MiB",
                    bytes(shape) >> 20,
                    image_bytes >> 20
                )));
            }
        }
    }
    Ok(())
}

/// Media types accepted for a plain image body. Clients that do not specify a type send one of these; the last is what
/// curl sends with `--data-binary`.
const IMAGE_TYPES: [&str; 6] = [
    "application/octet-stream",
    "application/gzip",
    "application/x-gzip",
    "application/x-nifti",
    "application/nifti",
    "application/x-www-form-urlencoded",
];
/// Maximum bytes of a multipart body between image data.
const MOST_BETWEEN_PARTS: usize = 64 << 10;

/// A received image as files. The folder is deleted when this is dropped.
pub struct Upload {
    pub folder: TempDir,
    pub files: CaseFiles,
}

impl Upload {
    /// Receives an image for networks trained on `dataset` into a folder below `spool`. The body is the image itself,
    /// or `multipart/form-data` with one part per channel, named by its number or name in `dataset.json`.
    ///
    /// NIfTI is decompressed while it is received, so that `limits.image_bytes` bounds the decompressed size.
    ///
    /// # Errors
    /// Returns an error if the media type is not supported, the body is truncated, or a limit is exceeded.
    pub async fn receive(
        body: &mut BodyDataStream,
        content_type: Option<&str>,
        dataset: &DatasetJson,
        limits: &ServeLimits,
        spool: &Path,
    ) -> Result<Self, ApiError> {
        let folder = tempfile::Builder::new().prefix("nnunet-serve-").tempdir_in(spool).map_err(no_space)?;
        let body = Bounded {
            body,
            left: limits.upload_bytes,
            limit: limits.upload_bytes,
            passed: Arc::default(),
            rest: false,
        };
        let room = Room::new(limits.image_bytes);
        let essence = content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_lowercase());
        let images = match essence.as_deref() {
            Some("multipart/form-data") => {
                let boundary = multer::parse_boundary(content_type.unwrap_or_default());
                let boundary = boundary.map_err(|error| ApiError::bad_request(format!("multipart: {error}")))?;
                receive_parts(body, boundary, dataset, room, folder.path()).await?
            }
            Some(other) if !IMAGE_TYPES.contains(&other) => {
                let line = format!("{other} is not supported; send {} or multipart/form-data", IMAGE_TYPES[0]);
                return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, line));
            }
            _ => vec![receive_image(body, &dataset.file_ending, room, folder.path()).await?],
        };
        Ok(Self { folder, files: CaseFiles { id: "image".into(), images, label: None } })
    }
}

async fn receive_image(
    mut body: Bounded<'_>,
    file_ending: &str,
    mut room: Room,
    folder: &Path,
) -> Result<PathBuf, ApiError> {
    let mut image = ImageFile::new(folder, "image", file_ending);
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        body.passed.store(0, Ordering::Relaxed);
        block_in_place(|| image.write(&chunk, &mut room))?;
    }
    block_in_place(|| image.finish(&mut room))
}

async fn receive_parts(
    body: Bounded<'_>,
    boundary: String,
    dataset: &DatasetJson,
    mut room: Room,
    folder: &Path,
) -> Result<Vec<PathBuf>, ApiError> {
    let mut images = vec![None; dataset.num_channels()];
    let passed = body.passed.clone();
    let mut parts = Multipart::new(body, boundary);
    while let Some(mut part) = parts.next_field().await.map_err(broken)? {
        let channel = channel_of(part.name(), dataset)?;
        let mut image = ImageFile::new(folder, &format!("channel {channel}"), &dataset.file_ending);
        while let Some(chunk) = part.chunk().await.map_err(broken)? {
            passed.store(0, Ordering::Relaxed);
            block_in_place(|| image.write(&chunk, &mut room))?;
        }
        let image = block_in_place(|| image.finish(&mut room))?;
        if images[channel].replace(image).is_some() {
            return Err(ApiError::bad_request(format!("there are two parts for channel {channel}")));
        }
    }
    // A single part may hold all channels, as a single file may.
    if let [Some(all), rest @ ..] = images.as_slice()
        && rest.iter().all(Option::is_none)
    {
        return Ok(vec![all.clone()]);
    }
    let with_number = |(channel, image): (usize, Option<PathBuf>)| {
        image.ok_or_else(|| ApiError::bad_request(format!("there is no part for channel {channel}")))
    };
    images.into_iter().enumerate().map(with_number).collect()
}

/// Index of the channel with this number or name.
fn channel_of(name: Option<&str>, dataset: &DatasetJson) -> Result<usize, ApiError> {
    let name = name.unwrap_or_default();
    let found = dataset.channel_names.iter().enumerate().find(|(_, (key, channel))| *key == name || *channel == name);
    found.map(|(number, _)| number).ok_or_else(|| {
        let known: Vec<_> = dataset.channel_names.iter().map(|(key, channel)| format!("{key} ({channel})")).collect();
        ApiError::bad_request(format!("a part is named {name:?}; the channels are {}", known.join(", ")))
    })
}

/// Converts a multipart error; errors of [`Bounded`] are passed through.
fn broken(error: multer::Error) -> ApiError {
    match error {
        multer::Error::StreamReadFailed(error) => match error.downcast::<ApiError>() {
            Ok(error) => *error,
            Err(error) => ApiError::bad_request(format!("multipart: {error}")),
        },
        error => ApiError::bad_request(format!("multipart: {error}")),
    }
}

/// A request body with a maximum size that yields one chunk at a time. Multer reads as long as data is available and
/// would otherwise buffer data that arrives faster than it is written.
struct Bounded<'b> {
    body: &'b mut BodyDataStream,
    left: u64,
    limit: u64,
    /// Bytes since the last image data.
    passed: Arc<AtomicUsize>,
    /// Whether to return `Pending` before the next chunk.
    rest: bool,
}

impl Stream for Bounded<'_> {
    type Item = Result<Bytes, ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rest) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let chunk = match ready!(self.body.poll_next_unpin(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => {
                return Poll::Ready(Some(Err(ApiError::bad_request(format!("the body ends early: {error}")))));
            }
            Some(Ok(chunk)) => chunk,
        };
        self.rest = true;
        let between_parts = self.passed.fetch_add(chunk.len(), Ordering::Relaxed);
        Poll::Ready(Some(match self.left.checked_sub(chunk.len() as u64) {
            None => Err(too_large_upload(self.limit)),
            Some(_) if between_parts > MOST_BETWEEN_PARTS + chunk.len() => {
                Err(ApiError::bad_request("multipart: the header of a part does not end"))
            }
            Some(left) => {
                self.left = left;
                Ok(chunk)
            }
        }))
    }
}

/// Error response for a body that is larger than the limit, by its Content-Length or as received.
pub fn too_large_upload(limit: u64) -> ApiError {
    ApiError::too_large(format!("the body is larger than {} MiB, the limit of this server", limit >> 20))
}
