//! Worker threads: one preprocesses, one owns the device.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use ndarray_npy::NpzWriter;

use super::job::{Answer, Job};
use super::refusal::Refusal;
use super::state::State;
use nnunet_image::write_labels;
use nnunet_infer::{InferError, PreparedImage, Segmentation, StagedPredictor, load};
use nnunet_nn::ops::NnOps;

/// Reads and preprocesses images, one while the previous one is predicted, until the job channel is closed.
pub fn preprocess_all<B: NnOps>(
    jobs: &Receiver<Job>,
    predictor: &StagedPredictor<B>,
    state: &State,
    to: &Sender<(Job, PreparedImage, Instant)>,
) {
    for job in jobs {
        let Some(job) = begin(job, state) else { continue };
        let began = Instant::now();
        let prepared = guarded(job.upload.folder.path(), || {
            predictor.prepare(load(&job.upload.files, state.dataset.num_channels())?)
        });
        match prepared {
            Ok(image) => {
                // The receiver only disconnects if it panicked.
                if to.send((job, image, began)).is_err() {
                    return;
                }
            }
            Err(refusal) => job.refuse(refusal),
        }
    }
}

/// Marks a job as in progress; `None` if the client has disconnected or the server is shutting down.
fn begin(job: Job, state: &State) -> Option<Job> {
    if job.reply.is_closed() {
        return None;
    }
    if state.stopping.is_cancelled() {
        job.refuse(Refusal::stopping());
        return None;
    }
    Some(Job { _begun: Some(state.metrics.begin()), ..job })
}

/// Predicts preprocessed images until the channel is closed. The inputs of the second stage of a cascade are also
/// computed here, between the stages.
pub fn predict_all<B: NnOps>(
    from: &Receiver<(Job, PreparedImage, Instant)>,
    predictor: &StagedPredictor<B>,
    state: &State,
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
                let Job { upload, reply, slot, .. } = job;
                let _ = reply.send(Ok(Answer { path, upload, slot }));
            }
            Err(refusal) => job.refuse(refusal),
        }
    }
}

/// Runs `work` and converts errors to refusals. A panic ends only the request of this image.
fn guarded<T>(folder: &Path, work: impl FnOnce() -> Result<T, InferError>) -> Result<T, Refusal> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| {
            let refusal = Refusal::of(&error, folder);
            tracing::info!("refused, {}: {refusal}", refusal.status);
            refusal
        }),
        Err(_) => Err(Refusal::internal("internal error (a bug); please report the message in the server's log")),
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
