//! The training that the hosts share, and the same training on one host for comparison.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::work::RunDir;
use serde_json::Value;

use super::hosts::succeed;
use crate::job::Running;
use crate::work::Workshop;

/// Number of hosts, each with one rank and one sample per step.
pub const HOSTS: usize = 3;

/// One step per epoch, so that the log has the loss of each step.
pub const STEPS: usize = 20;

/// Time limit of a job without faults.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The command of one rank of the training.
pub fn share(shop: &Workshop, run: &RunDir) -> Command {
    train(shop, run, 1, STEPS)
}

/// As [`share`], but it does not end.
pub fn endless_share(shop: &Workshop, run: &RunDir) -> Command {
    train(shop, run, 1, 1_000_000)
}

/// The whole training in one process on one host.
pub fn train_alone(shop: &Workshop) -> RunDir {
    let run = shop.run_dir("alone");
    succeed(train(shop, &run, HOSTS, STEPS));
    run
}

fn train(shop: &Workshop, run: &RunDir, batch_size: usize, steps: usize) -> Command {
    let mut command = shop.train(run);
    command.args(["--batch-size", &batch_size.to_string(), "--epochs", &steps.to_string()]);
    command.args(["--iters-per-epoch", "1", "--val-iters", "8"]);
    command
}

/// Waits until a job has made `steps` steps.
#[track_caller]
pub fn wait_for_steps(job: &mut Running, run: &RunDir, steps: usize) {
    let began = Instant::now();
    while count_steps(run) < steps {
        assert!(!job.is_over() && began.elapsed() < PATIENCE, "not {steps} steps in time\n{}", job.output());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Number of steps made so far.
pub fn count_steps(run: &RunDir) -> usize {
    fs::read_to_string(run.log()).map_or(0, |log| log.lines().count())
}

/// Asserts that every step was made once, with the same loss up to the order of additions in single precision.
#[track_caller]
pub fn assert_same_losses(expected: &RunDir, found: &RunDir) {
    let (expected, found) = (losses(expected), losses(found));
    assert_eq!((expected.len(), found.len()), (STEPS, STEPS));
    for (step, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert!((expected - found).abs() <= 1e-4, "step {step}: {found} instead of {expected}");
    }
}

fn losses(run: &RunDir) -> Vec<f64> {
    let log = fs::read_to_string(run.log()).unwrap();
    log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["train_loss"].as_f64().unwrap()).collect()
}
