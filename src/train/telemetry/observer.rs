//! Interface between a run and its observers.

use std::io;
use std::path::{Path, PathBuf};

use super::{EpochRecord, IterationRecord, PictureRecord, RunState};

/// Error of an observer.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// The contents of a file are invalid or cannot be created.
    #[error("{path}: {defect}")]
    Invalid { path: PathBuf, defect: String },
}

impl TelemetryError {
    /// Creates an error from an I/O error on the file at `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// Creates an error for invalid contents of the file at `path`.
    pub fn invalid(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self::Invalid { path: path.to_owned(), defect: defect.to_string() }
    }

    /// Returns the description of the error, without the path.
    pub fn defect(&self) -> String {
        match self {
            Self::Io { source, .. } => source.to_string(),
            Self::Invalid { defect, .. } => defect.clone(),
        }
    }
}

/// Observer of a run.
pub trait Observer: Send {
    /// Called after each training step.
    ///
    /// # Errors
    /// An error ends the run, since the log would be incomplete.
    fn iteration(&mut self, _: &IterationRecord) -> Result<(), TelemetryError> {
        Ok(())
    }

    /// Called when an image for the current epoch is available; the epoch is not finished yet.
    ///
    /// # Errors
    /// An error ends the run.
    fn picture(&mut self, _: &PictureRecord) -> Result<(), TelemetryError> {
        Ok(())
    }

    /// Called after each epoch, when its checkpoint, if one was due, is written.
    ///
    /// # Errors
    /// An error ends the run.
    fn epoch_finished(&mut self, _: &EpochRecord) -> Result<(), TelemetryError> {
        Ok(())
    }

    /// Called when the state of the run changes.
    ///
    /// # Errors
    /// An error ends the run.
    fn run_is(&mut self, _: RunState) -> Result<(), TelemetryError> {
        Ok(())
    }
}

/// A list of observers, called in order.
#[derive(Default)]
pub struct Observers(Vec<Box<dyn Observer>>);

impl Observers {
    /// Adds an observer.
    pub fn with(mut self, observer: impl Observer + 'static) -> Self {
        self.0.push(Box::new(observer));
        self
    }
}

impl Observer for Observers {
    fn iteration(&mut self, record: &IterationRecord) -> Result<(), TelemetryError> {
        self.0.iter_mut().try_for_each(|observer| observer.iteration(record))
    }

    fn picture(&mut self, record: &PictureRecord) -> Result<(), TelemetryError> {
        self.0.iter_mut().try_for_each(|observer| observer.picture(record))
    }

    fn epoch_finished(&mut self, record: &EpochRecord) -> Result<(), TelemetryError> {
        self.0.iter_mut().try_for_each(|observer| observer.epoch_finished(record))
    }

    fn run_is(&mut self, state: RunState) -> Result<(), TelemetryError> {
        self.0.iter_mut().try_for_each(|observer| observer.run_is(state))
    }
}
