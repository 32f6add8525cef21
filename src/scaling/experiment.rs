//! Measurements on the ranks of one job, and the jobs: one per number of ranks, run with the launcher.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::ValueEnum;
use nnunet_comm::distributed::{Communicator, ReduceOp};
use nnunet_data::work::WorkDir;
use nnunet_train::config::RunConfig;
use nnunet_train::{TrainError, benchmark_steps};
use serde::{Deserialize, Serialize};

use super::AllReduceTime;

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
    let measured = benchmark_steps(config, work, comm, warm_up, steps)?;
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

/// Quantity that is kept constant while the number of ranks grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScalingMode {
    /// Batch size per rank.
    Weak,
    /// Global batch size over all ranks.
    Strong,
}

/// A series of jobs.
#[derive(Clone, Debug)]
pub struct Experiment {
    pub mode: ScalingMode,
    /// Numbers of ranks.
    pub ranks: Vec<usize>,
    /// Samples per rank or over all ranks, depending on `mode`.
    pub batch_size: usize,
    /// Threads per rank on the CPU, the same in all jobs; 0 divides the cores among the ranks.
    pub threads: usize,
    /// Arguments of `nnunet-dist` for one rank, without its batch size.
    pub arguments: Vec<String>,
    /// Additional arguments of the launcher, such as hosts or Slurm.
    pub launcher_arguments: Vec<String>,
}

/// An experiment that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScalingError {
    /// The settings are inconsistent.
    #[error("{0}")]
    Setting(String),
    /// The launcher is missing.
    #[error("{}: {source}; the launcher must be in the same folder as nnunet-dist", path.display())]
    Launcher { path: PathBuf, source: io::Error },
    /// A job failed; its ranks have printed the reason.
    #[error("the job with {ranks} rank(s) failed with {status}")]
    Job { ranks: usize, status: std::process::ExitStatus },
    /// A job printed no measurement.
    #[error("the job with {ranks} rank(s) printed no measurement")]
    NoMeasurement { ranks: usize },
    /// A result cannot be written.
    #[error("{}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Prefix of the line with a job's measurement.
pub(super) const MEASUREMENT_PREFIX: &str = "measurement: ";

impl Experiment {
    /// Checks the settings before the first job.
    ///
    /// # Errors
    /// Returns an error if there is no number of ranks, or if one does not divide the global batch of [`ScalingMode::Strong`].
    pub fn check(&self) -> Result<(), ScalingError> {
        if self.ranks.is_empty() || self.ranks.contains(&0) {
            return Err(ScalingError::Setting("--np: the numbers of ranks must be at least 1".into()));
        }
        match self.ranks.iter().find(|ranks| !self.batch_size.is_multiple_of(**ranks)) {
            Some(ranks) if self.mode == ScalingMode::Strong => Err(ScalingError::Setting(format!(
                "global batch {} cannot be divided over {ranks} ranks; --batch-size must be a multiple of every --np",
                self.batch_size
            ))),
            _ => Ok(()),
        }
    }

    /// Runs one job with `launcher` and returns its measurement. The standard error of the job is passed through.
    ///
    /// # Errors
    /// Returns an error if the launcher is missing or the job fails.
    pub fn run(&self, launcher: &Path, program: &Path, ranks: usize) -> Result<Measurement, ScalingError> {
        let per_rank = match self.mode {
            ScalingMode::Weak => self.batch_size,
            ScalingMode::Strong => self.batch_size / ranks,
        };
        let mut command = Command::new(launcher);
        command.args(["-np", &ranks.to_string()]).args(&self.launcher_arguments).arg("--program").arg(program);
        command.arg("--").args(&self.arguments).args(["--batch-size", &per_rank.to_string()]);
        if self.threads > 0 {
            let threads = self.threads.to_string();
            command.envs([("OMP_NUM_THREADS", &threads), ("RAYON_NUM_THREADS", &threads)]);
        }
        let missing = |source| ScalingError::Launcher { path: launcher.to_owned(), source };
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(missing)?;
        if !output.status.success() {
            return Err(ScalingError::Job { ranks, status: output.status });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let found = text.lines().find_map(|line| Some(line.split_once(MEASUREMENT_PREFIX)?.1));
        found.and_then(|json| serde_json::from_str(json).ok()).ok_or(ScalingError::NoMeasurement { ranks })
    }
}

impl Measurement {
    /// The line that rank 0 of a job prints for [`Experiment::run`].
    pub fn to_line(&self) -> String {
        let json = serde_json::to_string(self).expect("a struct of numbers is always valid JSON");
        format!("{MEASUREMENT_PREFIX}{json}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strong_experiment_needs_a_batch_that_can_be_divided() {
        let experiment = |mode, batch_size| Experiment {
            mode,
            ranks: vec![1, 2, 4],
            batch_size,
            threads: 1,
            arguments: Vec::new(),
            launcher_arguments: Vec::new(),
        };
        assert!(experiment(ScalingMode::Weak, 1).check().is_ok());
        assert!(experiment(ScalingMode::Strong, 8).check().is_ok());
        let error = experiment(ScalingMode::Strong, 6).check().unwrap_err().to_string();
        assert!(error.contains("6 cannot be divided over 4 ranks"), "{error}");
    }
}
