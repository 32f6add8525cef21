//! Prefetching of batches: worker threads read and augment samples, and the loader delivers whole batches in order.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use ndarray::{Array3, Array4, Array5, Axis, s};
use nnunet_core::rng::{Purpose, stream};
use nnunet_core::trace;

use super::{LoaderError, SampleId, Sampler};
use crate::augment::cascade::{BitVolume, PreviousStage};
use crate::augment::{Pipeline, blank_patch};
use crate::store::{CaseStore, Patch, Region};

/// One rank's part of a global batch, in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Intensities, `(sample, channel, z, y, x)`; in a cascade followed by the classes of the previous stage, 0 or 1.
    pub images: Array5<f32>,
    /// Labels, `(sample, z, y, x)`; no value is negative.
    pub labels: Array4<i16>,
    /// Identity and location of each sample.
    pub samples: Vec<SampleId>,
}

impl Batch {
    /// Creates a batch of zeros without sample identities.
    fn blank(samples: usize, channels: usize, [z, y, x]: [usize; 3]) -> Self {
        Self {
            images: Array5::zeros((samples, channels, z, y, x)),
            labels: Array4::zeros((samples, z, y, x)),
            samples: Vec::with_capacity(samples),
        }
    }

    /// Writes a sample at `position`; labels outside the image become background, as in nnU-Net's last transform.
    /// `one_hot` are the channels after those of the patch.
    fn write_sample(&mut self, position: usize, patch: &Patch, one_hot: &[BitVolume]) {
        let mut sample = self.images.index_axis_mut(Axis(0), position);
        let channels = patch.data.len_of(Axis(0));
        sample.slice_mut(s![..channels, .., .., ..]).assign(&patch.data);
        for (class, mut channel) in one_hot.iter().zip(sample.outer_iter_mut().skip(channels)) {
            class.write_to(channel.as_slice_mut().expect("batches are in C order"));
        }
        self.labels.index_axis_mut(Axis(0), position).zip_mut_with(&patch.labels, |to, &from| *to = from.max(0));
    }
}

/// Delivers one rank's batches in order, prefetched by worker threads.
///
/// The batches depend neither on the number of workers nor on their speed. Dropping the loader stops each worker after
/// its current sample.
pub struct Loader {
    sampler: Sampler,
    options: LoaderOptions,
    context: Arc<WorkerContext>,
    /// `None` while the loader is being dropped: closing the queue stops the workers.
    requests: Option<Sender<SampleRequest>>,
    reports: Receiver<WorkerResult>,
    workers: Vec<JoinHandle<()>>,
    /// Batches being filled, the next one to deliver first.
    pending: VecDeque<PendingBatch>,
    /// Number of delivered batches, which is also the ticket of the first pending batch.
    delivered: u64,
    /// Recycled buffers for later batches.
    free: Vec<Batch>,
    wait: Duration,
    failure: Option<LoaderError>,
}

/// Rank, batch and prefetch settings of a [`Loader`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderOptions {
    /// Rank of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// Samples per iteration on this rank.
    pub batch_per_rank: usize,
    /// Worker threads.
    pub workers: usize,
    /// Batches prepared ahead of the one in use.
    pub prefetch: usize,
    /// Epochs to deliver; use `start..u64::MAX` for an endless loop.
    pub epochs: Range<u64>,
    /// Iteration at which the first epoch starts.
    pub first_iteration: u64,
    /// Batches per epoch.
    pub iterations_per_epoch: u64,
}

struct PendingBatch {
    batch: Arc<Mutex<Batch>>,
    /// Number of samples not yet written.
    missing: usize,
}

impl Loader {
    /// Starts the workers, which begin prefetching at once.
    ///
    /// # Errors
    /// Returns [`LoaderError::Setup`] if the options contradict the sampler or the pipeline, or a thread cannot be
    /// started, and [`LoaderError::Sample`] if a sample cannot be drawn.
    pub fn start(
        store: Arc<dyn CaseStore>,
        sampler: Sampler,
        pipeline: Arc<Pipeline>,
        options: LoaderOptions,
    ) -> Result<Self, LoaderError> {
        check(&sampler, &pipeline, &options).map_err(LoaderError::Setup)?;
        let channels = sampler.channels().map_err(|error| LoaderError::Setup(error.to_string()))?;
        let seed = sampler.options().seed;
        let context = Arc::new(WorkerContext { store, pipeline, seed, channels, cancelled: AtomicBool::new(false) });
        let (requests, request_queue) = unbounded();
        let (report_sender, reports) = unbounded();
        let mut loader = Self {
            sampler,
            options,
            context,
            requests: Some(requests),
            reports,
            workers: Vec::new(),
            pending: VecDeque::new(),
            delivered: 0,
            free: Vec::new(),
            wait: Duration::ZERO,
            failure: None,
        };
        for number in 0..loader.options.workers {
            let (context, requests, reports) = (loader.context.clone(), request_queue.clone(), report_sender.clone());
            let worker = std::thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || run_worker(&context, &requests, &reports))
                .map_err(|error| LoaderError::Setup(format!("cannot start worker thread {number}: {error}")))?;
            loader.workers.push(worker);
        }
        loader.submit_ahead()?;
        Ok(loader)
    }

    /// Returns the next batch; blocks only if it is not ready.
    ///
    /// # Errors
    /// Returns the first failure of any worker, at once and on every later call, and [`LoaderError::Finished`] after
    /// the last epoch.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator can neither recycle buffers nor report its wait time"
    )]
    pub fn next(&mut self) -> Result<Batch, LoaderError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let result = self.receive();
        if let Err(failure) = &result {
            self.context.cancelled.store(true, Ordering::Relaxed);
            self.failure = Some(failure.clone());
        }
        result
    }

    /// Returns the memory of a used batch to the loader for reuse.
    pub fn recycle(&mut self, batch: Batch) {
        let [z, y, x] = self.context.pipeline.patch_size();
        if batch.images.dim() == (self.options.batch_per_rank, self.context.input_channels(), z, y, x) {
            self.free.push(batch);
        }
    }

    /// Returns the time spent waiting in [`Loader::next`] since the previous call, and resets it.
    pub fn take_wait(&mut self) -> Duration {
        std::mem::take(&mut self.wait)
    }

    fn receive(&mut self) -> Result<Batch, LoaderError> {
        if self.pending.is_empty() {
            self.submit_ahead()?;
        }
        while self.pending.front().ok_or(LoaderError::Finished)?.missing > 0 {
            let ticket = self.next_report()??;
            self.pending[(ticket - self.delivered) as usize].missing -= 1;
        }
        let ready = self.pending.pop_front().ok_or(LoaderError::Finished)?;
        self.delivered += 1;
        self.submit_ahead()?;
        let batch = Arc::into_inner(ready.batch).expect("workers drop a batch before they report on it");
        Ok(batch.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the next worker report; counts the waiting time if none is available yet.
    fn next_report(&mut self) -> Result<WorkerResult, LoaderError> {
        let gone = || LoaderError::Setup("all worker threads have ended".into());
        match self.reports.try_recv() {
            Ok(report) => Ok(report),
            Err(TryRecvError::Disconnected) => Err(gone()),
            Err(TryRecvError::Empty) => {
                let start = Instant::now();
                let report = self.reports.recv();
                self.wait += start.elapsed();
                report.map_err(|_| gone())
            }
        }
    }

    /// Queues batches until `prefetch` of them are pending or the last epoch is reached.
    fn submit_ahead(&mut self) -> Result<(), LoaderError> {
        while self.pending.len() < self.options.prefetch {
            let ticket = self.delivered + self.pending.len() as u64;
            let Some((epoch, iteration)) = self.options.position(ticket) else { break };
            self.submit(ticket, epoch, iteration)?;
        }
        Ok(())
    }

    fn submit(&mut self, ticket: u64, epoch: u64, iteration: u64) -> Result<(), LoaderError> {
        let size = self.options.batch_per_rank;
        let first = (iteration * self.options.world_size as u64 + self.options.rank as u64) * size as u64;
        let samples = (first..first + size as u64).map(|index| self.sampler.draw(epoch, index));
        let samples = samples.collect::<Result<Vec<_>, _>>()?;

        let (channels, patch_size) = (self.context.input_channels(), self.context.pipeline.patch_size());
        let mut batch = self.free.pop().unwrap_or_else(|| Batch::blank(size, channels, patch_size));
        batch.samples.clone_from(&samples);
        let batch = Arc::new(Mutex::new(batch));
        for (position, sample) in samples.into_iter().enumerate() {
            let request = SampleRequest { sample, batch: batch.clone(), position, ticket };
            let queue = self.requests.as_ref().expect("the queue is closed only by drop");
            queue.send(request).map_err(|_| LoaderError::Setup("all worker threads have ended".into()))?;
        }
        self.pending.push_back(PendingBatch { batch, missing: size });
        Ok(())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.context.cancelled.store(true, Ordering::Relaxed);
        self.requests = None;
        for worker in self.workers.drain(..) {
            // Panics inside a request were caught and reported; a panic outside a request is ignored.
            let _ = worker.join();
        }
    }
}

impl LoaderOptions {
    /// Returns the epoch and iteration of the batch with this ticket, or `None` after the last epoch.
    fn position(&self, ticket: u64) -> Option<(u64, u64)> {
        let iteration = self.first_iteration + ticket;
        let epoch = self.epochs.start + iteration / self.iterations_per_epoch;
        self.epochs.contains(&epoch).then_some((epoch, iteration % self.iterations_per_epoch))
    }
}

/// Checks that the settings are consistent; returns a description of the first problem.
fn check(sampler: &Sampler, pipeline: &Pipeline, options: &LoaderOptions) -> Result<(), String> {
    let LoaderOptions { rank, world_size, batch_per_rank, workers, prefetch, iterations_per_epoch, .. } = options;
    let drawn = sampler.options();
    if rank >= world_size {
        return Err(format!("rank {rank} must be below the world size {world_size}"));
    }
    if *workers == 0 || *prefetch == 0 || *iterations_per_epoch == 0 {
        return Err(format!(
            "workers ({workers}), prefetch ({prefetch}) and iterations per epoch ({iterations_per_epoch}) must not be 0"
        ));
    }
    // A training step may consume several batches (gradient accumulation).
    if !drawn.global_batch_size.is_multiple_of((batch_per_rank * world_size).max(1)) {
        return Err(format!(
            "{batch_per_rank} samples on each of {world_size} ranks do not evenly divide the global batch size {}",
            drawn.global_batch_size
        ));
    }
    if (drawn.patch_size, drawn.final_patch_size) != (pipeline.read_patch_size(), pipeline.patch_size()) {
        return Err(format!(
            "the sampler reads patches of {:?} for final patches of {:?}, but the pipeline needs {:?} for {:?}",
            drawn.patch_size,
            drawn.final_patch_size,
            pipeline.read_patch_size(),
            pipeline.patch_size()
        ));
    }
    Ok(())
}

/// A request to fetch one sample.
struct SampleRequest {
    sample: SampleId,
    /// Batch to write the sample to, at `position`.
    batch: Arc<Mutex<Batch>>,
    position: usize,
    /// Sequence number of the batch, returned in the report.
    ticket: u64,
}

/// Result of a request: the ticket of its batch, or the error.
type WorkerResult = Result<u64, LoaderError>;

/// State shared by all workers.
struct WorkerContext {
    store: Arc<dyn CaseStore>,
    pipeline: Arc<Pipeline>,
    seed: u64,
    /// Number of image channels.
    channels: usize,
    /// Set when the remaining requests are no longer needed.
    cancelled: AtomicBool,
}

impl WorkerContext {
    /// Returns the number of network input channels: those of the image and, in a cascade, of the previous stage.
    fn input_channels(&self) -> usize {
        self.channels + self.pipeline.previous_stage().map_or(0, PreviousStage::num_channels)
    }
}

/// Processes requests until the queue closes, the loader is dropped or a request fails.
fn run_worker(context: &WorkerContext, requests: &Receiver<SampleRequest>, reports: &Sender<WorkerResult>) {
    let mut buffers = Buffers::new(context);
    for request in requests {
        if context.cancelled.load(Ordering::Relaxed) {
            return;
        }
        // The buffers of a request that panicked are never read: the loader delivers nothing after an error.
        let outcome = catch_unwind(AssertUnwindSafe(|| buffers.fill(context, &request)));
        let result = outcome.unwrap_or_else(|panic| Err(format!("the worker panicked: {}", message_of(&*panic))));
        let ticket = request.ticket;
        let SampleId { case, epoch, index, .. } = request.sample;
        // Drop before sending the report, so that the loader is the only owner of the batch.
        drop(request.batch);
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
    fn new(context: &WorkerContext) -> Self {
        let size = context.pipeline.patch_size();
        let previous = context.pipeline.previous_stage().map(|_| Array3::zeros(size));
        Self { read: Patch::default(), patch: Patch { previous, ..blank_patch(context.channels, size) } }
    }

    /// Reads and augments a sample and writes it to its batch.
    fn fill(&mut self, context: &WorkerContext, request: &SampleRequest) -> Result<(), String> {
        let SampleId { case, epoch, index, lo, .. } = &request.sample;
        let WorkerContext { store, pipeline, .. } = context;
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
        request.batch.lock().unwrap_or_else(PoisonError::into_inner).write_sample(
            request.position,
            &self.patch,
            &one_hot,
        );
        Ok(())
    }
}

/// Returns the message of a panic.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
