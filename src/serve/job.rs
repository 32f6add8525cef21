//! A queued request and its answer.

use std::path::PathBuf;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::metrics::InProgress;
use super::refusal::Refusal;
use super::upload::Upload;

/// An image to be segmented.
pub struct Job {
    pub upload: Upload,
    /// Whether the answer is an npz with the probabilities.
    pub with_probabilities: bool,
    /// Closed when the client has disconnected.
    pub reply: oneshot::Sender<Result<Answer, Refusal>>,
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

impl Job {
    /// Ends the job with an error response.
    pub fn refuse(self, refusal: Refusal) {
        // The client may have disconnected.
        let _ = self.reply.send(Err(refusal));
    }
}
