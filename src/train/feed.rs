//! Delivery of batches from the loader to the device.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::batch::{DeviceBatch, Inner, Upload};
use nnunet_core::trace;
use nnunet_data::loader::{Loader, LoaderError};
use nnunet_nn::backend::ComputeBackend;

/// Number of batches that wait on the device; one more may be uploading.
const AHEAD: usize = 1;

/// Delivers a loader's batches on the device.
///
/// For a GPU, a separate thread uploads the next batches on its own stream while the GPU computes. On the CPU, batches
/// are created on demand, since a prefetch thread would compete for the cores that compute.
pub struct Feed<B: ComputeBackend> {
    source: Source<B>,
    wait: Duration,
}

enum Source<B: ComputeBackend> {
    InTurn { loader: Box<Loader>, upload: Upload<B> },
    Ahead { batches: Receiver<Delivery<B>>, thread: Option<JoinHandle<()>> },
}

type Delivery<B> = Result<DeviceBatch<Inner<B>>, LoaderError>;

impl<B: ComputeBackend> Feed<B> {
    /// Starts the delivery.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(loader: Loader, upload: Upload<B>) -> Result<Self, LoaderError> {
        let source = if upload.is_to_another_device() {
            let (sender, batches) = bounded(AHEAD);
            let thread = std::thread::Builder::new()
                .name("feed".into())
                .spawn(move || deliver(loader, &upload, &sender))
                .map_err(|error| LoaderError::Setup(format!("cannot start the device prefetch thread: {error}")))?;
            Source::Ahead { batches, thread: Some(thread) }
        } else {
            Source::InTurn { loader: Box::new(loader), upload }
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
            Source::InTurn { loader, upload } => {
                let batch = loader.next()?;
                let delivered = upload.batch(batch.images.view(), batch.labels.view());
                loader.recycle(batch);
                Ok(delivered)
            }
            Source::Ahead { batches, .. } => {
                let began = Instant::now();
                // The thread ends after delivering an error.
                let delivered = batches.recv().unwrap_or(Err(LoaderError::Finished));
                self.wait += began.elapsed();
                delivered
            }
        }
    }

    /// Returns the time that [`Feed::next`] spent waiting since the last call.
    pub fn take_wait(&mut self) -> Duration {
        match &mut self.source {
            Source::InTurn { loader, .. } => loader.take_wait(),
            Source::Ahead { .. } => std::mem::take(&mut self.wait),
        }
    }
}

impl<B: ComputeBackend> Drop for Feed<B> {
    fn drop(&mut self) {
        if let Source::Ahead { batches, thread } = &mut self.source {
            // The thread ends when its receiver is dropped.
            *batches = crossbeam_channel::never();
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn deliver<B: ComputeBackend>(mut loader: Loader, upload: &Upload<B>, to: &Sender<Delivery<B>>) {
    loop {
        let delivery = loader.next().map(|batch| {
            let _span = trace::span("upload");
            let delivered = upload.batch(batch.images.view(), batch.labels.view());
            loader.recycle(batch);
            delivered
        });
        let is_last = delivery.is_err();
        if to.send(delivery).is_err() || is_last {
            return;
        }
    }
}
