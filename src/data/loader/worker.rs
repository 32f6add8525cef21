//! The threads that turn sample numbers into samples.

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

/// One sample to fetch.
pub(super) struct Job {
    pub(super) sample: SampleId,
    /// Where it goes.
    pub(super) batch: Arc<Mutex<Batch>>,
    pub(super) position: usize,
    /// Running number of the batch, to report back.
    pub(super) ticket: u64,
}

/// A finished job: the number of its batch, or why there will be none.
pub(super) type Report = Result<u64, LoaderError>;

/// What all workers share.
pub(super) struct Context {
    pub(super) store: Arc<dyn CaseStore>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) seed: u64,
    /// Of the image.
    pub(super) channels: usize,
    /// Set when nobody wants the remaining jobs any more.
    pub(super) cancelled: AtomicBool,
}

impl Context {
    /// Channels of the network's input: the image's and, in a cascade, those of the previous stage's segmentation.
    pub(super) fn input_channels(&self) -> usize {
        self.channels + self.pipeline.previous_stage().map_or(0, PreviousStage::num_channels)
    }
}

/// Works on jobs until there are no more, the loader is dropped or a job fails.
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
        // Before the report, so that the loader finds itself the batch's only owner.
        drop(job.batch);
        let report = result.map(|()| ticket).map_err(|cause| LoaderError::Sample { case, epoch, index, cause });
        if reports.send(report).is_err() {
            return;
        }
    }
}

/// A worker's own memory, used for one sample after the other.
struct Buffers {
    /// For stores that cannot lend what they have in memory.
    read: Patch,
    patch: Patch,
}

impl Buffers {
    fn new(context: &Context) -> Self {
        let size = context.pipeline.patch_size();
        let previous = context.pipeline.previous_stage().map(|_| Array3::zeros(size));
        Self { read: Patch::default(), patch: Patch { previous, ..blank_patch(context.channels, size) } }
    }

    /// Reads, augments and delivers a sample.
    fn fill(&mut self, context: &Context, job: &Job) -> Result<(), String> {
        let SampleId { case, epoch, index, lo, .. } = &job.sample;
        let Context { store, pipeline, .. } = context;
        let info = store.info(case).map_err(|error| error.to_string())?;
        let channels = info.channels;
        if channels != context.channels {
            return Err(format!("has {channels} channels, the first case has {}; preprocess again", context.channels));
        }
        if pipeline.previous_stage().is_some() && !info.has_previous {
            return Err("has no segmentation of the cascade's previous stage".into());
        }
        let mut rng = stream(context.seed, Purpose::Augment, *epoch, *index);
        let Self { read, patch } = self;
        let _span = trace::span_of("sample", || case.clone());
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

/// The text of a panic.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
