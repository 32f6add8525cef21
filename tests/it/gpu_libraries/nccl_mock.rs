//! All-reduces between GPUs by NCCL, on a mocked NCCL and a mocked CUDA driver (tests/mock), which are compiled here
//! and loaded like the real ones: the order of calls, and the handling of every kind of failure.

use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::distributed::{
    self, BufferDtype, CommDtype, CommError, Communicator, DeviceBuffer, NcclComm, NcclLink, ReduceOp, Timeouts,
};

use crate::job;
use crate::job::{Job, observe};
use crate::machine::{Machine, PART};
use crate::skip::skip;

/// All mocks; returns `None` and prints a line if there is no C compiler.
fn machine() -> Option<Machine> {
    Machine::with(module_path!(), &[("cuda.c", "libcuda.so.1", &[]), ("nccl.c", "libnccl.so.2", &[])])
}

/// Two ranks; `None` without a launcher.
fn run_two(machine: &Machine, part: &str, settings: &[(&str, &str)]) -> Option<Job> {
    if !cfg!(feature = "mpi") {
        skip("built without MPI");
        return None;
    }
    Some(observe(job::in_parallel(job::launcher()?, 2, &[], &machine.rank(part, settings))))
}

/// Asserts that no call used a communicator after its end.
#[track_caller]
fn was_left_in_order(machine: &Machine, aborts: usize) {
    machine.was_called("ncclCommAbort", aborts);
    let calls = machine.calls();
    assert!(!calls.iter().any(|line| line.contains("is gone") || line.contains("on nothing")), "{calls:#?}");
}

#[test]
fn reductions_are_ordered_by_events() {
    let Some(machine) = machine() else { return };
    machine.run("train", &[]).succeeded(1);
    let calls = machine.calls();
    let joined = calls.iter().position(|line| line.starts_with("ncclCommInitRankConfig")).unwrap();
    assert_eq!(calls[joined], "ncclCommInitRankConfig rank 0 of 1 blocking=0 magic=cafebeef");
    let bucket = |all_reduce| ["cuCtxRecordEvent", "cuStreamWaitEvent", all_reduce, "cuEventRecord"];
    let step = [
        bucket("ncclAllReduce count=3 type=7 op=4").as_slice(),
        bucket("ncclAllReduce count=3 type=7 op=0").as_slice(),
        bucket("ncclAllReduce count=3 type=7 op=2").as_slice(),
        &["cuEventRecord", "cuCtxWaitEvent"],
    ]
    .concat();
    let expected = [step.as_slice(), &step, &["ncclCommFinalize", "ncclCommDestroy"]].concat();
    assert_eq!(calls[joined + 1..], expected);
    // CU_STREAM_NON_BLOCKING
    machine.was_called("cuStreamCreate flags=1", 1);
    was_left_in_order(&machine, 0);
}

#[test]
fn two_ranks_connect_with_the_id_of_the_first() {
    let Some(machine) = machine() else { return };
    let Some(job) = run_two(&machine, "train", &[("MOCK_GPUS", "2")]) else { return };
    job.succeeded(2);
    machine.was_called("ncclGetUniqueId", 1);
    machine.was_called("ncclCommInitRankConfig rank 1 of 2", 1);
    machine.was_called("ncclCommDestroy", 2);
    was_left_in_order(&machine, 0);
}

#[test]
fn calls_in_progress_are_waited_for() {
    let Some(machine) = machine() else { return };
    machine.run("train", &[("MOCK_NCCL", "slow")]).succeeded(1);
    machine.was_called("ncclCommDestroy", 1);
    was_left_in_order(&machine, 0);
}

#[test]
fn an_old_driver_blocks_the_host_instead() {
    let libraries: [(&str, &str, &[&str]); 2] =
        [("cuda.c", "libcuda.so.1", &["-DOLD_DRIVER"]), ("nccl.c", "libnccl.so.2", &[])];
    let Some(machine) = Machine::with(module_path!(), &libraries) else { return };
    machine.run("train", &[]).succeeded(1);
    machine.was_called("cuCtxSynchronize", 7);
    machine.was_called("cuStreamWaitEvent", 0);
    was_left_in_order(&machine, 0);
    machine.forget_calls();
    // The host waits for a reduction that never completes, until it is aborted.
    let job = machine.run("fail", &[("MOCK_NCCL", "hangs")]);
    job.succeeded(1);
    job.says("NCCL all-reduce of bucket 0 failed after");
    was_left_in_order(&machine, 1);
}

#[test]
fn an_asynchronous_error_is_reported_by_the_next_call() {
    let Some(machine) = machine() else { return };
    let job = machine.run("fail", &[("MOCK_NCCL", "loses-peer")]);
    job.succeeded(1);
    job.says("Lost: rank 0: NCCL all-reduce of bucket 0 failed after");
    job.says("remote process exited or there was a network error (mocked)");
    was_left_in_order(&machine, 1);
    machine.was_called("ncclCommDestroy", 0);
}

#[test]
fn a_reduction_that_never_ends_is_aborted_once() {
    let Some(machine) = machine() else { return };
    let job = machine.run("fail", &[("MOCK_NCCL", "hangs")]);
    job.succeeded(1);
    job.says("Lost: rank 0: NCCL all-reduce of bucket 0 failed after");
    job.says("timeout: another rank is lost or hung");
    was_left_in_order(&machine, 1);
    machine.was_called("ncclCommDestroy", 0);
}

#[test]
fn a_device_failure_is_reported() {
    let Some(machine) = machine() else { return };
    let job = machine.run("fail", &[("MOCK_UNHEALTHY", "1")]);
    job.succeeded(1);
    job.says("cuEventQuery: CUDA_ERROR_ILLEGAL_ADDRESS");
    was_left_in_order(&machine, 1);
}

#[test]
fn a_call_that_does_not_come_back_ends_the_process() {
    let Some(machine) = machine() else { return };
    let job = machine.run("fail", &[("MOCK_NCCL", "stuck")]);
    job.failed_with(75);
    job.says("error: rank 0: a call to NCCL or the CUDA driver has hung for");
    // The thread is still inside NCCL.
    was_left_in_order(&machine, 0);
}

#[test]
fn joining_has_a_deadline() {
    let Some(machine) = machine() else { return };
    let job = machine.run("join", &[("MOCK_NCCL", "never-joins")]);
    job.says("Lost: rank 0: NCCL initialization failed after");
    job.says("another rank did not join");
    was_left_in_order(&machine, 1);
}

#[test]
fn an_nccl_error_is_reported_with_its_message() {
    let Some(machine) = machine() else { return };
    let job = machine.run("join", &[("MOCK_NCCL", "refuses")]);
    job.says("Unavailable: rank 0: NCCL initialization failed after");
    job.says("ncclCommInitRankConfig: invalid usage (mocked)");
    was_left_in_order(&machine, 1);
}

#[test]
fn a_missing_library_is_reported_with_a_remedy() {
    let Some(machine) = Machine::with(module_path!(), &[("cuda.c", "libcuda.so.1", &[])]) else { return };
    if is_there("libnccl.so.2") {
        skip("this machine has NCCL");
        return;
    }
    let job = machine.run("join", &[]);
    job.says("Unavailable: rank 0: NCCL initialization failed after");
    job.says("libnccl.so.2 is not found: install it with `apt-get install libnccl2`");
    assert!(!job.output.contains("panicked"), "{}", job.output);
}

#[test]
fn the_library_is_found_where_the_user_says() {
    let Some(machine) = Machine::with(module_path!(), &[("cuda.c", "libcuda.so.1", &[])]) else { return };
    let Some(other) = Machine::with(module_path!(), &[("nccl.c", "libnccl.so.2", &[])]) else { return };
    machine.run("train", &[("NNUNET_DIST_NCCL", other.folder.path().to_str().unwrap())]).succeeded(1);
    let job = machine.run("join", &[("NNUNET_DIST_NCCL", "/nowhere")]);
    job.says("NNUNET_DIST_NCCL=/nowhere: no libnccl.so.2 can be opened there");
}

#[test]
fn a_missing_driver_or_gpu_is_reported() {
    let Some(machine) = machine() else { return };
    let job = machine.run("join", &[("MOCK_GPUS", "0")]);
    job.says("the CUDA driver finds no GPU (cuInit: CUDA_ERROR_NO_DEVICE");
    if is_there("libcuda.so.1") {
        skip("this machine has a driver");
        return;
    }
    fs::remove_file(machine.folder.path().join("libcuda.so.1")).unwrap();
    let job = machine.run("join", &[]);
    job.says("Unavailable: rank 0: NCCL initialization failed after");
    job.says("there is no CUDA driver: libcuda.so.1 is not found");
    assert!(!job.output.contains("panicked"), "{}", job.output);
}

#[test]
fn two_ranks_on_one_gpu_are_refused_unless_asked_for() {
    let Some(machine) = machine() else { return };
    let Some(job) = run_two(&machine, "train", &[]) else { return };
    job.failed_with(4);
    job.says("ranks 0 and 1 would share the GPU GPU-00000000-0000-0000-0000-000000000000 of");
    machine.was_called("ncclCommInitRankConfig", 0);
    let job = run_two(&machine, "train", &[("NNUNET_DIST_SHARE_GPUS", "1")]).unwrap();
    job.succeeded(2);
}

/// Not a test: run by a rank that another test has started.
#[test]
fn part_of_a_rank() {
    let Ok(part) = env::var(PART) else { return };
    let host = distributed::init().unwrap();
    // Only a failure takes as long as the limit, so the limit of the others may be long.
    let limit = Duration::from_millis(if part == "train" { 20_000 } else { 400 });
    let link = match NcclLink::join(&*host, Timeouts { first: limit, later: limit }) {
        Ok(link) => link,
        Err(error) if part == "join" => return println!("{:?}: {error}", error.fault),
        Err(error) => host.abort(4, &error.to_string()),
    };
    let comm = NcclComm::new(host, link);
    match part.as_str() {
        "train" => train(&comm),
        "fail" => fail(&comm),
        other => panic!("no part {other}"),
    }
    let (rank, ranks) = (comm.rank(), comm.world_size());
    drop(comm);
    println!("rank {rank} of {ranks} is done");
}

/// Two steps of three buckets.
fn train(comm: &NcclComm) {
    let device = comm.device_collectives().unwrap();
    let ranks = comm.world_size() as f32;
    for step in 0..2 {
        let values = |rank: usize| [1.0, 2.0, 3.0].map(|value| value * (rank + 1 + step) as f32);
        let mut buckets = [ReduceOp::Mean, ReduceOp::Sum, ReduceOp::Max].map(|op| (op, values(comm.rank())));
        for (op, bucket) in &mut buckets {
            device.start_all_reduce(buffer(bucket), *op, &format!("bucket {op:?}")).unwrap();
        }
        device.finish("gradients").unwrap();
        device.check().unwrap();
        let sum: [f32; 3] = std::array::from_fn(|i| (0..comm.world_size()).map(|rank| values(rank)[i]).sum());
        let expected = [sum.map(|value| value / ranks), sum, values(comm.world_size() - 1)];
        assert_eq!(buckets.map(|(_, bucket)| bucket), expected);
    }
    // Values in host memory are reduced on the host.
    let mut losses = [1.0];
    comm.all_reduce(&mut losses, ReduceOp::Sum, "losses").unwrap();
    let sums = comm.reducer().start(vec![1.0], ReduceOp::Sum, CommDtype::F32, "sums").wait().unwrap();
    assert_eq!((losses, sums), ([ranks], vec![ranks]));
}

/// An asynchronous failure of a reduction: every later call returns it.
fn fail(comm: &NcclComm) {
    let device = comm.device_collectives().unwrap();
    let mut bucket = [1.0, 2.0];
    device.start_all_reduce(buffer(&mut bucket), ReduceOp::Mean, "bucket 0").unwrap();
    let _ = device.finish("gradients");
    let began = Instant::now();
    let first = loop {
        if let Err(error) = device.check() {
            break error;
        }
        assert!(began.elapsed() < job::PATIENCE, "the failure is not noticed");
        thread::sleep(Duration::from_millis(1));
    };
    println!("{:?}: {first}", first.fault);
    let again = |outcome: Result<(), CommError>| assert_eq!(outcome.unwrap_err().to_string(), first.to_string());
    again(device.start_all_reduce(buffer(&mut bucket), ReduceOp::Mean, "bucket 1"));
    again(device.finish("gradients"));
    again(comm.barrier("the end"));
}

fn buffer(values: &mut [f32]) -> DeviceBuffer {
    let pointer = values.as_mut_ptr().expose_provenance() as u64;
    DeviceBuffer { pointer, len: values.len(), dtype: BufferDtype::F32 }
}

/// True if the loader finds a library that is not a mock.
fn is_there(library: &str) -> bool {
    // SAFETY: vendors' libraries, whose initializers any process may run.
    unsafe { libloading::Library::new(library) }.is_ok()
}
