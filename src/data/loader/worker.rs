//! Worker threads that read and augment samples.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use ndarray::Array3;

use super::{Batch, LoaderError, SampleId};
use crate::augment::cascade::PreviousStage;
use crate::augment::{Pipeline, blank_patch};
use crate::store::{CaseStore, Patch, Region};
use nnunet_core::rng::{Purpose, stream};
use nnunet_core::trace;

/// A request to fetch one sample.
pub(super) struct Job {
    pub(super) sample: SampleId,
    /// Batch to write the sample to, at `position`.
    pub(super) batch: Arc<Mutex<Batch>>,
    pub(super) position: usize,
    /// Sequence number of the batch, returned in the report.
    pub(super) ticket: u64,
}

/// Result of a job: the ticket of its batch, or the error.
pub(super) type Report = Result<u64, LoaderError>;

/// State shared by all workers.
pub(super) struct Context {
    pub(super) store: Arc<dyn CaseStore>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) seed: u64,
    /// Number of image channels.
    pub(super) channels: usize,
    /// Set when the remaining jobs are no longer needed.
    pub(super) cancelled: AtomicBool,
}

impl Context {
    /// Returns the number of network input channels: those of the image and, in a cascade, of the previous stage.
    pub(super) fn input_channels(&self) -> usize {
        self.channels + self.pipeline.previous_stage().map_or(0, PreviousStage::num_channels)
    }
}

/// Processes jobs until the queue closes, the loader is dropped or a job fails.
pub(super) fn run(context: &Context, jobs: &Receiver<Job>, reports: &Sender<Report>) {
    let mut buffers = Buffers::new(context);
    for job in jobs {
        if context.cancelled.load(Ordering::Relaxed) {
            return;
        }
        // The buffers of a job that panicked are never read: the loader delivers nothing after an error.
        let outcome = catch_unwind(AssertUnwindSafe(|| buffers.fill(context, &job)));
        let result = outcome.unwrap_or_else(|panic| Err(format!("the worker panicked: {}", message_of(&*panic))));
        let ticket = job.ticket;
        let SampleId { case, epoch, index, .. } = job.sample;
        // Drop before sending the report, so that the loader is the only owner of the batch.
        drop(job.batch);
        let report = result.map(|()| ticket).map_err(|cause| LoaderError::Sample { case, epoch, index, cause });
        if reports.send(report).is_err() {
            return;
        }
    }
}

/// Memory of one worker, reused for all of its samples.
struct Buffers {
    /// Read buffer for stores that cannot lend regions of their memory.
    read: Patch,
    patch: Patch,
}

impl Buffers {
    fn new(context: &Context) -> Self {
        let size = context.pipeline.patch_size();
        let previous = context.pipeline.previous_stage().map(|_| Array3::zeros(size));
        Self { read: Patch::default(), patch: Patch { previous, ..blank_patch(context.channels, size) } }
    }

    /// Reads and augments a sample and writes it to its batch.
    fn fill(&mut self, context: &Context, job: &Job) -> Result<(), String> {
        let SampleId { case, epoch, index, lo, .. } = &job.sample;
        let Context { store, pipeline, .. } = context;
        let info = store.info(case).map_err(|error| error.to_string())?;
        let channels = info.channels;
        if channels != context.channels {
            return Err(format!("has {channels} channels, the first case has {}; preprocess again", context.channels));
        }
        if pipeline.previous_stage().is_some() && !info.has_previous {
            return Err("has no segmentation from the previous stage of the cascade".into());
        }
        let mut rng = stream(context.seed, Purpose::Augment, *epoch, *index);
        let Self { read, patch } = self;
        let _span = trace::span_with_detail("sample", || case.clone());
        let mut augment = |region: Region| {
            let _span = trace::span("augment");
            pipeline.apply(region, patch, &mut rng)
        };
        store
            .with_region(case, *lo, pipeline.read_patch_size(), read, &mut augment)
            .map_err(|error| error.to_string())?;
        let one_hot = pipeline.one_hot(&self.patch, &mut rng);
        job.batch.lock().unwrap_or_else(PoisonError::into_inner).place(job.position, &self.patch, &one_hot);
        Ok(())
    }
}

/// Returns the message of a panic.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
