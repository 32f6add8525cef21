//! Asynchronous checkpoint writer. Steps only wait for the copy of the weights, and a full, slow or failed disk does
//! not end the training.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::TrainError;
use nnunet_core::trace;
use nnunet_nn::checkpoint::{Checkpoint, CheckpointManager};
use nnunet_nn::model::TensorFileError;

/// Initial and maximum delay between two attempts to write the same checkpoint.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Time that the end of a training waits for a disk that has failed before.
const FINAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes checkpoints of a run in the background, in order.
pub struct AsyncCheckpointWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified on every change of the state.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Checkpoints to write, oldest first: the newest, preceded by the best one if it has not been written yet.
    waiting: VecDeque<QueuedCheckpoint>,
    /// Whether a checkpoint is being written.
    is_busy: bool,
    /// Error of the last attempt, if it failed.
    failure: Option<TensorFileError>,
    /// Whether a caller waits for completion.
    is_urgent: bool,
    is_over: bool,
}

struct QueuedCheckpoint {
    step: u64,
    checkpoint: Checkpoint,
}

impl QueuedCheckpoint {
    fn is_best(&self) -> bool {
        self.checkpoint.training.is_best
    }
}

impl AsyncCheckpointWriter {
    /// Starts the writer thread.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be created.
    pub fn start(manager: CheckpointManager) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(move || theirs.write_all(manager))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues a checkpoint taken after `step` steps of the run. It replaces a checkpoint still in the queue, unless
    /// that one was the best.
    pub fn save(&self, step: u64, checkpoint: Checkpoint) {
        let queued = QueuedCheckpoint { step, checkpoint };
        let mut state = self.shared.lock();
        state.waiting.retain(|older| older.is_best() && !queued.is_best());
        state.waiting.push_back(queued);
        self.shared.changed.notify_all();
    }

    /// Returns whether the last attempt to write a checkpoint has failed.
    pub fn has_failed(&self) -> bool {
        self.shared.lock().failure.is_some()
    }

    /// Waits until all checkpoints are written.
    ///
    /// # Errors
    /// Returns an error if the last checkpoint cannot be written after several attempts.
    pub fn finish(&self) -> Result<(), TrainError> {
        let began = Instant::now();
        let mut state = self.shared.lock();
        state.is_urgent = true;
        while state.is_busy || !state.waiting.is_empty() {
            if let Some(TensorFileError { path, defect }) = &state.failure
                && began.elapsed() >= FINAL_TIMEOUT
            {
                return Err(TrainError::Unsaved { path: path.clone(), defect: defect.clone() });
            }
            state = self.shared.wait(state);
        }
        state.is_urgent = false;
        Ok(())
    }
}

impl Drop for AsyncCheckpointWriter {
    /// Writes the queued checkpoints if possible.
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Locks the state. A poisoned lock is ignored, since every change of the state is complete.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change of the state, at most one second.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, RETRY[0]).unwrap_or_else(PoisonError::into_inner).0
    }

    fn write_all(&self, mut manager: CheckpointManager) {
        let mut pause = RETRY[0];
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.is_over {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(queued) = state.waiting.pop_front() else { return };
            state.is_busy = true;
            drop(state);
            let span = trace::span("write checkpoint");
            let result = manager.add(queued.step, &queued.checkpoint);
            drop(span);
            let mut state = self.lock();
            state.is_busy = false;
            match result {
                Ok(()) => {
                    if state.failure.take().is_some() {
                        tracing::info!("the checkpoint after step {} is written", queued.step);
                    }
                    pause = RETRY[0];
                    self.changed.notify_all();
                }
                Err(error) => {
                    if state.failure.is_none() {
                        tracing::warn!("{error}; training continues and the write is retried");
                    }
                    state.failure = Some(error);
                    // Retry unless a newer checkpoint replaces this one.
                    let is_best = queued.is_best();
                    if state.waiting.is_empty() || is_best && !state.waiting.iter().any(QueuedCheckpoint::is_best) {
                        state.waiting.push_front(queued);
                    }
                    self.changed.notify_all();
                    let failed = Instant::now();
                    while !state.is_over && failed.elapsed() < if state.is_urgent { RETRY[0] } else { pause } {
                        state = self.wait(state);
                    }
                    if state.is_over {
                        return;
                    }
                    pause = (pause * 2).min(RETRY[1]);
                }
            }
        }
    }
}
