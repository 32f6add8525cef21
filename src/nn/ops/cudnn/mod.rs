//! Convolutions by NVIDIA's cuDNN, through its graph API: for each problem its heuristics name a few engines, each is
//! measured once, and the fastest is noted in a file for later runs.
//!
//! cuDNN is opened at run time; without it, or for a problem for which it has no engine, the caller has other kernels.
//! Its work goes to a stream of our own, ordered against all other streams of the device by events: the host waits for
//! nothing.
//!
//! Source: cuDNN's documentation of the graph API ("Backend API") and of its numerical notes; `cudnn_graph.h`.

mod convolutions;
mod descriptor;
mod graph;
mod library;
mod plan;
mod problem;
mod table;

pub use convolutions::{ConvError, Convolutions, Options};
pub use library::Cudnn;
pub use problem::Problem;
pub use table::Choice;
