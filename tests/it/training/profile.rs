//! `train --profile`: a timeline of some steps of all ranks, with a common clock.

use std::collections::BTreeSet;
use std::fs;

use nnunet_dist::work::RunDir;
use serde_json::Value;

use crate::job;
use crate::work::{Workshop, tensors_of};

/// Spans that every step has, with and without communication.
const PARTS: [&str; 6] = ["wait for data", "forward", "loss", "gradient of the loss", "backward", "update"];

#[test]
fn steps_are_recorded_from_the_second_on_without_changing_the_training() {
    let shop = Workshop::new();
    let [plain, recorded] = ["plain", "recorded"].map(|name| shop.run_dir(name));
    let train = |run: &RunDir, flags: &[&str]| {
        let mut command = shop.train(run);
        command.args(["--iters-per-epoch", "3"]).args(flags);
        command
    };
    assert!(train(&plain, &[]).status().unwrap().success());
    let job = job::observe(train(&recorded, &["--profile", "4"]));
    assert!(job.status.success(), "{}", job.output);
    job.says("trace.json: 4 step(s) of 1 rank(s)");
    job.says("backward");
    assert!(!plain.trace().exists());
    assert!(tensors_of(&plain.checkpoint_latest()) == tensors_of(&recorded.checkpoint_latest()));

    let trace = Trace::read(&recorded);
    let steps: Vec<_> = trace.spans("step", 0).iter().map(|span| span["args"]["of"].clone()).collect();
    assert_eq!(steps, ["epoch 1, step 2", "epoch 1, step 3", "epoch 2, step 1", "epoch 2, step 2"]);
    trace.steps_have(&PARTS, 0);
    for name in ["validation", "sample", "augment", "write checkpoint"] {
        assert!(!trace.spans(name, 0).is_empty(), "no {name}");
    }
    let names: BTreeSet<_> = trace.of("M").filter_map(|entry| entry["args"]["name"].as_str()).collect();
    assert!(names.contains("loader-0"), "{names:?}");
}

#[test]
fn all_processes_under_mpirun_have_a_common_clock() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let mut rank = shop.train(&run);
    rank.args(["--batch-size", "1", "--epochs", "1", "--iters-per-epoch", "5", "--profile", "3"]);
    let job = job::observe(job::in_parallel(launcher, 2, &[], &rank));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    job.says("3 step(s) of 2 rank(s)");

    let trace = Trace::read(&run);
    for rank in 0..2 {
        trace.steps_have(&PARTS, rank);
        trace.steps_have(&["sum of losses over ranks", "wait for gradients"], rank);
        // At least one bucket per step.
        let begun = trace.of("b").filter(|entry| entry["pid"] == rank).count();
        assert!(begun >= 3, "{begun}");
    }
    assert_eq!(trace.of("b").count(), trace.of("e").count());
    // Collectives keep every rank in a step until the other one has entered it.
    let [first, second] = [0, 1].map(|rank| trace.spans("step", rank));
    for (a, b) in first.iter().zip(&second) {
        assert!(begin(a) < end(b) && begin(b) < end(a), "{a} {b}");
    }
}

/// A trace file.
struct Trace(Vec<Value>);

impl Trace {
    fn read(run: &RunDir) -> Self {
        let trace: Value = serde_json::from_slice(&fs::read(run.trace()).unwrap()).unwrap();
        Self(trace["traceEvents"].as_array().unwrap().clone())
    }

    /// The entries of a phase.
    fn of(&self, phase: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |entry| entry["ph"] == phase)
    }

    /// The spans with a name, of a rank.
    fn spans(&self, name: &str, rank: usize) -> Vec<&Value> {
        let mut spans: Vec<_> = self.of("X").filter(|entry| entry["name"] == name && entry["pid"] == rank).collect();
        spans.sort_by(|a, b| begin(a).total_cmp(&begin(b)));
        spans
    }

    /// Asserts that each step of a rank has each of these spans once, on its own thread.
    fn steps_have(&self, parts: &[&str], rank: usize) {
        for step in self.spans("step", rank) {
            for part in parts {
                let spans = self.spans(part, rank);
                let within = spans.iter().filter(|span| begin(span) >= begin(step) && end(span) <= end(step));
                assert_eq!(within.filter(|span| span["tid"] == step["tid"]).count(), 1, "{part} of {step}");
            }
        }
    }
}

fn begin(entry: &Value) -> f64 {
    entry["ts"].as_f64().unwrap()
}

fn end(entry: &Value) -> f64 {
    // Tolerance for the rounding of a sum.
    begin(entry) + entry["dur"].as_f64().unwrap() + 1e-3
}
