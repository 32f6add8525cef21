//! A whole training run, on this rank.

use std::time::Duration;

use clap::ValueEnum;

use super::held_out::evaluate_held_out;
use super::setup::Job;
use super::trainer::Ending;
use super::{Progress, TrainError};
use crate::backend::{ComputeBackend, OnDevice, on_device};
use crate::config::{RunConfig, WorkDir};
use crate::dist::Communicator;
use crate::eval::Summary;
use crate::telemetry::{JsonLines, Observer, Observers, ProgressBar, ProgressPlot, RunState, StatusFile};

/// Whether a run goes on from `checkpoint_latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resume {
    /// Begin anew.
    Never,
    /// Fail where there is no checkpoint.
    Always,
    /// Begin anew where there is no checkpoint.
    Auto,
}

/// How a run has ended.
#[derive(Debug)]
pub enum Outcome {
    /// The last epoch is done; rank 0 has the evaluation of the held-out cases, if there are any.
    Finished(Option<Summary>),
    /// It was asked to stop; the checkpoint is written.
    Stopped,
}

/// Trains one fold to its last epoch, from `checkpoint_latest` if `resume` says so, and predicts and evaluates the cases
/// it has held out. All ranks of the job call this alike.
///
/// # Errors
/// On one rank or on several: the caller must see to it that the others do not wait for those that failed.
pub fn run(config: &RunConfig, work: &WorkDir, comm: &dyn Communicator, resume: Resume) -> Result<Outcome, TrainError> {
    on_device(config.device, config.precision, comm, Run { config, work, comm, resume })?
}

struct Run<'a> {
    config: &'a RunConfig,
    work: &'a WorkDir,
    comm: &'a dyn Communicator,
    resume: Resume,
}

impl OnDevice for Run<'_> {
    type Output = Result<Outcome, TrainError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let Self { config, work, comm, resume } = self;
        comm.set_timeout(Duration::from_secs_f64(config.dist.first_timeout_s.max(config.dist.timeout_s)));
        let job = Job::open(config, work, comm)?;
        let resume = is_resumed(config, comm, resume)?;
        let mut trainer = job.trainer::<B>(resume, device, |progress| match comm.rank() {
            0 => observers(config, comm, progress),
            _ => Ok(Observers::default()),
        })?;
        announce(&job, &trainer.progress);
        if trainer.train()? == Ending::Stopped {
            return Ok(Outcome::Stopped);
        }
        trainer.observers.run_is(RunState::Predicting)?;
        let network = trainer.step.network.valid();
        // Its loader threads and buffers are not needed any more.
        let device = trainer.step.device.clone();
        let mut observers = std::mem::take(&mut trainer.observers);
        drop(trainer);
        let summary = evaluate_held_out(&job, work, network, device)?;
        observers.run_is(RunState::Finished)?;
        Ok(Outcome::Finished(summary))
    }
}

/// Whether there is something to go on from, as rank 0 sees it.
fn is_resumed(config: &RunConfig, comm: &dyn Communicator, resume: Resume) -> Result<bool, TrainError> {
    let mut exists = [u8::from(config.run_dir().checkpoint_latest().exists())];
    comm.broadcast_bytes(&mut exists, 0, "existence of a checkpoint")?;
    Ok(match resume {
        Resume::Never => false,
        Resume::Always => true,
        Resume::Auto => exists[0] > 0,
    })
}

/// Prepares the run directory and what is written to it.
fn observers(config: &RunConfig, comm: &dyn Communicator, progress: &Progress) -> Result<Observers, TrainError> {
    config.save()?;
    let run = config.run_dir();
    let training = &config.training;
    let global_batch_size = training.batch_size * training.accumulate * comm.world_size();
    let (epochs, iterations) = (training.epochs, training.iterations_per_epoch);
    let status = StatusFile::new(&run.status(), epochs, iterations, comm.world_size());
    let log = JsonLines::open(&run.log(), progress.next_epoch)?;
    Ok(Observers::default()
        .with(status)
        .with(log)
        .with(ProgressPlot::new(&run.progress(), &run.log())?)
        .with(ProgressBar::new(progress.next_epoch, epochs, iterations, global_batch_size)))
}

fn announce(job: &Job, progress: &Progress) {
    let Job { config, comm, train_cases, validation_cases, .. } = job;
    if comm.rank() > 0 {
        return;
    }
    let (per_rank, ranks) = (config.training.batch_size * config.training.accumulate, comm.world_size());
    tracing::info!(
        "fold {}: {} training and {} validation cases; batch {per_rank} per rank on {ranks} rank(s), {} in all",
        config.fold,
        train_cases.len(),
        validation_cases.len(),
        per_rank * ranks,
    );
    match progress.next_epoch {
        0 if progress.next_iteration == 0 => {}
        done if done >= config.training.epochs => {
            tracing::info!("all {done} epochs are done; on to the held-out cases")
        }
        done => tracing::info!("resuming at epoch {}, step {}", done + 1, progress.next_iteration + 1),
    }
}
