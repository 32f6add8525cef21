//! Communicator of an MPI job, for host memory.
//!
//! rsmpi's safe functions ignore MPI's return codes, and its `Universe` waits for the other ranks even while a panic
//! unwinds, so this folder calls the C functions that rsmpi binds. No call blocks: every collective is started and then
//! polled until it completes or times out. A blocking call would hang forever when a rank, a host or a link is lost
//! (Open MPI detects a cut link after minutes or never).
//!
//! Small collectives use MPI's own algorithms ([`calls`]). Gradients use [`ring`], which the progress thread of
//! [`engine`] advances during computation.

mod calls;
mod engine;
mod ring;

use std::env;
use std::ffi::{c_int, c_void};
use std::ops::DivAssign;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::mpi::ffi;

pub(super) use self::calls::library_version;
use self::calls::{Deadline, MpiScalar, PollState, check, error};
use self::engine::{RingReducer, Shared};
use self::ring::RingContext;
use super::health::Health;
use super::{CommError, Communicator, Fault, HealthMonitor, ReduceOp, Reducer, failure};

/// Elements per call. MPI counts in `c_int`, and it allocates temporary buffers as large as a message.
const PER_CALL: usize = 1 << 24;

/// Bytes per gather, over all ranks; longer messages take several gathers. Displacements are `c_int`, too.
const PER_GATHER: usize = 1 << 26;

/// Timeout of a collective until [`Communicator::set_timeout`] is called. Ranks may start minutes apart.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// `MPI_IN_PLACE` of mpi.h. As a macro with a cast it has no binding: 1 in Open MPI, whose handles are pointers, and -1
/// in MPICH and its derivatives, whose handles are integers.
const IN_PLACE: *const c_void =
    ptr::without_provenance(if size_of::<ffi::MPI_Comm>() == size_of::<c_int>() { usize::MAX } else { 1 });

/// Communicator of an MPI job. Dropping it waits for all ranks and finalizes MPI, unless a collective has failed.
pub(super) struct MpiComm {
    /// Uses our own duplicate of `MPI_COMM_WORLD`, so that messages of libraries cannot match ours.
    context: RingContext,
    local_rank: usize,
    local_size: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    timeout: Arc<Mutex<Duration>>,
    health: Arc<Health>,
}

// SAFETY: an MPI handle may be a raw pointer. Any thread may use it, one at a time, while holding the lock of `shared`.
unsafe impl Send for MpiComm {}

impl MpiComm {
    /// Initializes MPI. `rank` is the launcher's rank, used in errors until MPI reports its own.
    pub(super) fn start(rank: usize) -> Result<Self, CommError> {
        let began = Instant::now();
        let check = |call: &str, code: c_int| check(rank, call, began, code);
        yield_while_waiting();
        let mut level = 0;
        // SAFETY: in all of this function the pointers are to live variables, null is allowed for both arguments of
        // MPI_Init_thread, and RSMPI_* are constants.
        unsafe {
            let wanted = ffi::RSMPI_THREAD_SERIALIZED;
            check("MPI_Init_thread", ffi::MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), wanted, &mut level))?;
            if level < wanted {
                let reason = format!("{} was built without thread support (MPI_THREAD_SERIALIZED)", library_version());
                return Err(error(rank, "MPI_Init_thread", began, Fault::Unavailable, reason));
            }
            // The duplicate inherits the handler. Without it an MPI error would end the process before our message.
            let handler = ffi::RSMPI_ERRORS_RETURN;
            check("MPI_Comm_set_errhandler", ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, handler))?;
            let mut handle = ffi::RSMPI_COMM_NULL;
            check("MPI_Comm_dup", ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &mut handle))?;
            let mut host = ffi::RSMPI_COMM_NULL;
            let (kind, info) = (ffi::RSMPI_COMM_TYPE_SHARED, ffi::RSMPI_INFO_NULL);
            check("MPI_Comm_split_type", ffi::MPI_Comm_split_type(handle, kind, 0, info, &mut host))?;
            let (rank, world_size) = rank_and_size(handle, check)?;
            let (local_rank, local_size) = rank_and_size(host, check)?;
            check("MPI_Comm_free", ffi::MPI_Comm_free(&mut host))?;
            let context = RingContext { handle, rank, world_size };
            Ok(Self::with(context, local_rank, local_size))
        }
    }

    fn with(context: RingContext, local_rank: usize, local_size: usize) -> Self {
        let shared = Shared::new(context);
        let thread = shared.start_thread();
        if let Err(error) = &thread {
            tracing::warn!("communication overlap disabled: cannot start the progress thread: {error}");
        }
        let timeout = Arc::new(Mutex::new(DEFAULT_TIMEOUT));
        let health = Health::new(context.rank);
        Self { context, local_rank, local_size, shared, thread: thread.ok(), timeout, health }
    }

    /// Starts the heartbeats, so that errors can name a missing rank. A collective.
    ///
    /// # Errors
    /// Returns an error if the collective fails. A network that blocks the heartbeats only causes a warning.
    pub(super) fn start_heartbeats(&self) -> Result<(), CommError> {
        let endpoint = self.health.endpoint();
        let mut message = vec![0; crate::distributed::health::ENDPOINT_BYTES];
        if self.context.rank == 0 {
            message[..endpoint.len()].copy_from_slice(&endpoint);
        }
        self.broadcast_bytes(&mut message, 0, "address of the heartbeat")?;
        self.health.join(&message);
        Ok(())
    }

    fn deadline(&self) -> Deadline<'_> {
        let limit = *self.timeout.lock().unwrap_or_else(PoisonError::into_inner);
        Deadline::new(limit, &self.health)
    }

    /// Starts an operation with `call` and polls it until it completes.
    fn run(
        &self,
        operation: &str,
        what: &str,
        call: impl FnOnce(*mut ffi::MPI_Request) -> c_int,
    ) -> Result<(), CommError> {
        let began = Instant::now();
        let operation = format!("{operation} of {what}");
        let _waiting = self.health.waiting(&operation);
        let finished = |code| check(self.context.rank, &operation, began, code);
        // SAFETY: a constant of the C side.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let mut engine = self.shared.lock();
        let outcome = if engine.is_broken() {
            let reason = "an earlier operation has failed".into();
            Err(error(self.context.rank, &operation, began, Fault::Lost, reason))
        } else {
            finished(call(&mut request))
        };
        drop(engine);
        let outcome = outcome.and_then(|()| {
            self.deadline().poll_until_done(self.context.rank, &operation, began, || {
                let mut flag = 0;
                let _engine = self.shared.lock();
                // SAFETY: the request is the one started above. Its buffers are borrowed by the caller, who returns
                // only after completion, or after a failure, when MPI is no longer called.
                finished(unsafe { ffi::MPI_Test(&mut request, &mut flag, ffi::RSMPI_STATUS_IGNORE) })?;
                Ok(if flag == 0 { PollState::Unchanged } else { PollState::Done(()) })
            })
        });
        if outcome.is_err() {
            engine = self.shared.lock();
            engine.mark_broken();
        }
        outcome
    }

    /// All-reduces `data` in place. `ranks` is the number of ranks, as a value of the data type.
    fn reduce<T: MpiScalar + DivAssign>(
        &self,
        data: &mut [T],
        op: ReduceOp,
        ranks: T,
        what: &str,
    ) -> Result<(), CommError> {
        for part in data.chunks_mut(PER_CALL) {
            let count = part.len() as c_int;
            // SAFETY: the buffer holds `count` elements of the type, exclusively borrowed until the operation
            // completes.
            self.run("all-reduce", what, |request| unsafe {
                let op = if op == ReduceOp::Max { ffi::RSMPI_MAX } else { ffi::RSMPI_SUM };
                let (buffer, datatype, handle) = (part.as_mut_ptr().cast(), T::datatype(), self.context.handle);
                ffi::MPI_Iallreduce(IN_PLACE, buffer, count, datatype, op, handle, request)
            })?;
            if op == ReduceOp::Mean {
                part.iter_mut().for_each(|value| *value /= ranks);
            }
        }
        Ok(())
    }

    fn copy_from<T: MpiScalar>(&self, root: usize, data: &mut [T], what: &str) -> Result<(), CommError> {
        for part in data.chunks_mut(PER_CALL) {
            let (count, root) = (part.len() as c_int, root as c_int);
            // SAFETY: the buffer holds `count` elements of the type, exclusively borrowed until the operation
            // completes.
            self.run("broadcast", what, |request| unsafe {
                ffi::MPI_Ibcast(part.as_mut_ptr().cast(), count, T::datatype(), root, self.context.handle, request)
            })?;
        }
        Ok(())
    }

    /// Gathers the number of bytes that each rank contributes.
    fn gather_lengths(&self, own: usize, what: &str) -> Result<Vec<usize>, CommError> {
        let own = own as u64;
        let mut lengths = vec![0u64; self.context.world_size];
        let (sent, received) = (ptr::from_ref(&own).cast(), lengths.as_mut_ptr().cast());
        // SAFETY: one element is sent, and there is room for one per rank; both live until the operation completes.
        self.run("gather", what, |request| unsafe {
            let one = ffi::RSMPI_UINT64_T;
            ffi::MPI_Iallgather(sent, 1, one, received, 1, one, self.context.handle, request)
        })?;
        Ok(lengths.into_iter().map(|length| length as usize).collect())
    }

    /// Gathers `counts[rank]` bytes from each rank, concatenated in rank order.
    fn gather_parts(&self, own: &[u8], counts: &[usize], what: &str) -> Result<Vec<u8>, CommError> {
        debug_assert_eq!(own.len(), counts[self.context.rank]);
        let mut received = vec![0u8; counts.iter().sum()];
        let offsets = counts.iter().scan(0, |end, count| Some(std::mem::replace(end, *end + count)));
        let offsets: Vec<_> = offsets.map(|offset| offset as c_int).collect();
        let counts: Vec<_> = counts.iter().map(|&count| count as c_int).collect();
        let (sent, buffer) = (own.as_ptr().cast(), received.as_mut_ptr().cast());
        // SAFETY: each buffer is as long as the counts say, and all live until the operation completes.
        self.run("gather", what, |request| unsafe {
            let (byte, counts, offsets) = (ffi::RSMPI_UINT8_T, counts.as_ptr(), offsets.as_ptr());
            let (length, handle) = (own.len() as c_int, self.context.handle);
            ffi::MPI_Iallgatherv(sent, length, byte, buffer, counts, offsets, byte, handle, request)
        })?;
        Ok(received)
    }
}

impl Communicator for MpiComm {
    fn rank(&self) -> usize {
        self.context.rank
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn local_size(&self) -> usize {
        self.local_size
    }

    fn world_size(&self) -> usize {
        self.context.world_size
    }

    fn all_reduce(&self, data: &mut [f32], op: ReduceOp, what: &str) -> Result<(), CommError> {
        self.reduce(data, op, self.context.world_size as f32, what)
    }

    fn all_reduce_f64(&self, data: &mut [f64], op: ReduceOp, what: &str) -> Result<(), CommError> {
        self.reduce(data, op, self.context.world_size as f64, what)
    }

    fn reducer(&self) -> Arc<dyn Reducer> {
        let Self { context, shared, timeout, health, .. } = self;
        Arc::new(RingReducer {
            rank: context.rank,
            shared: shared.clone(),
            timeout: timeout.clone(),
            health: health.clone(),
        })
    }

    fn broadcast(&self, data: &mut [f32], root: usize, what: &str) -> Result<(), CommError> {
        self.copy_from(root, data, what)
    }

    fn broadcast_bytes(&self, data: &mut [u8], root: usize, what: &str) -> Result<(), CommError> {
        self.copy_from(root, data, what)
    }

    fn all_gather_bytes(&self, data: &[u8], what: &str) -> Result<Vec<Vec<u8>>, CommError> {
        let lengths = self.gather_lengths(data.len(), what)?;
        let mut messages: Vec<Vec<u8>> = lengths.iter().map(|&length| Vec::with_capacity(length)).collect();
        let per_rank = (PER_GATHER / self.context.world_size).max(1);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        for begin in (0..longest).step_by(per_rank) {
            let counts: Vec<_> = lengths.iter().map(|&length| length.saturating_sub(begin).min(per_rank)).collect();
            let own = &data[begin.min(data.len())..][..counts[self.context.rank]];
            let received = self.gather_parts(own, &counts, what)?;
            let mut rest = received.as_slice();
            for (message, count) in messages.iter_mut().zip(counts) {
                let (part, others) = rest.split_at(count);
                message.extend_from_slice(part);
                rest = others;
            }
        }
        Ok(messages)
    }

    fn barrier(&self, what: &str) -> Result<(), CommError> {
        // SAFETY: the handle is valid as long as `self`.
        self.run("barrier", what, |request| unsafe { ffi::MPI_Ibarrier(self.context.handle, request) })
    }

    fn health_monitor(&self) -> Option<Arc<dyn HealthMonitor>> {
        Some(self.health.clone())
    }

    fn set_timeout(&self, timeout: Duration) {
        *self.timeout.lock().unwrap_or_else(PoisonError::into_inner) = timeout;
    }

    fn enter_phase(&self, phase: &str) {
        self.health.enter_phase(phase, false);
    }

    fn enter_unbounded(&self, phase: &str) {
        self.health.enter_phase(phase, true);
    }

    fn abort(&self, code: i32, reason: &str) -> ! {
        let rank = format!("rank {}: ", self.context.rank);
        // A `CommError` already names the rank.
        failure::print_line(&format!("error: {rank}{}", reason.strip_prefix(&rank).unwrap_or(reason)));
        // Hold the lock so that no other thread is inside MPI while the job ends.
        let _engine = self.shared.lock();
        end_job(code)
    }
}

impl Drop for MpiComm {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already ended the job.
            let _ = thread.join();
        }
        let engine = self.shared.lock();
        // MPI_Finalize waits for all ranks, which after a failure would be forever. A process that exits without it
        // makes the launcher end the others.
        if engine.is_broken() || engine.is_busy() || std::thread::panicking() {
            return;
        }
        let (rank, began) = (self.context.rank, Instant::now());
        // SAFETY: MPI is running and no call is in flight, since `self` is exclusively borrowed and the thread has
        // ended.
        let ended = unsafe {
            check(rank, "MPI_Comm_free", began, ffi::MPI_Comm_free(&mut self.context.handle))
                .and_then(|()| check(rank, "MPI_Finalize", began, ffi::MPI_Finalize()))
        };
        if let Err(error) = ended {
            failure::print_line(&format!("warning: {error}"));
        }
    }
}

/// Ends all ranks of the job with an exit code.
pub(super) fn end_job(code: i32) -> ! {
    let status = failure::exit_status(code);
    failure::block_if_already_ending();
    failure::exit_after_grace_period(status);
    failure::wait_for_other_errors();
    let mut finalized = 0;
    // SAFETY: MPI is initialized, since only an MPI job calls this. MPI_Abort may run concurrently with another thread
    // that is inside a call, which MPI_THREAD_SERIALIZED does not guarantee to work; `exit_after_grace_period` covers it.
    unsafe {
        if ffi::MPI_Finalized(&mut finalized) == ffi::MPI_SUCCESS as c_int && finalized == 0 {
            ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, status);
        }
    }
    failure::exit_immediately(status)
}

/// Makes Open MPI yield the core between two polls. Ranks that wait for others spin; with loader threads or more ranks
/// than cores, that may cost a thousand times the exchange itself.
fn yield_while_waiting() {
    const SETTING: &str = "OMPI_MCA_mpi_yield_when_idle";
    if env::var_os(SETTING).is_none() {
        // SAFETY: there is no other thread yet (see `init`).
        unsafe { env::set_var(SETTING, "1") };
    }
}

/// Returns this process's rank in a communicator, and the communicator's size.
fn rank_and_size(
    comm: ffi::MPI_Comm,
    check: impl Fn(&str, c_int) -> Result<(), CommError>,
) -> Result<(usize, usize), CommError> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: the communicator is valid and the pointers are to live variables.
    unsafe {
        check("MPI_Comm_rank", ffi::MPI_Comm_rank(comm, &mut rank))?;
        check("MPI_Comm_size", ffi::MPI_Comm_size(comm, &mut size))?;
    }
    Ok((rank as usize, size as usize))
}
