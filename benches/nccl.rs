//! All-reduce of gradient buckets in device memory over NCCL, on the ranks that a launcher starts:
//!
//! `mpirun -np 2 nccl [MB of gradients [MB per bucket [rounds]]]`
//!
//! Checks the result and prints one JSON line: the median time in seconds, and the bandwidth as nccl-tests defines it
//! (algorithm bandwidth: bytes / time; bus bandwidth: that times `2 (n - 1) / n`).

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{TensorData, read_sync};
use nnunet_dist::backend::gpu;
use nnunet_dist::distributed::{self, Communicator, NcclComm, NcclLink, ReduceOp, Timeouts};
use nnunet_dist::ops::{NnOps, Precision};
use serde_json::json;

/// The CUDA backend in single precision.
type Cuda = burn::backend::Cuda;

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            line.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(4)
        }
    }
}

/// Returns the line to print, on rank 0 only.
fn run() -> Result<Option<serde_json::Value>, String> {
    let arguments: Vec<f64> = env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |index: usize, default: f64| arguments.get(index).copied().unwrap_or(default);
    let values = |megabytes: f64| (megabytes * f64::from(1 << 20) / 4.0) as usize;
    let (total, bucket, rounds) = (values(number(0, 128.0)), values(number(1, 25.0)), number(2, 30.0) as usize);

    let host = distributed::init().map_err(|error| error.to_string())?;
    let limit = Duration::from_secs(120);
    let link = NcclLink::join(&*host, Timeouts { first: limit, later: limit });
    let comm = match link {
        Ok(link) => NcclComm::new(host, link),
        Err(error) if host.world_size() > 1 => host.abort(4, &error.to_string()),
        Err(error) => return Err(error.to_string()),
    };
    let device = gpu(&comm, Precision::Fp32).map_err(|error| error.to_string())?;
    let lengths: Vec<usize> = (0..total).step_by(bucket).map(|begin| bucket.min(total - begin)).collect();
    let buckets: Vec<_> = lengths
        .iter()
        .map(|&length| {
            let data = TensorData::new(vec![comm.rank() as f32; length], [length]);
            Cuda::float_from_data(data, &device)
        })
        .collect();
    let collectives = comm.device_collectives().ok_or("a communicator of GPUs has device collectives")?;
    let mut seconds = Vec::new();
    for round in 0..rounds + 3 {
        Cuda::sync(&device).map_err(|error| format!("{error:?}"))?;
        comm.barrier("begin").map_err(|error| error.to_string())?;
        let began = Instant::now();
        for bucket in &buckets {
            let buffer = Cuda::device_buffer(bucket).ok_or("a fresh tensor has an address")?;
            collectives.start_all_reduce(buffer, ReduceOp::Mean, "a bucket").map_err(|error| error.to_string())?;
        }
        collectives.finish("buckets").map_err(|error| error.to_string())?;
        Cuda::sync(&device).map_err(|error| format!("{error:?}"))?;
        if round >= 3 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    collectives.check().map_err(|error| error.to_string())?;
    let ranks = comm.world_size();
    let mean = (ranks - 1) as f32 / 2.0;
    for bucket in buckets {
        let data = read_sync(Cuda::float_into_data(bucket)).map_err(|error| format!("{error:?}"))?;
        let values = data.to_vec::<f32>().map_err(|error| format!("{error:?}"))?;
        if let Some(wrong) = values.iter().find(|value| **value != mean) {
            return Err(format!("rank {}: the mean over {ranks} ranks is {wrong}, not {mean}", comm.rank()));
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let bandwidth = (total * 4) as f64 / median / 1e9;
    Ok((comm.rank() == 0).then(|| {
        json!({
            "name": "nccl_allreduce", "ranks": ranks, "mb": number(0, 128.0), "bucket_mb": number(1, 25.0),
            "seconds": median, "algorithm_gb_per_s": bandwidth,
            "bus_gb_per_s": bandwidth * 2.0 * (ranks as f64 - 1.0) / ranks as f64,
        })
    }))
}
