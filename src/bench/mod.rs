//! Benchmarks of individual components: `nnunet-dist bench`.
//!
//! A benchmark runs its work several times, takes the median, and relates it to the measured peak of the machine
//! ([`Peak`]), so that results of different machines can be compared. `benches/peers` uses these results to compare
//! with other programs.

mod all_reduce;
mod checkpoint;
mod conv;
mod generated;
mod infer;
mod loader;
mod memory;
mod preprocess;
mod probe;
mod report;
mod resample;
mod step;
mod timing;

pub use all_reduce::AllReduceBench;
pub use checkpoint::checkpoint;
pub use conv::{ConvLayer, ConvTiming};
pub use generated::GeneratedStore;
pub use infer::{InferFolder, InferStub};
pub use loader::LoaderBench;
pub use memory::{StepMemory, peak_resident_bytes};
pub use preprocess::preprocess;
pub use probe::Peak;
pub use report::{Report, Row, Work};
pub use resample::resample;
pub use step::{StepBench, plain_network};
pub use timing::{Timings, measure};
