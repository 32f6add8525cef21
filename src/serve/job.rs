//! Queued requests and their answers.

use std::path::PathBuf;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::api_error::ApiError;
use super::metrics::InProgress;
use super::upload::Upload;

/// An image to be segmented.
pub struct SegmentationJob {
    pub upload: Upload,
    /// Whether the answer is an npz with the probabilities.
    pub with_probabilities: bool,
    /// Closed when the client has disconnected.
    pub reply: oneshot::Sender<Result<Answer, ApiError>>,
    /// Slot in the queue, returned with the answer.
    pub slot: OwnedSemaphorePermit,
    /// Set when the job is started.
    pub _begun: Option<InProgress>,
}

/// A result file, in the folder of the upload.
pub struct Answer {
    pub path: PathBuf,
    /// The folder is deleted when this is dropped.
    pub upload: Upload,
    pub slot: OwnedSemaphorePermit,
}

impl SegmentationJob {
    /// Ends the job with an error response.
    pub fn reject(self, error: ApiError) {
        // The client may have disconnected.
        let _ = self.reply.send(Err(error));
    }
}
