//! Observer that writes a run to event files.

use std::path::Path;

use serde_json::Value;

use super::event::Event;
use super::file::EventFile;
use crate::telemetry::{EpochRecord, IterationRecord, Observer, PictureRecord, TelemetryError};

/// Writes an event for each step, each epoch and each image.
pub struct TensorBoard {
    file: EventFile,
    iterations_per_epoch: usize,
    /// Names of foreground classes or regions.
    classes: Vec<String>,
}

impl TensorBoard {
    /// Creates a file in `folder` for a run with `steps_done` completed steps. Returns `None`, with a warning, if this
    /// fails, since it must not end the run.
    pub fn begin(folder: &Path, steps_done: u64, iterations_per_epoch: usize, classes: Vec<String>) -> Option<Self> {
        match EventFile::begin(folder, steps_done) {
            Ok(file) => Some(Self { file, iterations_per_epoch, classes }),
            Err(error) => {
                tracing::warn!("{}: {error}; TensorBoard output disabled, training continues", folder.display());
                None
            }
        }
    }

    /// Returns the last step of an epoch, counted from 0 over the whole run.
    fn last_step(&self, epoch: usize) -> u64 {
        ((epoch + 1) * self.iterations_per_epoch).saturating_sub(1) as u64
    }

    /// Returns all numbers of a record by key; values of classes also by class name.
    fn scalars(&self, record: &EpochRecord) -> Vec<(String, f64)> {
        let record = serde_json::to_value(record).expect("a record of numbers is always valid JSON");
        let entries = record.as_object().into_iter().flatten();
        let scalars = entries.flat_map(|(key, value)| match value {
            Value::Array(values) => {
                let named = self.classes.iter().zip(values);
                named.filter_map(|(class, value)| Some((format!("epoch/{key}/{class}"), value.as_f64()?))).collect()
            }
            value => value.as_f64().map(|value| (format!("epoch/{key}"), value)).into_iter().collect::<Vec<_>>(),
        });
        scalars.collect()
    }
}

impl Observer for TensorBoard {
    fn iteration(&mut self, record: &IterationRecord) -> Result<(), TelemetryError> {
        let step = (record.epoch * self.iterations_per_epoch + record.iteration) as u64;
        let scalars = [("step/loss".to_owned(), record.loss), ("step/step_s".to_owned(), record.times.total)];
        self.file.add(&Event::scalars(step, scalars));
        Ok(())
    }

    fn picture(&mut self, record: &PictureRecord) -> Result<(), TelemetryError> {
        let PictureRecord { epoch, name, png, size } = record;
        self.file.add(&Event::image(self.last_step(*epoch), name, png.clone(), *size));
        Ok(())
    }

    fn epoch_finished(&mut self, record: &EpochRecord) -> Result<(), TelemetryError> {
        self.file.add(&Event::scalars(self.last_step(record.epoch), self.scalars(record)));
        Ok(())
    }
}
