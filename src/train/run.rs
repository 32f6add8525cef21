//! A whole training run, on this rank.

use super::held_out::evaluate_held_out;
use super::setup::Job;
use super::{Progress, TrainError};
use crate::backend::{ComputeBackend, Cpu};
use crate::config::{Device, RunConfig, WorkDir};
use crate::dist::Communicator;
use crate::eval::Summary;
use crate::telemetry::{JsonLines, Observers, ProgressBar, ProgressPlot};

/// Trains one fold to its last epoch, from `checkpoint_latest` if `resume` says so, and predicts and evaluates the cases
/// it has held out. All ranks of the job call this alike; rank 0 gets the evaluation.
///
/// # Errors
/// On one rank or on several: the caller must see to it that the others do not wait for those that failed.
pub fn run(
    config: &RunConfig,
    work: &WorkDir,
    comm: &dyn Communicator,
    resume: bool,
) -> Result<Option<Summary>, TrainError> {
    match config.device {
        Device::Cpu => run_on::<Cpu>(config, work, comm, resume, Default::default()),
        #[cfg(feature = "cuda")]
        Device::Cuda => {
            let device = burn::backend::cuda::CudaDevice::new(comm.local_rank());
            run_on::<crate::backend::Gpu>(config, work, comm, resume, device)
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda => Err(TrainError::Device("cuda")),
    }
}

fn run_on<B: ComputeBackend>(
    config: &RunConfig,
    work: &WorkDir,
    comm: &dyn Communicator,
    resume: bool,
    device: B::Device,
) -> Result<Option<Summary>, TrainError> {
    let job = Job::open(config, work, comm)?;
    let mut trainer = job.trainer::<B>(resume, device, |progress| match comm.rank() {
        0 => observers(config, comm, progress),
        _ => Ok(Observers::default()),
    })?;
    announce(&job, &trainer.progress);
    trainer.train()?;
    let network = trainer.step.network.valid();
    // Its loader threads and buffers are not needed any more.
    let device = trainer.step.device.clone();
    drop(trainer);
    evaluate_held_out(&job, work, network, device)
}

/// Prepares the run directory and what is written to it.
fn observers(config: &RunConfig, comm: &dyn Communicator, progress: &Progress) -> Result<Observers, TrainError> {
    config.save()?;
    let run = config.run_dir();
    let training = &config.training;
    let global_batch_size = training.batch_size * comm.world_size();
    let log = JsonLines::open(&run.log(), progress.next_epoch)?;
    Ok(Observers::default().with(log).with(ProgressPlot::new(&run.progress(), &run.log())?).with(ProgressBar::new(
        progress.next_epoch,
        training.epochs,
        training.iterations_per_epoch,
        global_batch_size,
    )))
}

fn announce(job: &Job, progress: &Progress) {
    let Job { config, comm, train_cases, validation_cases, .. } = job;
    if comm.rank() > 0 {
        return;
    }
    let (per_rank, ranks) = (config.training.batch_size, comm.world_size());
    tracing::info!(
        "fold {}: {} training and {} validation cases; batch {per_rank} per rank on {ranks} rank(s), {} in all",
        config.fold,
        train_cases.len(),
        validation_cases.len(),
        per_rank * ranks,
    );
    match progress.next_epoch {
        0 => {}
        done if done >= config.training.epochs => {
            tracing::info!("all {done} epochs are done; on to the held-out cases")
        }
        done => tracing::info!("resuming at epoch {}", done + 1),
    }
}
