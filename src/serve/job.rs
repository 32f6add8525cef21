//! What a request asks for, and its answer.

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
    /// Closed by a client that has gone.
    pub reply: oneshot::Sender<Result<Answer, Refusal>>,
    /// Given back with the answer.
    pub slot: OwnedSemaphorePermit,
    /// Once it is worked on.
    pub _begun: Option<InProgress>,
}

/// A file with what was found, in the folder of what was sent.
pub struct Answer {
    pub path: PathBuf,
    /// Removed with everything in it when this is dropped.
    pub upload: Upload,
    pub slot: OwnedSemaphorePermit,
}

impl Job {
    /// Ends it without an answer.
    pub fn refuse(self, refusal: Refusal) {
        // The client may have gone.
        let _ = self.reply.send(Err(refusal));
    }
}
