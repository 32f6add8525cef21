//! Metrics of a run for Prometheus: every rank answers `GET /metrics` at a port of its own, in the text format of
//! OpenMetrics.
//!
//! An [`Observer`](super::Observer) keeps a [`Snapshot`](snapshot::Snapshot) up to date, which costs nothing. Only when
//! somebody asks, a thread of its own ([`server`]) makes text of it ([`collector`]), asks the system for the process's memory
//! and NVML for the GPU's (`gpu`).

mod collector;
mod endpoint;
#[cfg(feature = "nccl")]
mod gpu;
mod server;
mod snapshot;

pub use collector::GpuReading;
pub use endpoint::{MetricsEndpoint, MetricsObserver};
#[cfg(feature = "nccl")]
pub use gpu::GpuMeter;
