//! Delivery of batches from the loader to the device.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::batch::{BatchUploader, DeviceBatch, Inner};
use nnunet_core::trace;
use nnunet_data::loader::{Loader, LoaderError};
use nnunet_nn::backend::ComputeBackend;

/// Number of batches that wait on the device; one more may be uploading.
const DEPTH: usize = 1;

/// Delivers a loader's batches on the device.
///
/// For a GPU, a separate thread uploads the next batches on its own stream while the GPU computes. On the CPU, batches
/// are created on demand, since a prefetch thread would compete for the cores that compute.
pub struct DevicePrefetcher<B: ComputeBackend> {
    source: Source<B>,
    wait: Duration,
}

enum Source<B: ComputeBackend> {
    OnDemand { loader: Box<Loader>, uploader: BatchUploader<B> },
    Prefetched { batches: Receiver<Delivery<B>>, thread: Option<JoinHandle<()>> },
}

type Delivery<B> = Result<DeviceBatch<Inner<B>>, LoaderError>;

impl<B: ComputeBackend> DevicePrefetcher<B> {
    /// Starts the delivery.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(loader: Loader, uploader: BatchUploader<B>) -> Result<Self, LoaderError> {
        let source = if uploader.is_to_another_device() {
            let (sender, batches) = bounded(DEPTH);
            let thread = std::thread::Builder::new()
                .name("device-prefetch".into())
                .spawn(move || deliver(loader, &uploader, &sender))
                .map_err(|error| LoaderError::Setup(format!("cannot start the device prefetch thread: {error}")))?;
            Source::Prefetched { batches, thread: Some(thread) }
        } else {
            Source::OnDemand { loader: Box::new(loader), uploader }
        };
        Ok(Self { source, wait: Duration::ZERO })
    }

    /// Returns the next batch.
    ///
    /// # Errors
    /// Same as [`Loader::next`].
    pub fn next(&mut self) -> Result<DeviceBatch<Inner<B>>, LoaderError> {
        let _span = trace::span("wait for data");
        match &mut self.source {
            Source::OnDemand { loader, uploader } => {
                let batch = loader.next()?;
                let delivered = uploader.batch(batch.images.view(), batch.labels.view());
                loader.recycle(batch);
                Ok(delivered)
            }
            Source::Prefetched { batches, .. } => {
                let began = Instant::now();
                // The thread ends after delivering an error.
                let delivered = batches.recv().unwrap_or(Err(LoaderError::Finished));
                self.wait += began.elapsed();
                delivered
            }
        }
    }

    /// Returns the time that [`DevicePrefetcher::next`] spent waiting since the last call.
    pub fn take_wait(&mut self) -> Duration {
        match &mut self.source {
            Source::OnDemand { loader, .. } => loader.take_wait(),
            Source::Prefetched { .. } => std::mem::take(&mut self.wait),
        }
    }
}

impl<B: ComputeBackend> Drop for DevicePrefetcher<B> {
    fn drop(&mut self) {
        if let Source::Prefetched { batches, thread } = &mut self.source {
            // The thread ends when its receiver is dropped.
            *batches = crossbeam_channel::never();
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn deliver<B: ComputeBackend>(mut loader: Loader, uploader: &BatchUploader<B>, to: &Sender<Delivery<B>>) {
    loop {
        let delivery = loader.next().map(|batch| {
            let _span = trace::span("upload");
            let delivered = uploader.batch(batch.images.view(), batch.labels.view());
            loader.recycle(batch);
            delivered
        });
        let is_last = delivery.is_err();
        if to.send(delivery).is_err() || is_last {
            return;
        }
    }
}
