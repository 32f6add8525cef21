//! Measurements on the ranks of one job.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::AllReduceTime;
use nnunet_comm::distributed::{Communicator, ReduceOp};
use nnunet_data::work::WorkDir;
use nnunet_train::config::RunConfig;
use nnunet_train::{TrainError, measure_steps};

/// Measurement of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub ranks: usize,
    /// Samples per step over all ranks.
    pub global_batch_size: usize,
    pub steps: usize,
    /// Step time and its parts: means over steps and ranks, in seconds.
    pub step_s: f64,
    pub compute_s: f64,
    /// Waiting for data.
    pub data_wait_s: f64,
    /// Waiting for the slowest rank.
    pub straggler_s: f64,
    /// Communication that is not overlapped with computation.
    pub exposed_s: f64,
    /// Bytes of all gradients, and of the last bucket, in communication precision.
    pub gradient_bytes: usize,
    pub last_bucket_bytes: usize,
    /// Standalone all-reduces of several sizes.
    pub all_reduces: Vec<AllReduceTime>,
}

impl Measurement {
    /// Training samples per second over all ranks.
    pub fn samples_per_s(&self) -> f64 {
        self.global_batch_size as f64 / self.step_s
    }
}

/// Sizes of the all-reduces in bytes.
const SIZES: [usize; 5] = [1 << 10, 1 << 16, 1 << 20, 1 << 22, 1 << 24];
const REPETITIONS: usize = 7;

/// Measures this job. Collective: must be called on all ranks; all return the same result.
///
/// # Errors
/// Returns an error in the cases of training.
pub fn measure(
    config: &RunConfig,
    work: &WorkDir,
    comm: &dyn Communicator,
    warm_up: usize,
    steps: usize,
) -> Result<Measurement, TrainError> {
    let measured = measure_steps(config, work, comm, warm_up, steps)?;
    let times = measured.times;
    let all_reduces = SIZES.into_iter().map(|bytes| time_all_reduce(bytes, comm)).collect::<Result<_, _>>()?;
    Ok(Measurement {
        ranks: comm.world_size(),
        global_batch_size: config.training.batch_size * config.training.gradient_accumulation_steps * comm.world_size(),
        steps,
        step_s: times.mean.total,
        compute_s: times.mean.total - times.mean.communication - times.mean.data_wait,
        data_wait_s: times.mean.data_wait,
        straggler_s: times.straggling.min(times.mean.communication),
        exposed_s: (times.mean.communication - times.straggling).max(0.0),
        gradient_bytes: measured.gradient_values * config.dist.compression.bytes(),
        last_bucket_bytes: measured.last_bucket_values * config.dist.compression.bytes(),
        all_reduces,
    })
}

/// Median time of an all-reduce with the reducer that gradients use.
fn time_all_reduce(bytes: usize, comm: &dyn Communicator) -> Result<AllReduceTime, TrainError> {
    let (reducer, mut seconds) = (comm.reducer(), Vec::new());
    let mut data = vec![0.0f32; bytes / size_of::<f32>()];
    for _ in 0..REPETITIONS {
        comm.barrier("begin of an all-reduce")?;
        let began = Instant::now();
        data = reducer.start(data, ReduceOp::Mean, Default::default(), "a probe").wait()?;
        let mut elapsed = [began.elapsed().as_secs_f64()];
        comm.all_reduce_f64(&mut elapsed, ReduceOp::Max, "time of an all-reduce")?;
        seconds.push(elapsed[0]);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(AllReduceTime { ranks: comm.world_size(), bytes, seconds: seconds[REPETITIONS / 2] })
}
