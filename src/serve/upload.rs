//! Receives the body of a request into image files in a folder of their own.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{BodyDataStream, Bytes};
use axum::http::StatusCode;
use futures_util::{Stream, StreamExt};
use multer::Multipart;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::image_file::{ImageFile, Room, no_space};
use super::options::ServeLimits;
use super::refusal::Refusal;
use nnunet_data::dataset::{CaseFiles, DatasetJson};

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
    ) -> Result<Self, Refusal> {
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
                let boundary = boundary.map_err(|error| Refusal::bad_request(format!("multipart: {error}")))?;
                receive_parts(body, boundary, dataset, room, folder.path()).await?
            }
            Some(other) if !IMAGE_TYPES.contains(&other) => {
                let line = format!("{other} is not supported; send {} or multipart/form-data", IMAGE_TYPES[0]);
                return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, line));
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
) -> Result<PathBuf, Refusal> {
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
) -> Result<Vec<PathBuf>, Refusal> {
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
            return Err(Refusal::bad_request(format!("there are two parts for channel {channel}")));
        }
    }
    // A single part may hold all channels, as a single file may.
    if let [Some(all), rest @ ..] = images.as_slice()
        && rest.iter().all(Option::is_none)
    {
        return Ok(vec![all.clone()]);
    }
    let with_number = |(channel, image): (usize, Option<PathBuf>)| {
        image.ok_or_else(|| Refusal::bad_request(format!("there is no part for channel {channel}")))
    };
    images.into_iter().enumerate().map(with_number).collect()
}

/// Index of the channel with this number or name.
fn channel_of(name: Option<&str>, dataset: &DatasetJson) -> Result<usize, Refusal> {
    let name = name.unwrap_or_default();
    let found = dataset.channel_names.iter().enumerate().find(|(_, (key, channel))| *key == name || *channel == name);
    found.map(|(number, _)| number).ok_or_else(|| {
        let known: Vec<_> = dataset.channel_names.iter().map(|(key, channel)| format!("{key} ({channel})")).collect();
        Refusal::bad_request(format!("a part is named {name:?}; the channels are {}", known.join(", ")))
    })
}

/// Converts a multipart error; errors of [`Bounded`] are passed through.
fn broken(error: multer::Error) -> Refusal {
    match error {
        multer::Error::StreamReadFailed(error) => match error.downcast::<Refusal>() {
            Ok(refusal) => *refusal,
            Err(error) => Refusal::bad_request(format!("multipart: {error}")),
        },
        error => Refusal::bad_request(format!("multipart: {error}")),
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
    type Item = Result<Bytes, Refusal>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rest) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let chunk = match ready!(self.body.poll_next_unpin(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => {
                return Poll::Ready(Some(Err(Refusal::bad_request(format!("the body ends early: {error}")))));
            }
            Some(Ok(chunk)) => chunk,
        };
        self.rest = true;
        let between_parts = self.passed.fetch_add(chunk.len(), Ordering::Relaxed);
        Poll::Ready(Some(match self.left.checked_sub(chunk.len() as u64) {
            None => Err(too_large_upload(self.limit)),
            Some(_) if between_parts > MOST_BETWEEN_PARTS + chunk.len() => {
                Err(Refusal::bad_request("multipart: the header of a part does not end"))
            }
            Some(left) => {
                self.left = left;
                Ok(chunk)
            }
        }))
    }
}

/// Refusal of a body that is larger than the limit, by its Content-Length or as received.
pub fn too_large_upload(limit: u64) -> Refusal {
    Refusal::too_large(format!("the body is larger than {} MiB, the limit of this server", limit >> 20))
}
