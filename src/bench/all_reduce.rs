//! Benchmark of the gradient all-reduce, compared with that of the MPI library.

use std::time::Instant;

use super::{Row, Timings, Work};
use nnunet_comm::distributed::{CommDtype, CommError, Communicator, ReduceOp};

/// Size of the all-reduce.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllReduceBench {
    /// Number of values in all gradients.
    pub values: usize,
    /// Number of values per bucket.
    pub bucket: usize,
}

impl AllReduceBench {
    /// Runs the benchmark. Collective: must be called on all ranks. Returns one row per communication data type, and
    /// one for a single `MPI_Allreduce` of the same values. The variants alternate, so that fluctuations of the machine
    /// affect all of them equally.
    ///
    /// Bytes are those that an all-reduce must send and receive per rank, `2 (N - 1) / N` of the values (bus bandwidth
    /// in NCCL's tests).
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn run(&self, rounds: usize, comm: &dyn Communicator) -> Result<Vec<Row>, CommError> {
        // Zeros stay zero under both mean and sum.
        let mut buckets: Vec<Vec<f32>> = vec![0.0f32; self.values].chunks(self.bucket).map(<[f32]>::to_vec).collect();
        let comm_dtypes = [("f32", CommDtype::F32), ("bf16", CommDtype::Bf16), ("fp16", CommDtype::F16)];
        let mut seconds = vec![Vec::new(); comm_dtypes.len()];
        #[cfg(feature = "mpi")]
        let (mut data, mut library) = (vec![0.0f32; self.values], Vec::new());
        // The first round is a warm-up.
        for round in 0..=rounds {
            for ((_, comm_dtype), seconds) in comm_dtypes.iter().zip(&mut seconds) {
                let taken = timed(comm, || exchange(comm, &mut buckets, *comm_dtype))?;
                seconds.extend((round > 0).then_some(taken));
            }
            #[cfg(feature = "mpi")]
            {
                let taken = timed(comm, || mpi_all_reduce(&mut data))?;
                library.extend((round > 0).then_some(taken));
            }
        }
        let row = |name: &str, seconds: Vec<f64>| self.row(name, seconds, comm.world_size());
        let ours = comm_dtypes.iter().zip(seconds).map(|((name, _), seconds)| row(name, seconds));
        #[cfg(feature = "mpi")]
        let ours = ours.chain([row("MPI_Allreduce", library)]);
        Ok(ours.collect())
    }

    fn row(&self, name: &str, seconds: Vec<f64>, ranks: usize) -> Row {
        let bytes = 2.0 * (ranks - 1) as f64 / ranks as f64 * (4 * self.values) as f64;
        let work = Work { items: self.values as f64, bytes, ..Work::default() };
        Row { name: name.into(), unit: "values", work, seconds: Timings::new(seconds) }
    }
}

/// Seconds from the common start to the end on the slowest rank.
fn timed(comm: &dyn Communicator, mut work: impl FnMut() -> Result<(), CommError>) -> Result<f64, CommError> {
    comm.barrier("begin of a round")?;
    let began = Instant::now();
    work()?;
    let mut seconds = [began.elapsed().as_secs_f64()];
    comm.all_reduce_f64(&mut seconds, ReduceOp::Max, "seconds of a round")?;
    Ok(seconds[0])
}

/// Same pattern as a training step: all buckets are started, then waited for.
fn exchange(comm: &dyn Communicator, buckets: &mut [Vec<f32>], comm_dtype: CommDtype) -> Result<(), CommError> {
    let reducer = comm.reducer();
    let start = |bucket: &mut Vec<f32>| reducer.start(std::mem::take(bucket), ReduceOp::Mean, comm_dtype, "a bucket");
    let work: Vec<_> = buckets.iter_mut().map(start).collect();
    for (bucket, work) in buckets.iter_mut().zip(work) {
        *bucket = work.wait()?;
    }
    Ok(())
}

/// A single blocking call of the MPI library.
#[cfg(feature = "mpi")]
fn mpi_all_reduce(data: &mut [f32]) -> Result<(), CommError> {
    use std::ffi::{c_int, c_void};

    use mpi::ffi;

    if !mpi::is_initialized() {
        return Ok(());
    }
    // MPI_IN_PLACE, whose value differs between the two ABI families.
    let in_place: *const c_void =
        std::ptr::without_provenance(if size_of::<ffi::MPI_Comm>() == size_of::<c_int>() { usize::MAX } else { 1 });
    // SAFETY: MPI is initialized, no other communication of this job is in flight, and the buffer holds `data.len()`
    // floats. An error aborts the job through MPI's default error handler.
    unsafe {
        let (datatype, op, world) = (ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, ffi::RSMPI_COMM_WORLD);
        ffi::MPI_Allreduce(in_place, data.as_mut_ptr().cast(), data.len() as c_int, datatype, op, world);
    }
    Ok(())
}
