//! The seam between a run and those who watch it.

use std::io;
use std::path::{Path, PathBuf};

use super::{EpochRecord, IterationRecord, PictureRecord, RunState};

/// An observer that could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A file can be neither read nor written.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// A file, or what was to become of it, is not what it should be.
    #[error("{path}: {defect}")]
    Invalid { path: PathBuf, defect: String },
}

impl TelemetryError {
    /// The system's error with the file at `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// A defect of the file at `path`.
    pub fn invalid(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self::Invalid { path: path.to_owned(), defect: defect.to_string() }
    }

    /// What is wrong, without the path.
    pub fn defect(&self) -> String {
        match self {
            Self::Io { source, .. } => source.to_string(),
            Self::Invalid { defect, .. } => defect.clone(),
        }
    }
}

/// Watches a run.
pub trait Observer: Send {
    /// A training step is done.
    ///
    /// # Errors
    /// Ends the run: a log with holes is no log.
    fn iteration(&mut self, _: &IterationRecord) -> Result<(), TelemetryError> {
        Ok(())
    }

    /// There is something to see of an epoch, which is not over yet.
    ///
    /// # Errors
    /// Ends the run.
    fn picture(&mut self, _: &PictureRecord) -> Result<(), TelemetryError> {
        Ok(())
    }

    /// An epoch is done and its checkpoint, if one was due, is written.
    ///
    /// # Errors
    /// Ends the run.
    fn epoch_finished(&mut self, _: &EpochRecord) -> Result<(), TelemetryError> {
        Ok(())
    }

    /// The run is at something else now.
    ///
    /// # Errors
    /// Ends the run.
    fn run_is(&mut self, _: RunState) -> Result<(), TelemetryError> {
        Ok(())
    }
}

/// Any number of observers, told in order.
#[derive(Default)]
pub struct Observers(Vec<Box<dyn Observer>>);

impl Observers {
    /// Adds one.
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
