//! The threads that do what requests ask for: one preprocesses, one owns the device.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use ndarray_npy::NpzWriter;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::metrics::InProgress;
use super::refusal::Refusal;
use super::state::State;
use super::upload::Upload;
use crate::image::write_labels;
use crate::infer::{InferError, PreparedImage, Segmentation, StagedPredictor, load};
use crate::ops::NnOps;

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
    /// Counts it as begun if it is worth to be; if not, it ends here.
    fn begin(self, state: &State) -> Option<Self> {
        if self.reply.is_closed() {
            return None;
        }
        if state.stopping.is_cancelled() {
            self.refuse(Refusal::stopping());
            return None;
        }
        Some(Self { _begun: Some(state.metrics.begin()), ..self })
    }

    fn refuse(self, refusal: Refusal) {
        // The client may have gone.
        let _ = self.reply.send(Err(refusal));
    }
}

/// Reads and preprocesses images, the next while the last is predicted, until no more can come.
pub fn preprocess_all<B: NnOps>(
    jobs: &Receiver<Job>,
    predictor: &StagedPredictor<B>,
    state: &State,
    to: &Sender<(Job, PreparedImage, Instant)>,
) {
    for job in jobs {
        let Some(job) = job.begin(state) else { continue };
        let began = Instant::now();
        let prepared = guarded(job.upload.folder.path(), || {
            predictor.prepare(load(&job.upload.files, state.dataset.num_channels())?)
        });
        match prepared {
            Ok(image) => {
                // The receiver is gone only if it panicked.
                if to.send((job, image, began)).is_err() {
                    return;
                }
            }
            Err(refusal) => job.refuse(refusal),
        }
    }
}

/// Predicts what was preprocessed, until no more can come. What the second stage of a cascade needs of the first is made
/// here, too, between the two.
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

/// The result, or what is said instead. A bug that some image brings to light ends that image's request and no other's.
fn guarded<T>(folder: &Path, work: impl FnOnce() -> Result<T, InferError>) -> Result<T, Refusal> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| {
            let refusal = Refusal::of(&error, folder);
            tracing::info!("refused, {}: {refusal}", refusal.status);
            refusal
        }),
        Err(_) => Err(Refusal::internal("a bug: the server's log has the message; please report it")),
    }
}

/// Writes what was found beside what was sent: the label map, or an npz with the probabilities too.
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
