//! Prometheus metrics of a run: every rank serves `GET /metrics` on its own port, in the OpenMetrics text format.
//!
//! An [`Observer`](super::Observer) keeps a [`Snapshot`](snapshot::Snapshot) up to date at negligible cost. Only on a
//! request, a separate thread ([`server`]) encodes it as text ([`collector`]) and reads the memory of the process and,
//! from NVML, of the GPU (`gpu`).

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
