//! Progress reporting of a run.
//!
//! Training calls an [`Observer`] after each step and each epoch. Each output has its own file or folder here:
//! `log.jsonl`, progress bar, `progress.png`, Prometheus endpoint, TensorBoard event files. Only rank 0 writes files.

mod json_lines;
mod observer;
mod plot;
mod progress_bar;
mod prometheus;
mod record;
mod status_file;
mod tensorboard;

pub use json_lines::{JsonLines, read_log};
pub use observer::{Observer, Observers, TelemetryError};
pub use plot::ProgressPlot;
pub use progress_bar::ProgressBar;
#[cfg(feature = "nccl")]
pub use prometheus::GpuMeter;
pub use prometheus::{CONTENT_TYPE, GpuReading, MetricsEndpoint, MetricsExporter, MetricsObserver};
pub use record::{EpochRecord, IterationRecord, PictureRecord, RunState, StepTimes};
pub use status_file::{Status, StatusFile, StatusHandle};
pub use tensorboard::TensorBoard;
