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
use crate::infer::{InferError, Predictor, Segmentation, load};
use crate::ops::NnOps;
use crate::store::PreprocessedCase;

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
    predictor: &Predictor<B>,
    state: &State,
    to: &Sender<(Job, PreprocessedCase, Instant)>,
) {
    for job in jobs {
        let Some(job) = job.begin(state) else { continue };
        let began = Instant::now();
        let preprocessed = guarded(job.upload.folder.path(), || {
            let case = load(&job.upload.files, predictor.dataset().num_channels())?;
            predictor.preprocess(&case)
        });
        match preprocessed {
            Ok(case) => {
                // The receiver is gone only if it panicked.
                if to.send((job, case, began)).is_err() {
                    return;
                }
            }
            Err(refusal) => job.refuse(refusal),
        }
    }
}

/// Predicts what was preprocessed, until no more can come.
pub fn predict_all<B: NnOps>(
    from: &Receiver<(Job, PreprocessedCase, Instant)>,
    predictor: &Predictor<B>,
    state: &State,
) {
    for (job, PreprocessedCase { data, properties, .. }, began) in from {
        if job.reply.is_closed() {
            continue;
        }
        let folder = job.upload.folder.path();
        let answer = guarded(folder, || {
            let found = predictor.segment(data.view(), &properties, job.with_probabilities)?;
            write(folder, &found, &predictor.dataset().file_ending)
        });
        match answer {
            Ok(path) => {
                state.metrics.predicted(began.elapsed());
                tracing::info!("{:?} voxels: {:.1} s", properties.raw_shape(), began.elapsed().as_secs_f64());
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
