//! Benchmarks of individual components: `nnunet-dist bench`.
//!
//! A benchmark runs its work several times, takes the median, and relates it to the measured peak of the machine
//! ([`Peak`]), so that results of different machines can be compared. `benches/peers` uses these results to compare
//! with other programs.

mod all_reduce;
mod checkpoint;
mod conv;
mod infer;
mod loader;
mod measure;
mod preprocess;
mod probe;
mod report;
mod step;

pub use all_reduce::AllReduceBench;
pub use checkpoint::checkpoint;
pub use conv::{ConvLayer, ConvTiming};
pub use infer::{InferFolder, InferStub};
pub use loader::{GeneratedStore, LoaderBench};
pub use measure::{Timings, measure, peak_resident_bytes};
pub use preprocess::{preprocess, resample};
pub use probe::Peak;
pub use report::{Report, Row, Work};
pub use step::{StepBench, StepMemory, plain_network};
