//! The exchange of gradients by itself, next to the MPI library's own.

use std::time::Instant;

use super::{Row, Timings, Work};
use nnunet_comm::distributed::{CommError, Communicator, ReduceOp, Wire};

/// What is averaged over the ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllReduceBench {
    /// Values of all gradients.
    pub values: usize,
    /// Values of a bucket.
    pub bucket: usize,
}

impl AllReduceBench {
    /// Measures on all ranks together: a row per format on the wire, and one of `MPI_Allreduce` on the same values in one
    /// call. Formats and library take turns, so that a change of the machine's mood meets all alike.
    ///
    /// Bytes are those that an all-reduce must send and receive per rank, `2 (N - 1) / N` of the values (what NCCL's tests
    /// call bus bandwidth).
    ///
    /// # Errors
    /// A rank is gone.
    pub fn run(&self, rounds: usize, comm: &dyn Communicator) -> Result<Vec<Row>, CommError> {
        // Zeros stay what they are, averaged by us and summed up by the library.
        let mut buckets: Vec<Vec<f32>> = vec![0.0f32; self.values].chunks(self.bucket).map(<[f32]>::to_vec).collect();
        let wires = [("f32", Wire::F32), ("bf16", Wire::Bf16), ("fp16", Wire::F16)];
        let mut seconds = vec![Vec::new(); wires.len()];
        #[cfg(feature = "mpi")]
        let (mut data, mut library) = (vec![0.0f32; self.values], Vec::new());
        // The first round warms up.
        for round in 0..=rounds {
            for ((_, wire), seconds) in wires.iter().zip(&mut seconds) {
                let taken = timed(comm, || exchange(comm, &mut buckets, *wire))?;
                seconds.extend((round > 0).then_some(taken));
            }
            #[cfg(feature = "mpi")]
            {
                let taken = timed(comm, || mpi_all_reduce(&mut data))?;
                library.extend((round > 0).then_some(taken));
            }
        }
        let row = |name: &str, seconds: Vec<f64>| self.row(name, seconds, comm.world_size());
        let ours = wires.iter().zip(seconds).map(|((name, _), seconds)| row(name, seconds));
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

/// Seconds from when all ranks have begun until all have ended.
fn timed(comm: &dyn Communicator, mut work: impl FnMut() -> Result<(), CommError>) -> Result<f64, CommError> {
    comm.barrier("begin of a round")?;
    let began = Instant::now();
    work()?;
    let mut seconds = [began.elapsed().as_secs_f64()];
    comm.all_reduce_f64(&mut seconds, ReduceOp::Max, "seconds of a round")?;
    Ok(seconds[0])
}

/// As a training step does it: every bucket begun as soon as it is there, waited for at the end.
fn exchange(comm: &dyn Communicator, buckets: &mut [Vec<f32>], wire: Wire) -> Result<(), CommError> {
    let reducer = comm.reducer();
    let start = |bucket: &mut Vec<f32>| reducer.start(std::mem::take(bucket), ReduceOp::Mean, wire, "a bucket");
    let under_way: Vec<_> = buckets.iter_mut().map(start).collect();
    for (bucket, under_way) in buckets.iter_mut().zip(under_way) {
        *bucket = under_way.wait()?;
    }
    Ok(())
}

/// The library's own, blocking and in one call.
#[cfg(feature = "mpi")]
fn mpi_all_reduce(data: &mut [f32]) -> Result<(), CommError> {
    use std::ffi::{c_int, c_void};

    use mpi::ffi;

    if !mpi::is_initialized() {
        return Ok(());
    }
    // MPI_IN_PLACE, whose value the two families of libraries do not share.
    let in_place: *const c_void =
        std::ptr::without_provenance(if size_of::<ffi::MPI_Comm>() == size_of::<c_int>() { usize::MAX } else { 1 });
    // SAFETY: MPI runs, nothing else of this job is under way, and the buffer holds as many floats as stated. An error ends
    // the job, as MPI's default handler does.
    unsafe {
        let (datatype, op, world) = (ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, ffi::RSMPI_COMM_WORLD);
        ffi::MPI_Allreduce(in_place, data.as_mut_ptr().cast(), data.len() as c_int, datatype, op, world);
    }
    Ok(())
}
