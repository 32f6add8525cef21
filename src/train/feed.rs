//! The way of batches from the loader to the device.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::batch::{DeviceBatch, Inner, Upload};
use nnunet_core::trace;
use nnunet_data::loader::{Loader, LoaderError};
use nnunet_nn::backend::ComputeBackend;

/// Batches on the device ahead of the one in use: one that waits, and one on its way.
const AHEAD: usize = 1;

/// Delivers a loader's batches on the device.
///
/// A GPU works while a thread of its own brings it the next batches, on a stream of the thread's own. On the CPU they are
/// brought when they are asked for: the cores that would bring them are those that compute.
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
    /// Begins to deliver.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(loader: Loader, upload: Upload<B>) -> Result<Self, LoaderError> {
        let source = if upload.is_to_another_device() {
            let (sender, batches) = bounded(AHEAD);
            let thread = std::thread::Builder::new()
                .name("feed".into())
                .spawn(move || deliver(loader, &upload, &sender))
                .map_err(|error| {
                    LoaderError::Setup(format!("cannot start the thread that feeds the device: {error}"))
                })?;
            Source::Ahead { batches, thread: Some(thread) }
        } else {
            Source::InTurn { loader: Box::new(loader), upload }
        };
        Ok(Self { source, wait: Duration::ZERO })
    }

    /// The next batch.
    ///
    /// # Errors
    /// As [`Loader::next`].
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
                // The thread ends after the error that it has delivered.
                let delivered = batches.recv().unwrap_or(Err(LoaderError::Finished));
                self.wait += began.elapsed();
                delivered
            }
        }
    }

    /// Time that [`Feed::next`] spent waiting since this was last asked.
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
            // Without a receiver the thread ends.
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
