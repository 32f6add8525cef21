//! Checkpoints are written by a thread of their own: the steps wait for the copy of the weights alone, and a disk that is
//! full, slow or gone does not end a training.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::TrainError;
use nnunet_core::trace;
use nnunet_nn::checkpoint::{Checkpoint, History};
use nnunet_nn::model::TensorFileError;

/// Between two attempts to write the same checkpoint: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// How long the end of a training waits for a disk that has failed before.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes checkpoints of a run in the background, one after the other.
pub struct Saver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Of any change of the state.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What is to be written, the oldest first: the newest, and before it the best that is not written yet.
    waiting: VecDeque<Job>,
    /// Whether one is being written.
    is_busy: bool,
    /// Why the last attempt failed, if it did.
    failure: Option<TensorFileError>,
    /// Somebody waits.
    is_urgent: bool,
    is_over: bool,
}

struct Job {
    step: u64,
    checkpoint: Checkpoint,
}

impl Job {
    fn is_best(&self) -> bool {
        self.checkpoint.training.is_best
    }
}

impl Saver {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(history: History) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(move || theirs.write_all(history))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has a checkpoint written after so many steps of the run. One that still waits is left out, unless it was the best.
    pub fn save(&self, step: u64, checkpoint: Checkpoint) {
        let job = Job { step, checkpoint };
        let mut state = self.shared.lock();
        state.waiting.retain(|older| older.is_best() && !job.is_best());
        state.waiting.push_back(job);
        self.shared.changed.notify_all();
    }

    /// Whether the newest checkpoint could not be written so far.
    pub fn has_failed(&self) -> bool {
        self.shared.lock().failure.is_some()
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// The last checkpoint cannot be written, after several attempts.
    pub fn finish(&self) -> Result<(), TrainError> {
        let began = Instant::now();
        let mut state = self.shared.lock();
        state.is_urgent = true;
        while state.is_busy || !state.waiting.is_empty() {
            if let Some(TensorFileError { path, defect }) = &state.failure
                && began.elapsed() >= PATIENCE
            {
                return Err(TrainError::Unsaved { path: path.clone(), defect: defect.clone() });
            }
            state = self.shared.wait(state);
        }
        state.is_urgent = false;
        Ok(())
    }
}

impl Drop for Saver {
    /// What can be written is written.
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread that has panicked has left no half-done change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until something changes, or for a second.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, RETRY[0]).unwrap_or_else(PoisonError::into_inner).0
    }

    fn write_all(&self, mut history: History) {
        let mut pause = RETRY[0];
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.is_over {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(job) = state.waiting.pop_front() else { return };
            state.is_busy = true;
            drop(state);
            let span = trace::span("write checkpoint");
            let result = history.add(job.step, &job.checkpoint);
            drop(span);
            let mut state = self.lock();
            state.is_busy = false;
            match result {
                Ok(()) => {
                    if state.failure.take().is_some() {
                        tracing::info!("the checkpoint after step {} is written", job.step);
                    }
                    pause = RETRY[0];
                    self.changed.notify_all();
                }
                Err(error) => {
                    if state.failure.is_none() {
                        tracing::warn!("{error}; the training goes on, and it is tried again");
                    }
                    state.failure = Some(error);
                    // Tried again, unless what has come meanwhile takes its place.
                    let is_best = job.is_best();
                    if state.waiting.is_empty() || is_best && !state.waiting.iter().any(Job::is_best) {
                        state.waiting.push_front(job);
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
