//! How fast the parts are, each alone: `nnunet-dist bench`.
//!
//! A benchmark runs its work a few times, takes the median, and sets it against what this machine can do at most
//! ([`Peak`], measured too), so that a figure from another machine can be judged. Comparisons with other programs are
//! made of these figures by `benches/peers`.

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
