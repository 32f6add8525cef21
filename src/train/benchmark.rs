//! Benchmark of training steps: as in a run, but without validation, evaluation and output files.

use std::time::{Duration, Instant};

use super::TrainError;
use super::context::TrainingContext;
use super::step::StepMetrics;
use super::stragglers::{JobTimes, RankTimes};
use super::trainer_builder::{Outputs, reducer_options};
use crate::config::RunConfig;
use nnunet_comm::distributed::Communicator;
use nnunet_data::work::WorkDir;
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};

/// Result of the benchmark.
pub struct StepBenchmark {
    /// Times per step, over all ranks.
    pub times: JobTimes,
    /// Total number of gradient values.
    pub gradient_values: usize,
    /// Number of values in the bucket that is sent last.
    pub last_bucket_values: usize,
}

/// Runs `warm_up` steps and then `steps` measured steps. A collective.
///
/// # Errors
/// Same as for a run.
pub fn benchmark_steps(
    config: &RunConfig,
    work: &WorkDir,
    comm: &dyn Communicator,
    warm_up: usize,
    steps: usize,
) -> Result<StepBenchmark, TrainError> {
    on_device(config.device, config.precision, comm, Steps { config, work, comm, warm_up, steps })?
}

struct Steps<'a> {
    config: &'a RunConfig,
    work: &'a WorkDir,
    comm: &'a dyn Communicator,
    warm_up: usize,
    steps: usize,
}

impl OnDevice for Steps<'_> {
    type Output = Result<StepBenchmark, TrainError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let Self { config, work, comm, warm_up, steps } = self;
        let mut config = config.clone();
        config.training.epochs = 1;
        config.training.iterations_per_epoch = warm_up + steps;
        config.training.validation_iterations = 0;
        let context = TrainingContext::open(&config, work, comm)?;
        let mut trainer = context.build_trainer::<B>(false, None, device, |_| Ok(Outputs::default()))?;
        for iteration in 0..warm_up {
            trainer.train_step(0, iteration)?;
            trainer.finished_steps()?;
        }
        trainer.train_batches.take_wait();
        comm.barrier("end of the warm-up")?;
        let (began, mut communication) = (Instant::now(), Duration::ZERO);
        for iteration in warm_up..warm_up + steps {
            comm.enter_phase(&format!("step {}", iteration + 1));
            trainer.train_step(0, iteration)?;
            if !trainer.step.is_queued() {
                communication += communication_of(&trainer.finished_steps()?);
            }
        }
        communication += communication_of(&trainer.finished_steps()?);
        let per_step = |duration: Duration| duration.as_secs_f64() / steps as f64;
        let own = RankTimes {
            total: per_step(began.elapsed()),
            data_wait: per_step(trainer.train_batches.take_wait()),
            communication: per_step(communication),
        };
        let layout = trainer.step.bucket_layout(reducer_options(&config).bucket_len);
        Ok(StepBenchmark {
            times: JobTimes::gather(own, comm)?,
            gradient_values: layout.buckets().iter().map(|bucket| bucket.len).sum(),
            last_bucket_values: layout.buckets().last().map_or(0, |bucket| bucket.len),
        })
    }
}

fn communication_of(steps: &[StepMetrics]) -> Duration {
    steps.iter().map(|step| step.communication).sum()
}
