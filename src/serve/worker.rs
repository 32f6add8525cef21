//! Worker threads: one preprocesses, one owns the device.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use ndarray_npy::NpzWriter;
use nnunet_image::write_labels;
use nnunet_infer::{CascadePredictor, InferError, PreparedImage, Segmentation, read_finite_case};
use nnunet_nn::ops::NnOps;

use super::api_error::ApiError;
use super::job::{Answer, SegmentationJob};
use super::state::ServerState;

/// Reads and preprocesses images, one while the previous one is predicted, until the job channel is closed.
pub fn preprocess_all<B: NnOps>(
    jobs: &Receiver<SegmentationJob>,
    predictor: &CascadePredictor<B>,
    state: &ServerState,
    to: &Sender<(SegmentationJob, PreparedImage, Instant)>,
) {
    for job in jobs {
        let Some(job) = begin(job, state) else { continue };
        let began = Instant::now();
        let prepared = guarded(job.upload.folder.path(), || {
            predictor.prepare(read_finite_case(&job.upload.files, state.dataset.num_channels())?)
        });
        match prepared {
            Ok(image) => {
                // The receiver only disconnects if it panicked.
                if to.send((job, image, began)).is_err() {
                    return;
                }
            }
            Err(error) => job.reject(error),
        }
    }
}

/// Marks a job as in progress; `None` if the client has disconnected or the server is shutting down.
fn begin(job: SegmentationJob, state: &ServerState) -> Option<SegmentationJob> {
    if job.reply.is_closed() {
        return None;
    }
    if state.stopping.is_cancelled() {
        job.reject(ApiError::stopping());
        return None;
    }
    Some(SegmentationJob { _begun: Some(state.metrics.begin()), ..job })
}

/// Predicts preprocessed images until the channel is closed. The inputs of the second stage of a cascade are also
/// computed here, between the stages.
pub fn predict_all<B: NnOps>(
    from: &Receiver<(SegmentationJob, PreparedImage, Instant)>,
    predictor: &CascadePredictor<B>,
    state: &ServerState,
) {
    for (job, image, began) in from {
        if job.reply.is_closed() {
            continue;
        }
        let folder = job.upload.folder.path();
        let shape = image.properties().raw_shape();
        let answer = guarded(folder, || {
            let found = predictor.segment(image, job.with_probabilities)?;
            write(folder, &found, &state.dataset.file_ending)
        });
        match answer {
            Ok(path) => {
                state.metrics.predicted(began.elapsed());
                tracing::info!("{shape:?} voxels: {:.1} s", began.elapsed().as_secs_f64());
                let SegmentationJob { upload, reply, slot, .. } = job;
                let _ = reply.send(Ok(Answer { path, upload, slot }));
            }
            Err(error) => job.reject(error),
        }
    }
}

/// Runs `work` and converts errors to error responses. A panic ends only the request of this image.
fn guarded<T>(folder: &Path, work: impl FnOnce() -> Result<T, InferError>) -> Result<T, ApiError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| {
            let error = ApiError::from_infer_error(&error, folder);
            tracing::info!("refused, {}: {error}", error.status);
            error
        }),
        Err(_) => Err(ApiError::internal("internal error (a bug); please report the message in the server's log")),
    }
}

/// Writes the result to the upload folder: the label map, or an npz with labels and probabilities.
fn write(folder: &Path, found: &Segmentation, file_ending: &str) -> Result<PathBuf, InferError> {
    let Some(probabilities) = &found.probabilities else {
        let path = folder.join(format!("labels{file_ending}"));
        write_labels(&path, &found.labels)?;
        return Ok(path);
    };
    let path = folder.join("probabilities.npz");
    let write = || -> io::Result<()> {
        let mut npz = NpzWriter::new_compressed(io::BufWriter::new(File::create(&path)?));
        npz.add_array("labels", &found.labels.data).map_err(io::Error::other)?;
        npz.add_array("probabilities", probabilities).map_err(io::Error::other)?;
        npz.finish().map(drop).map_err(io::Error::other)
    };
    write().map_err(|source| InferError::Write { path: path.clone(), source })?;
    Ok(path)
}
