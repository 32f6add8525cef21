//! Convolutions with NVIDIA cuDNN's graph API. For each problem, cuDNN's heuristics propose a few engines; each is
//! benchmarked once, and the fastest is cached in a file for later runs.
//!
//! cuDNN is loaded at run time. Without it, or for a problem that no engine supports, the caller uses other kernels.
//! Convolutions run on a separate stream that is ordered against all other streams of the device by events, so the host
//! never blocks.
//!
//! Source: cuDNN's documentation of the graph API ("Backend API") and its numerical notes; `cudnn_graph.h`.

mod algo_cache;
mod convolutions;
mod descriptor;
mod graph;
mod library;
mod plan;

pub use algo_cache::AlgoCacheEntry;
pub use convolutions::{ConvError, Convolutions, Options};
pub use graph::ConvProblem;
pub use library::Cudnn;
