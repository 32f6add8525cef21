//! Real MPI jobs: collectives, and the end of a job when one of its ranks fails.
//!
//! The processes of a job run this test program; an environment variable selects their task.

use std::env;
use std::thread;
use std::time::Duration;

use crate::job;
use crate::job::{Job, PATIENCE, in_parallel, is_installed, is_open_mpi, me, observe};
use crate::skip::skip;
use nnunet_dist::distributed::{self, CommDtype, CommError, Communicator, ReduceOp};

/// The environment variable with the task of a process.
const PART: &str = "NNUNET_TEST_PART";

/// Not a test: run by each process of a job.
#[test]
fn part_of_a_rank() {
    let Ok(part) = env::var(PART) else { return };
    let comm = distributed::init().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(4)
    });
    match part.as_str() {
        "collectives" => parts::collectives(&*comm),
        "large" => parts::large(&*comm),
        "buckets" => parts::buckets(&*comm),
        "frozen" => parts::frozen(&*comm),
        "frozen-first" => parts::frozen_first(&*comm),
        "hanging" => parts::hanging(&*comm),
        "slow" => parts::slow(&*comm),
        "places" => parts::places(&*comm),
        "disagreement" => parts::disagreement(&*comm),
        "panic" => parts::panic(&*comm),
        "panic-in-thread" => parts::panic_in_thread(&*comm),
        "abort" => parts::abort(&*comm),
        "killed" => parts::killed(&*comm),
        "failure" => {
            let error = parts::failure(&*comm).unwrap_err();
            drop(comm);
            eprintln!("error: {error}");
            std::process::exit(75);
        }
        unknown => panic!("no such part: {unknown}"),
    }
    println!("rank {} of {} is done", comm.rank(), comm.world_size());
}

/// The tasks of the ranks.
mod parts {
    use super::*;

    pub fn collectives(comm: &dyn Communicator) {
        let (rank, size) = (comm.rank(), comm.world_size());
        reductions(comm);

        for root in 0..size {
            let mut values = [rank as f32, 0.5];
            comm.broadcast(&mut values, root, "weights").unwrap();
            assert_eq!(values, [root as f32, 0.5]);
            let mut bytes = vec![rank as u8; 3];
            comm.broadcast_bytes(&mut bytes, root, "seed").unwrap();
            assert_eq!(bytes, vec![root as u8; 3]);
        }

        // Rank 0 sends nothing, each other rank more than the one before.
        let message = |rank: usize| (0..rank * 1000).map(|i| (i * 7 + rank) as u8).collect::<Vec<_>>();
        let messages = comm.all_gather_bytes(&message(rank), "names").unwrap();
        assert_eq!(messages, (0..size).map(message).collect::<Vec<_>>());
        assert_eq!(comm.all_gather_bytes(&[], "nothing").unwrap(), vec![Vec::<u8>::new(); size]);

        distributed::check_consistency(comm, "settings", b"the same").unwrap();
        comm.barrier("end").unwrap();
    }

    fn reductions(comm: &dyn Communicator) {
        let (rank, size) = (comm.rank() as f64, comm.world_size() as f64);
        let sum_of_ranks = size * (size - 1.0) / 2.0;
        let cases = [
            (ReduceOp::Sum, [sum_of_ranks, size, -sum_of_ranks]),
            (ReduceOp::Mean, [sum_of_ranks / size, 1.0, -sum_of_ranks / size]),
            (ReduceOp::Max, [size - 1.0, 1.0, 0.0]),
        ];
        for (op, expected) in cases {
            let mut values = [rank, 1.0, -rank];
            comm.all_reduce_f64(&mut values, op, "metrics").unwrap();
            assert_eq!(values, expected, "{op:?}");
            let mut values = [rank as f32, 1.0, -rank as f32];
            comm.all_reduce(&mut values, op, "gradients").unwrap();
            assert_eq!(values, expected.map(|value| value as f32), "{op:?}");
            comm.all_reduce(&mut [], op, "nothing").unwrap();
        }
    }

    /// More than fits into one MPI call (2²⁴ elements, 2²⁶ gathered bytes), with an odd remainder.
    pub fn large(comm: &dyn Communicator) {
        let (rank, size) = (comm.rank() as f32, comm.world_size() as f32);
        let value = |i: usize| (i % 1009) as f32;
        let mut values: Vec<_> = (0..(1 << 24) + 12_345).map(|i| value(i) + rank).collect();
        comm.all_reduce(&mut values, ReduceOp::Mean, "gradients").unwrap();
        let shift = (size - 1.0) / 2.0;
        assert!(values.iter().enumerate().all(|(i, &mean)| mean == value(i) + shift));

        values.iter_mut().for_each(|value| *value += rank);
        comm.broadcast(&mut values, 1, "weights").unwrap();
        assert!(values.iter().enumerate().all(|(i, &copy)| copy == value(i) + shift + 1.0));

        let message = |rank: usize| (0..10 + rank * (1 << 26)).map(|i| (i % 251 + rank) as u8).collect::<Vec<_>>();
        let messages = comm.all_gather_bytes(&message(comm.rank()), "predictions").unwrap();
        assert!(messages == (0..comm.world_size()).map(message).collect::<Vec<_>>());
    }

    /// Buckets of many sizes, several in flight at a time, waited for in another order, with other collectives in
    /// between.
    pub fn buckets(comm: &dyn Communicator) {
        let (rank, size, reducer) = (comm.rank(), comm.world_size(), comm.reducer());
        // Integers, so that no order of additions rounds.
        let value = |rank: usize, i: usize| ((i * 31 + rank * 17) % 211) as f32 - 100.0;
        let lengths = [0, 1, size - 1, size, 1000, 65_536 * size, 65_536 * size + 1, 1_234_567];
        for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max] {
            let start = |length: usize| {
                let data = (0..length).map(|i| value(rank, i)).collect();
                reducer.start(data, op, CommDtype::F32, "a bucket")
            };
            let mut works: Vec<_> = lengths.into_iter().map(start).collect();
            comm.barrier("between").unwrap();
            // Waited for in reverse order.
            for length in lengths.into_iter().rev() {
                let reduced = works.pop().unwrap().wait().unwrap();
                let expected = (0..length).map(|i| {
                    let values = (0..size).map(|rank| value(rank, i));
                    match op {
                        ReduceOp::Sum => values.sum(),
                        ReduceOp::Mean => values.sum::<f32>() / size as f32,
                        ReduceOp::Max => values.fold(f32::MIN, f32::max),
                    }
                });
                assert!(reduced.into_iter().eq(expected), "{op:?} of {length}");
            }
        }
        rounded_buckets(comm);
    }

    /// 16 bits on the wire lose precision, but all ranks get the same values.
    fn rounded_buckets(comm: &dyn Communicator) {
        let (rank, size) = (comm.rank(), comm.world_size());
        let value = |rank: usize, i: usize| ((i * 7 + rank * 3) as f32 * 0.37).sin() * 1000.0;
        let length = 200_001;
        for (comm_dtype, tolerance) in [(CommDtype::F32, 1e-3), (CommDtype::F16, 2.0), (CommDtype::Bf16, 16.0)] {
            let data = (0..length).map(|i| value(rank, i)).collect();
            let reduced = comm.reducer().start(data, ReduceOp::Mean, comm_dtype, "a bucket").wait().unwrap();
            for (i, mean) in reduced.iter().enumerate() {
                let expected = (0..size).map(|rank| value(rank, i)).sum::<f32>() / size as f32;
                assert!((mean - expected).abs() < tolerance, "{comm_dtype:?} at {i}: {mean} for {expected}");
            }
            distributed::check_consistency(comm, "the mean", bytes_of(&reduced)).unwrap();
        }
    }

    fn bytes_of(values: &[f32]) -> &[u8] {
        // SAFETY: floats are plain bytes.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
    }

    /// The last rank stops, as under a debugger or on a host that is swapping heavily.
    pub fn frozen(comm: &dyn Communicator) {
        comm.set_timeout(Duration::from_secs(8));
        comm.enter_phase("step 1");
        comm.barrier("all have begun").unwrap();
        // Long enough for its first heartbeat.
        thread::sleep(Duration::from_millis(2500));
        comm.enter_phase("step 2");
        if comm.rank() + 1 == comm.world_size() {
            // SAFETY: no preconditions.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
        let bucket = comm.reducer().start(vec![0.0; 100_000], ReduceOp::Mean, CommDtype::F32, "bucket 3 of 4");
        let error = bucket.wait().unwrap_err();
        comm.abort(75, &error.to_string());
    }

    /// Rank 0, which runs the heartbeat server, stops.
    pub fn frozen_first(comm: &dyn Communicator) {
        comm.set_timeout(Duration::from_secs(8));
        comm.enter_phase("step 1");
        comm.barrier("all have begun").unwrap();
        thread::sleep(Duration::from_millis(1500));
        if comm.rank() == 0 {
            // SAFETY: no preconditions.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
        let error = comm.barrier("the end that never comes").unwrap_err();
        comm.abort(75, &error.to_string());
    }

    /// The process of the last rank is alive, but its training makes no progress.
    pub fn hanging(comm: &dyn Communicator) {
        comm.set_timeout(Duration::from_secs(3));
        comm.barrier("all have begun").unwrap();
        if comm.rank() + 1 == comm.world_size() {
            comm.enter_phase("an endless loop");
            thread::sleep(2 * PATIENCE);
        }
        thread::sleep(Duration::from_secs(1));
        let error = comm.barrier("the end that never comes").unwrap_err();
        comm.abort(75, &error.to_string());
    }

    /// The last rank takes longer than the timeout, but reports progress.
    pub fn slow(comm: &dyn Communicator) {
        comm.set_timeout(Duration::from_secs(2));
        comm.barrier("all have begun").unwrap();
        if comm.rank() + 1 == comm.world_size() {
            for case in 0..10 {
                comm.enter_phase(&format!("case {case}"));
                thread::sleep(Duration::from_millis(500));
            }
        }
        comm.barrier("the cases").unwrap();
    }

    /// Prints values that the test compares with properties of this machine.
    pub fn places(comm: &dyn Communicator) {
        let variable = |name| env::var(name).unwrap_or_default();
        println!(
            "local {}/{} rayon {} omp {} {}",
            comm.local_rank(),
            comm.local_size(),
            rayon::current_num_threads(),
            variable("OMP_NUM_THREADS"),
            variable("OMP_WAIT_POLICY"),
        );
    }

    pub fn disagreement(comm: &dyn Communicator) {
        let settings = if comm.rank() == 1 { "lr = 0.1" } else { "lr = 0.01" };
        let error = distributed::check_consistency(comm, "settings", settings.as_bytes()).unwrap_err();
        println!("{error}");
    }

    pub fn panic(comm: &dyn Communicator) {
        if comm.rank() == 1 {
            panic!("injected panic");
        }
        comm.barrier("the end that never comes").unwrap();
    }

    pub fn panic_in_thread(comm: &dyn Communicator) {
        if comm.rank() == 1 {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(200));
                panic!("injected worker panic")
            });
            // Meanwhile this rank itself waits in MPI.
            comm.barrier("without the others").unwrap();
        }
        thread::sleep(2 * PATIENCE);
    }

    pub fn abort(comm: &dyn Communicator) {
        if comm.rank() == 1 {
            comm.abort(3, "case_7.nii.gz: unreadable");
        }
        comm.barrier("the end that never comes").unwrap();
    }

    pub fn failure(comm: &dyn Communicator) -> Result<(), CommError> {
        if comm.rank() == 1 {
            comm.broadcast(&mut [0.0], 99, "weights")?;
        }
        comm.barrier("the end that never comes")
    }

    pub fn killed(comm: &dyn Communicator) {
        comm.barrier("all have begun").unwrap();
        if comm.rank() == 1 {
            // SAFETY: no preconditions.
            unsafe { libc::raise(libc::SIGKILL) };
        }
        comm.barrier("the end that never comes").unwrap();
    }
}

#[test]
fn collectives_give_every_rank_the_right_result() {
    for ranks in [2, 3] {
        let Some(job) = run("collectives", ranks, &[]) else { return };
        job.succeeded(ranks);
    }
}

#[test]
fn buffers_of_any_length_are_exchanged() {
    let Some(job) = run("large", 2, &[]) else { return };
    job.succeeded(2);
}

#[test]
fn buckets_are_reduced_asynchronously_to_the_same_bits_on_all_ranks() {
    for ranks in [2, 3, 5] {
        let Some(job) = run("buckets", ranks, &[]) else { return };
        job.succeeded(ranks);
    }
}

#[test]
fn a_frozen_rank_is_named_and_ends_the_job() {
    let Some(job) = run("frozen", 3, &[]) else { return };
    job.failed_with(75);
    job.says("error: rank 0: all-reduce of bucket 3 of 4, at step 2, failed after 8.");
    job.says("no heartbeat from rank 2 on ");
}

#[test]
fn a_frozen_rank_0_is_named() {
    let Some(job) = run("frozen-first", 2, &[]) else { return };
    job.failed_with(75);
    job.says("error: rank 1: barrier of the end that never comes, at step 1, failed after ");
    job.says("no heartbeat from rank 0 on ");
}

#[test]
fn a_hanging_rank_is_named() {
    let Some(job) = run("hanging", 3, &[]) else { return };
    job.failed_with(75);
    job.says("rank 2 on ");
    job.says("is alive but has made no progress for ");
    job.says("in an endless loop");
}

#[test]
fn a_rank_that_is_slow_is_waited_for() {
    let Some(job) = run("slow", 3, &[]) else { return };
    job.succeeded(3);
}

#[test]
fn ranks_of_a_host_divide_its_cores() {
    let cores = thread::available_parallelism().unwrap().get();
    for ranks in [2, 3] {
        let Some(job) = run("places", ranks, &["--bind-to", "none"]) else { return };
        job.succeeded(ranks);
        let share = (cores / ranks).max(1);
        for rank in 0..ranks {
            job.says(&format!("local {rank}/{ranks} rayon {share} omp {share} passive"));
        }
    }
}

#[test]
fn ranks_bound_to_a_core_each_are_not_divided_again() {
    if thread::available_parallelism().unwrap().get() < 2 {
        skip("needs two cores");
        return;
    }
    let Some(job) = run("places", 2, &["--bind-to", "core"]) else { return };
    job.succeeded(2);
    job.says("local 0/2 rayon 1 omp 1 passive");
    job.says("local 1/2 rayon 1 omp 1 passive");
}

#[test]
fn the_rank_with_other_settings_is_named_by_all() {
    let Some(job) = run("disagreement", 3, &[]) else { return };
    job.succeeded(3);
    for rank in 0..3 {
        job.says(&format!("rank {rank}: consistency check of settings failed"));
    }
    assert_eq!(job.output.matches("rank 1 differs from the other 2").count(), 3, "{}", job.output);
}

#[test]
fn a_panic_on_one_rank_ends_the_job() {
    let Some(job) = run("panic", 3, &[]) else { return };
    job.failed_with(101);
    job.says("rank 1: panic: injected panic at tests/it/distributed/mpi.rs:");
}

#[test]
fn a_panic_in_a_thread_of_one_rank_ends_the_job() {
    let Some(job) = run("panic-in-thread", 2, &[]) else { return };
    job.failed_with(101);
    job.says("rank 1: panic: injected worker panic at tests/it/distributed/mpi.rs:");
}

#[test]
fn an_error_on_one_rank_ends_the_job_with_its_code() {
    let Some(job) = run("abort", 3, &[]) else { return };
    job.failed_with(3);
    job.says("error: rank 1: case_7.nii.gz: unreadable");
}

/// The rank must not wait for the others when it drops the communicator.
#[test]
fn a_collective_that_fails_on_one_rank_is_an_error_and_ends_the_job() {
    let Some(job) = run("failure", 3, &[]) else { return };
    assert!(!job.status.success(), "{}", job.output);
    job.says("error: rank 1: broadcast of weights failed after ");
}

#[test]
fn a_rank_that_is_killed_ends_the_job() {
    let Some(job) = run("killed", 3, &[]) else { return };
    assert!(!job.status.success(), "{}", job.output);
    // Messages of the launcher.
    job.says(if is_open_mpi() { "process rank 1 with PID" } else { "BAD TERMINATION" });
}

/// Otherwise each process would be a job of its own, and all would write to the same files.
#[test]
fn the_launcher_of_another_mpi_is_refused() {
    let (stranger, ours) = if is_open_mpi() { ("mpirun.mpich", "Open MPI") } else { ("mpirun.openmpi", "MPICH") };
    if !is_installed(stranger) {
        skip(format_args!("no {stranger}"));
        return;
    }
    let job = observe(in_parallel(stranger, 2, &[], &me(module_path!(), PART, "places")));
    assert!(!job.status.success(), "{}", job.output);
    job.says("the launcher started 2 processes, but");
    job.says(ours);
}

#[test]
fn a_process_by_itself_needs_no_launcher() {
    let job = observe(me(module_path!(), PART, "collectives"));
    job.succeeded(1);
}

/// Runs a job under the launcher of this build's MPI library; `None` without one.
fn run(part: &str, ranks: usize, open_mpi_flags: &[&str]) -> Option<Job> {
    let launcher = job::launcher()?;
    if is_open_mpi() && is_installed("mpirun.mpich") {
        println!("not tested: mpirun.mpich (built against Open MPI)");
    }
    let flags = if is_open_mpi() { open_mpi_flags } else { &[] };
    Some(observe(in_parallel(launcher, ranks, flags, &me(module_path!(), PART, part))))
}
