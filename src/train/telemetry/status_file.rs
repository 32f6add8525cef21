//! `status.json`: current status of a run, for external monitoring.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{EpochRecord, IterationRecord, Observer, RunState, TelemetryError};
use nnunet_core::fsio;

/// Minimum time between two writes of the file.
const INTERVAL: Duration = Duration::from_secs(1);

/// The contents of `status.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub state: RunState,
    /// Epoch of the last step, from 0.
    pub epoch: usize,
    pub iteration: usize,
    /// Number of steps since the start of the run.
    pub step: u64,
    pub epochs: usize,
    pub iterations_per_epoch: usize,
    pub world_size: usize,
    /// Process ID of rank 0.
    pub pid: u32,
    /// Time of writing, in seconds since 1970.
    pub updated_unix: u64,
}

/// Writes `status.json`, about once a second during training.
pub struct StatusFile(StatusHandle);

/// Access to the file for other threads.
#[derive(Clone)]
pub struct StatusHandle(Arc<Mutex<StatusWriter>>);

struct StatusWriter {
    path: PathBuf,
    status: Status,
    written: Option<Instant>,
    /// Whether the status has changed since the last write.
    stale: bool,
    warned: bool,
}

impl StatusFile {
    /// Creates the writer; the file is first written after the first step.
    pub fn new(path: &Path, epochs: usize, iterations_per_epoch: usize, world_size: usize) -> Self {
        let status = Status {
            state: RunState::Training,
            epoch: 0,
            iteration: 0,
            step: 0,
            epochs,
            iterations_per_epoch,
            world_size,
            pid: std::process::id(),
            updated_unix: 0,
        };
        let path = path.to_owned();
        let writer = StatusWriter { path, status, written: None, stale: false, warned: false };
        Self(StatusHandle(Arc::new(Mutex::new(writer))))
    }

    /// Returns access to the file for other threads.
    pub fn handle(&self) -> StatusHandle {
        self.0.clone()
    }
}

impl StatusHandle {
    /// Changes the state and writes the file.
    pub fn set_state(&self, state: RunState) {
        let mut writer = self.lock();
        writer.status.state = state;
        writer.write();
    }

    fn lock(&self) -> MutexGuard<'_, StatusWriter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatusWriter {
    /// Writes the file. A failure only causes a warning, since it must not end the training.
    fn write(&mut self) {
        self.written = Some(Instant::now());
        self.stale = false;
        self.status.updated_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        if let Err(error) = fsio::write_json(&self.path, &self.status)
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!("{}: {error}; training continues without it", self.path.display());
        }
    }
}

impl Observer for StatusFile {
    fn iteration(&mut self, record: &IterationRecord) -> Result<(), TelemetryError> {
        let mut writer = self.0.lock();
        writer.status.epoch = record.epoch;
        writer.status.iteration = record.iteration;
        writer.status.step = (record.epoch * writer.status.iterations_per_epoch + record.iteration + 1) as u64;
        writer.stale = true;
        if writer.written.is_none_or(|written| written.elapsed() >= INTERVAL) {
            writer.write();
        }
        Ok(())
    }

    fn epoch_finished(&mut self, _: &EpochRecord) -> Result<(), TelemetryError> {
        self.0.lock().write();
        Ok(())
    }

    fn run_is(&mut self, state: RunState) -> Result<(), TelemetryError> {
        self.0.set_state(state);
        Ok(())
    }
}

impl Drop for StatusFile {
    /// Writes the last step of a failed run.
    fn drop(&mut self) {
        let mut writer = self.0.lock();
        if writer.stale {
            writer.write();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_where_the_run_stands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.json");
        let mut file = StatusFile::new(&path, 3, 10, 2);
        let read = || serde_json::from_slice::<Status>(&std::fs::read(&path).unwrap()).unwrap();
        file.iteration(&IterationRecord { epoch: 1, iteration: 4, ..Default::default() }).unwrap();
        assert_eq!((read().step, read().state, read().world_size), (15, RunState::Training, 2));
        file.iteration(&IterationRecord { epoch: 1, iteration: 5, ..Default::default() }).unwrap();
        file.run_is(RunState::Stopped).unwrap();
        assert_eq!((read().step, read().state), (16, RunState::Stopped));
        file.iteration(&IterationRecord { epoch: 1, iteration: 6, ..Default::default() }).unwrap();
        drop(file);
        assert_eq!(read().step, 17);
    }
}
