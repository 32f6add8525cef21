//! What is said to a client that gets no segmentation.

use std::path::Path;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use nnunet_infer::InferError;

/// A status code and one line that says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub struct Refusal {
    pub status: StatusCode,
    pub line: String,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u64>,
}

impl Refusal {
    pub fn new(status: StatusCode, line: impl Into<String>) -> Self {
        Self { status, line: line.into(), retry_after: None }
    }

    /// The request is none (400).
    pub fn bad_request(line: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, line)
    }

    /// The request is one, but its image is none, or not one for these networks (422).
    pub fn unusable(line: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, line)
    }

    /// A limit is exceeded (413).
    pub fn too_large(line: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, line)
    }

    /// It is our fault (500).
    pub fn internal(line: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, line)
    }

    /// There is too much to do (503).
    pub fn busy(retry_after: u64) -> Self {
        let line = "as many images as the server takes on are waiting";
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, line) }
    }

    /// There will be no more answers from this process (503).
    pub fn stopping() -> Self {
        let line = "the server is about to stop";
        Self { retry_after: Some(10), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, line) }
    }

    /// What an image in `folder` could not be predicted for.
    pub fn of(error: &InferError, folder: &Path) -> Self {
        // Clients know the names of what they have sent, but not where it lies.
        let line = error.to_string().replace(&format!("{}/", folder.display()), "");
        match error {
            InferError::Dataset(_) | InferError::Preprocess(_) | InferError::Array(_) => Self::unusable(line),
            InferError::Memory { .. } => Self::too_large(line),
            _ => Self::internal(line),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.line + "\n").into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
