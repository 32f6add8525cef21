//! The training that the hosts share, and how it would have gone without anything special.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::work::RunDir;
use serde_json::Value;

use crate::hosts::succeed;
use crate::job::Running;
use crate::work::Workshop;

/// Each with one rank and one sample per step.
pub const HOSTS: usize = 3;

/// One per epoch, so that the log has the loss of each step.
pub const STEPS: usize = 20;

/// For a job that nothing disturbs.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A rank's part of it.
pub fn share(shop: &Workshop, run: &RunDir) -> Command {
    train(shop, run, 1, STEPS)
}

/// As [`share`] without an end.
pub fn endless_share(shop: &Workshop, run: &RunDir) -> Command {
    train(shop, run, 1, 1_000_000)
}

/// The whole of it in one process on one host.
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

/// Waits until a job has made so many steps.
#[track_caller]
pub fn wait_for_steps(job: &mut Running, run: &RunDir, steps: usize) {
    let began = Instant::now();
    while count_steps(run) < steps {
        assert!(!job.is_over() && began.elapsed() < PATIENCE, "{steps} steps never come\n{}", job.output());
        thread::sleep(Duration::from_millis(10));
    }
}

/// How many have been made so far.
pub fn count_steps(run: &RunDir) -> usize {
    fs::read_to_string(run.log()).map_or(0, |log| log.lines().count())
}

/// Every step has been made once, with the same loss: single precision adds in another order.
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
