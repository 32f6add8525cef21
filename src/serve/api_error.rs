//! Error responses.

use std::path::Path;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use nnunet_infer::InferError;

/// An error response: a status code and a one-line message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub struct ApiError {
    pub status: StatusCode,
    pub line: String,
    /// Seconds after which the client may retry.
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, line: impl Into<String>) -> Self {
        Self { status, line: line.into(), retry_after: None }
    }

    /// The request is malformed (400).
    pub fn bad_request(line: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, line)
    }

    /// The image is invalid or not suitable for these networks (422).
    pub fn unusable(line: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, line)
    }

    /// A limit is exceeded (413).
    pub fn too_large(line: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, line)
    }

    /// An internal error (500).
    pub fn internal(line: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, line)
    }

    /// The queue is full (503).
    pub fn busy(retry_after: u64) -> Self {
        let line = "the queue of the server is full";
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, line) }
    }

    /// The server is shutting down (503).
    pub fn stopping() -> Self {
        let line = "the server is shutting down";
        Self { retry_after: Some(10), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, line) }
    }

    /// Response for an inference error of an image in `folder`.
    pub fn from_infer_error(error: &InferError, folder: &Path) -> Self {
        // Clients know the names of their files, but not the folder on the server.
        let line = error.to_string().replace(&format!("{}/", folder.display()), "");
        match error {
            InferError::Dataset(_) | InferError::Preprocess(_) | InferError::Array(_) => Self::unusable(line),
            InferError::Memory { .. } | InferError::TooLarge { .. } => Self::too_large(line),
            _ => Self::internal(line),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.line + "\n").into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
