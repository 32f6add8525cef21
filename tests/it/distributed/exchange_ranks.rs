//! Gradient averaging by real MPI processes: several batches per step, 16 bits on the wire, and errors when the ranks
//! differ.

use std::env;
use std::fs;

use nnunet_dist::backend::Cpu;
use nnunet_dist::distributed::{self, CommDtype, Communicator, Single};
use nnunet_dist::train::{GradientReducerOptions, TrainStep};

use tempfile::NamedTempFile;

use crate::job;
use crate::job::{Job, me, observe};
use crate::small;
use crate::small::{PLAIN, SAMPLES};

/// Environment variables: the task of a rank, and its output file.
const PART: &str = "NNUNET_TEST_PART";
const OUTPUT: &str = "NNUNET_TEST_OUTPUT";

#[test]
fn the_mean_does_not_depend_on_the_division_of_the_batch() {
    let whole = train(PLAIN, &Single);
    for ranks in [1, 2, 4] {
        for accumulate in [1, 2] {
            if ranks * accumulate <= SAMPLES {
                let options = GradientReducerOptions { accumulate, ..PLAIN };
                let weights = match ranks {
                    1 => train(options, &Single),
                    _ => match train_in_parallel(accumulate, "none", false, ranks) {
                        Some(weights) => weights,
                        None => return,
                    },
                };
                assert_close(&weights, &whole, 1e-5, &format!("{ranks} ranks, {accumulate} batches"));
            }
        }
    }
}

#[test]
fn sixteen_bit_communication_trains_nearly_the_same() {
    let whole = train(PLAIN, &Single);
    for (comm_dtype, tolerance) in [("fp16", 2e-3), ("bf16", 2e-2)] {
        let Some(weights) = train_in_parallel(1, comm_dtype, false, 2) else { return };
        assert_close(&weights, &whole, tolerance, comm_dtype);
    }
}

#[test]
fn gradient_checkpointing_trains_the_same() {
    let kept = train(PLAIN, &Single);
    let mut step = small::network().with_checkpointing(true);
    small::advance(&mut step, 1, &Single);
    assert_eq!(weights(&step), kept);
    for accumulate in [1, 2] {
        let Some(weights) = train_in_parallel(accumulate, "none", true, 2) else { return };
        assert_close(&weights, &kept, 1e-5, &format!("{accumulate} batches"));
    }
}

#[test]
fn a_rank_with_other_weights_is_named() {
    let Some(job) = run("desync", 3) else { return };
    job.failed_with(75);
    job.says("weight check after step 4 failed");
    job.says("rank 1 differs in its weights from the other 2");
}

#[test]
fn ranks_with_other_buckets_are_named() {
    let Some(job) = run("mismatch", 3) else { return };
    job.failed_with(3);
    job.says("consistency check of layout of the gradient buckets failed");
    job.says("rank 2 differs from the other 2");
}

/// Not a test: run by each rank.
#[test]
fn part_of_a_rank() {
    let Ok(part) = env::var(PART) else { return };
    let comm = distributed::init().unwrap();
    let words: Vec<&str> = part.split(' ').collect();
    match words[..] {
        ["train", accumulate, comm_dtype, checkpointing] => {
            let comm_dtype = match comm_dtype {
                "fp16" => CommDtype::F16,
                "bf16" => CommDtype::Bf16,
                _ => CommDtype::F32,
            };
            let options = GradientReducerOptions { accumulate: accumulate.parse().unwrap(), comm_dtype, ..PLAIN };
            let mut step =
                small::network().with_checkpointing(checkpointing == "true").connect(options, &*comm).unwrap();
            small::advance(&mut step, options.accumulate, &*comm);
            let weights = weights(&step);
            if comm.rank() == 0 {
                let bytes: Vec<u8> = weights.into_iter().flat_map(f32::to_le_bytes).collect();
                fs::write(env::var_os(OUTPUT).unwrap(), bytes).unwrap();
            }
        }
        ["desync"] => small::differ(&*comm),
        ["mismatch"] => {
            let bucket_len = if comm.rank() == 2 { 1000 } else { 2000 };
            let Err(error) = small::network().connect(GradientReducerOptions { bucket_len, ..PLAIN }, &*comm) else {
                panic!("the ranks do not detect it")
            };
            comm.abort(3, &error.to_string());
        }
        _ => panic!("no such part: {part}"),
    }
    println!("rank {} of {} is done", comm.rank(), comm.world_size());
}

/// The weights after some steps.
fn train(options: GradientReducerOptions, comm: &dyn Communicator) -> Vec<f32> {
    let mut step = small::network().connect(options, comm).unwrap();
    small::advance(&mut step, options.accumulate, comm);
    weights(&step)
}

fn weights(step: &TrainStep<Cpu>) -> Vec<f32> {
    step.network.state().into_iter().flat_map(|state| state.values).collect()
}

/// The weights of a job of several processes.
fn train_in_parallel(accumulate: usize, comm_dtype: &str, checkpointing: bool, ranks: usize) -> Option<Vec<f32>> {
    let output = NamedTempFile::new().unwrap();
    let mut rank = me(module_path!(), PART, &format!("train {accumulate} {comm_dtype} {checkpointing}"));
    rank.env(OUTPUT, output.path());
    observe(job::in_parallel(job::launcher()?, ranks, &[], &rank)).succeeded(ranks);
    let bytes = fs::read(output.path()).unwrap();
    Some(bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect())
}

#[track_caller]
fn assert_close(weights: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(weights.len(), expected.len(), "{what}");
    for (weight, expected) in weights.iter().zip(expected) {
        assert!((weight - expected).abs() <= tolerance, "{what}: {weight} for {expected}");
    }
}

fn run(part: &str, ranks: usize) -> Option<Job> {
    Some(observe(job::in_parallel(job::launcher()?, ranks, &[], &me(module_path!(), PART, part))))
}
