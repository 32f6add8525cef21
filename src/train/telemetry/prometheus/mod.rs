//! Prometheus metrics of a run: every rank serves `GET /metrics` on its own port, in the text format of Prometheus.
//!
//! An [`Observer`](super::Observer) keeps a [`Snapshot`](snapshot::Snapshot) up to date and records it with the facade of
//! the crate `metrics` ([`collector`]) in a [`MetricsExporter`]. On a request, a separate thread ([`server`]) reads the
//! memory of the process and, from NVML, of the GPU (`gpu`), and renders all metrics as text.

mod collector;
mod endpoint;
mod exporter;
#[cfg(feature = "nccl")]
mod gpu;
mod server;
mod snapshot;

pub use collector::GpuReading;
pub use endpoint::{MetricsEndpoint, MetricsObserver};
pub use exporter::{CONTENT_TYPE, MetricsExporter};
#[cfg(feature = "nccl")]
pub use gpu::GpuMeter;
