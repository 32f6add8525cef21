//! HTTP routes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::fs::File;
use tokio::sync::oneshot;
use tokio::task::block_in_place;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use super::api_error::ApiError;
use super::job::{Answer, SegmentationJob};
use super::state::ServerState;
use super::upload::{Upload, check_headers, too_large_upload};

/// Time during which the rest of a rejected body is read: a client that is still sending would not read the response.
const LINGER: Duration = Duration::from_secs(5);
/// Maximum bytes of a rejected body to read.
const LINGER_BYTES: usize = 64 << 20;

/// All routes, with request counting.
pub fn router(state: Arc<ServerState>) -> Router {
    Router::new()
        .route("/", get(help))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(is_ready))
        .route("/metrics", get(metrics))
        .route("/predict", post(predict))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "not found; GET / lists the endpoints") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "use POST /predict for images and GET for all other endpoints",
            )
        })
        .layer(middleware::from_fn_with_state(state.clone(), count))
        .with_state(state)
}

async fn count(Shared(state): Shared<Arc<ServerState>>, request: Request, next: Next) -> Response {
    let mut counted = state.metrics.request();
    let response = next.run(request).await;
    counted.ends_with(response.status().as_u16());
    response
}

async fn help(Shared(state): Shared<Arc<ServerState>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], format!("{:#}\n", state.help)).into_response()
}

async fn is_ready(Shared(state): Shared<Arc<ServerState>>) -> Result<&'static str, ApiError> {
    state.reserve_slot().map(|_| "ready\n")
}

async fn metrics(Shared(state): Shared<Arc<ServerState>>) -> Response {
    ([(header::CONTENT_TYPE, nnunet_train::telemetry::CONTENT_TYPE)], state.metrics.text(state.reserved_slots()))
        .into_response()
}

/// Query parameters of `POST /predict`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    probabilities: Option<String>,
}

impl Asked {
    fn with_probabilities(&self) -> Result<bool, ApiError> {
        match self.probabilities.as_deref() {
            Some("1" | "true") => Ok(true),
            Some("0" | "false") | None => Ok(false),
            Some(other) => Err(ApiError::bad_request(format!("?probabilities must be 0 or 1, not {other:?}"))),
        }
    }
}

async fn predict(
    Shared(state): Shared<Arc<ServerState>>,
    asked: Result<Query<Asked>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let began = Instant::now();
    let (head, body) = request.into_parts();
    let mut body = body.into_data_stream();
    let answer = match asked {
        Ok(Query(asked)) => answer(&state, &asked, &head.headers, &mut body).await,
        Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
    };
    // A client that waits for `100 Continue` will not send the body.
    if answer.is_err() && !head.headers.contains_key(header::EXPECT) {
        tokio::spawn(linger(body));
    }
    let response =
        send(answer?).await.map_err(|error| ApiError::internal(format!("cannot read the result: {error}")))?;
    state.metrics.answered(began.elapsed());
    Ok(response)
}

/// Receives an image, submits it, and waits for the answer.
async fn answer(
    state: &ServerState,
    asked: &Asked,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<Answer, ApiError> {
    let with_probabilities = asked.with_probabilities()?;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let limits = &state.limits;
    let length: Option<u64> = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if length.is_some_and(|length| length > limits.upload_bytes) {
        return Err(too_large_upload(limits.upload_bytes));
    }
    let slot = state.reserve_slot()?;
    let receiving = Upload::receive(body, text(header::CONTENT_TYPE), &state.dataset, limits, &state.spool);
    let upload = tokio::select! {
        () = state.stopping.cancelled() => return Err(ApiError::stopping()),
        received = timeout(limits.upload_time, receiving) => received.map_err(|_| {
            let line = format!("the body was not received within {} s", limits.upload_time.as_secs_f64());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, line)
        })??,
    };
    let channels = state.dataset.num_channels();
    block_in_place(|| check_headers(&upload.files, channels, limits.image_bytes, &state.preprocessors))?;
    let (reply, answer) = oneshot::channel();
    state.submit(SegmentationJob { upload, with_probabilities, reply, slot, _begun: None })?;
    // The worker threads always reply unless they have ended.
    answer.await.unwrap_or_else(|_| Err(ApiError::stopping()))
}

/// Streams the result file as the response. The open file remains readable after its folder is deleted.
async fn send(answer: Answer) -> std::io::Result<Response> {
    let Answer { path, upload, slot } = answer;
    let file = File::open(&path).await?;
    let length = file.metadata().await?.len();
    drop((upload, slot));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let media_type = match name.rsplit('.').next() {
        Some("gz") => "application/gzip",
        Some("png") => "image/png",
        Some("tif" | "tiff") => "image/tiff",
        _ => "application/octet-stream",
    };
    let headers = [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    Ok((headers, Body::from_stream(ReaderStream::with_capacity(file, 64 << 10))).into_response())
}

async fn linger(mut body: BodyDataStream) {
    let mut left = LINGER_BYTES;
    let rest = async {
        while let Some(Ok(chunk)) = body.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    // The outcome does not matter.
    let _ = timeout(LINGER, rest).await;
}
