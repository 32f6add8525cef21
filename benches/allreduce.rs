//! The exchange of gradient buckets against `MPI_Allreduce` of the same bytes, in turn, in the same job:
//!
//! `mpirun -np 2 target/release/deps/allreduce-HASH [MB of gradients [MB per bucket [rounds]]]`
//!
//! Prints one JSON line per format on the wire: medians of the seconds per exchange, the ratio of the speeds, and their
//! spread (quartiles of the ratio of neighbouring rounds).

use std::env;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::time::Instant;

use mpi::ffi;
use nnunet_dist::dist::{self, Communicator, ReduceOp, Wire};
use serde_json::json;

fn main() {
    let arguments: Vec<f64> = env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |index: usize, default: f64| arguments.get(index).copied().unwrap_or(default);
    let values = |megabytes: f64| (megabytes * f64::from(1 << 20) / 4.0) as usize;
    let (total, bucket) = (values(number(0, 22.0)), values(number(1, 4.0)));
    let rounds = number(2, 31.0) as usize;

    let comm = dist::init().unwrap_or_else(|error| panic!("{error}"));
    // Zeros stay what they are, summed up by the peer and averaged by us.
    let mut data = vec![0.0f32; total];
    let mut buckets: Vec<Vec<f32>> = data.chunks(bucket).map(<[f32]>::to_vec).collect();
    for (wire, name) in [(Wire::F32, "f32"), (Wire::Bf16, "bf16"), (Wire::F16, "fp16")] {
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        // The first round warms up.
        for round in 0..=rounds {
            let seconds =
                [timed(&*comm, || exchange(&*comm, &mut buckets, wire)), timed(&*comm, || all_reduce(&mut data))];
            if round > 0 {
                ours.push(seconds[0]);
                raw.push(seconds[1]);
            }
        }
        if comm.rank() == 0 {
            let mut ratios: Vec<f64> = ours.iter().zip(&raw).map(|(ours, raw)| raw / ours).collect();
            let spread = [quantile(&mut ratios, 0.25), quantile(&mut ratios, 0.75)];
            let (ours, raw) = (quantile(&mut ours, 0.5), quantile(&mut raw, 0.5));
            let megabytes = (total * 4) as f64 / f64::from(1 << 20);
            println!(
                "{}",
                json!({
                    "name": format!("allreduce_{name}"), "ranks": comm.world_size(), "mb": megabytes,
                    "bucket_mb": (bucket * 4) as f64 / f64::from(1 << 20), "ours": ours, "peer": raw,
                    "ratio": raw / ours, "spread": spread,
                })
            );
        }
    }
}

/// Seconds from when all ranks have begun until all have ended.
fn timed(comm: &dyn Communicator, mut work: impl FnMut()) -> f64 {
    comm.barrier("begin").unwrap_or_else(|error| panic!("{error}"));
    let began = Instant::now();
    work();
    let mut seconds = [began.elapsed().as_secs_f64()];
    comm.all_reduce_f64(&mut seconds, ReduceOp::Max, "seconds").unwrap_or_else(|error| panic!("{error}"));
    seconds[0]
}

/// As a training step does it: every bucket begun as soon as it is there, waited for at the end.
fn exchange(comm: &dyn Communicator, buckets: &mut [Vec<f32>], wire: Wire) {
    let reducer = comm.reducer();
    let start = |bucket: &mut Vec<f32>| reducer.start(std::mem::take(bucket), ReduceOp::Mean, wire, "a bucket");
    let under_way: Vec<_> = buckets.iter_mut().map(start).collect();
    for (bucket, under_way) in buckets.iter_mut().zip(under_way) {
        *bucket = under_way.wait().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// MPI's own, blocking and in one call.
fn all_reduce(data: &mut [f32]) {
    let in_place: *const c_void =
        ptr::without_provenance(if size_of::<ffi::MPI_Comm>() == size_of::<c_int>() { usize::MAX } else { 1 });
    // SAFETY: MPI runs, nothing else of this job is under way, and the buffer holds as many floats as stated.
    let code = unsafe {
        let (datatype, op, world) = (ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, ffi::RSMPI_COMM_WORLD);
        ffi::MPI_Allreduce(in_place, data.as_mut_ptr().cast(), data.len() as c_int, datatype, op, world)
    };
    assert_eq!(code, ffi::MPI_SUCCESS as c_int);
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}
