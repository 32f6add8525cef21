//! State shared by all requests.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::api_error::ApiError;
use super::job::SegmentationJob;
use super::metrics::Metrics;
use super::options::{ServeLimits, ServeOptions};
use nnunet_data::dataset::DatasetJson;
use nnunet_data::preprocess::Preprocessor;
use nnunet_nn::model::ModelDescription;

/// Model description, queue and metrics.
pub struct ServerState {
    pub dataset: DatasetJson,
    /// Preprocessors of the networks, one per stage of a cascade.
    pub preprocessors: Vec<Preprocessor>,
    pub limits: ServeLimits,
    pub spool: PathBuf,
    pub metrics: Metrics,
    /// Response of `GET /`.
    pub help: Value,
    /// Cancelled when the server stops.
    pub stopping: CancellationToken,
    slots: Arc<Semaphore>,
    /// `None` after shutdown has started.
    jobs: Mutex<Option<Sender<SegmentationJob>>>,
}

impl ServerState {
    /// With an empty queue. The capacity of `jobs` must be at least `options.limits.queue`.
    pub fn new(
        model: &ModelDescription,
        preprocessors: Vec<Preprocessor>,
        options: &ServeOptions,
        jobs: Sender<SegmentationJob>,
    ) -> Self {
        Self {
            dataset: model.dataset.clone(),
            preprocessors,
            limits: options.limits,
            spool: options.spool.clone(),
            metrics: Metrics::new(),
            help: help(model, options),
            stopping: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(options.limits.queue)),
            jobs: Mutex::new(Some(jobs)),
        }
    }

    /// Reserves a slot in the queue, to be held until the request is answered.
    ///
    /// # Errors
    /// Returns an error if the queue is full or the server is shutting down.
    pub fn reserve_slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if self.stopping.is_cancelled() {
            return Err(ApiError::stopping());
        }
        let slot = self.slots.clone().try_acquire_owned();
        slot.map_err(|_| ApiError::busy(self.metrics.expected_seconds(self.limits.queue)))
    }

    /// Number of images accepted and not answered yet.
    pub fn reserved_slots(&self) -> usize {
        self.limits.queue - self.slots.available_permits()
    }

    /// Waits until all accepted images are answered.
    pub async fn wait_until_idle(&self) {
        // All slots can only be acquired when all are released.
        let _ = self.slots.acquire_many(self.limits.queue as u32).await;
    }

    /// Submits a job to the worker threads.
    ///
    /// # Errors
    /// Returns an error if the server is shutting down.
    pub fn submit(&self, job: SegmentationJob) -> Result<(), ApiError> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // Does not block: there are no more jobs than slots.
        jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(ApiError::stopping)
    }

    /// Starts the shutdown: accepts no more jobs, refuses queued ones, and finishes those in progress.
    pub fn stop(&self) {
        self.stopping.cancel();
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn help(model: &ModelDescription, options: &ServeOptions) -> Value {
    let configuration = model.plans.configuration(&model.configuration).ok();
    json!({
        "program": "nnunet-dist",
        "version": env!("CARGO_PKG_VERSION"),
        "model": {
            "dataset": model.plans.dataset_name,
            "configuration": model.configuration,
            "networks": options.predict.checkpoints.len(),
            "previous_stage": configuration.as_ref().and_then(|configuration| configuration.previous_stage_name()),
            "spacing_mm": configuration.as_ref().map(|configuration| configuration.spacing.clone()),
            "patch_size": configuration.as_ref().map(|configuration| configuration.patch_size.clone()),
        },
        "onednn": nnunet_nn::ops::cpu::onednn::version(),
        "channels": model.dataset.channel_names,
        "labels": model.dataset.labels,
        "file_ending": model.dataset.file_ending,
        "limits": {
            "queue": options.limits.queue,
            "upload_mib": options.limits.upload_bytes >> 20,
            "image_mib": options.limits.image_bytes >> 20,
            "upload_seconds": options.limits.upload_time.as_secs(),
        },
        "endpoints": {
            "POST /predict": "an image, or multipart/form-data with a part for each channel: its label map; \
                              ?probabilities=1: an npz of labels (z, y, x) and probabilities (class, z, y, x)",
            "GET /healthz": "200 while the process works",
            "GET /readyz": "200 while it takes on images, otherwise 503",
            "GET /metrics": "for Prometheus",
        },
    })
}
