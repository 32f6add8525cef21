//! The ranks of an MPI job, on host memory.
//!
//! rsmpi's safe functions drop MPI's return codes and its `Universe` waits for the other ranks even while a panic
//! unwinds, so this file calls the C functions that rsmpi binds.

use std::cell::Cell;
use std::env;
use std::ffi::{c_char, c_int, c_void};
use std::ops::DivAssign;
use std::ptr;
use std::time::Instant;

use ::mpi::ffi;

use super::{CommError, Communicator, Fault, ReduceOp, failure};

/// Elements per call. MPI counts in `c_int`; and it allocates temporary buffers as large as a message.
const PER_CALL: usize = 1 << 24;

/// Bytes per gather, of all ranks together: longer messages take several. Its displacements are `c_int`, too.
const PER_GATHER: usize = 1 << 26;

/// `MPI_IN_PLACE` of mpi.h, which as a macro with a cast has no binding: 1 in Open MPI, whose handles are pointers, and
/// -1 in MPICH and its descendants, whose handles are integers.
const IN_PLACE: *const c_void =
    ptr::without_provenance(if size_of::<ffi::MPI_Comm>() == size_of::<c_int>() { usize::MAX } else { 1 });

/// An MPI job. Dropping it waits for all ranks and shuts MPI down, unless a collective has failed.
pub(super) struct MpiComm {
    /// Our own duplicate of `MPI_COMM_WORLD`, so that no message of a library can be taken for one of ours.
    handle: ffi::MPI_Comm,
    rank: usize,
    world_size: usize,
    local_rank: usize,
    local_size: usize,
    /// Whether a collective has failed: the others may never come to the end.
    broken: Cell<bool>,
}

// SAFETY: MPI is started with MPI_THREAD_SERIALIZED, so that any thread may use the handle, one at a time. The type is
// not `Sync` (it has a `Cell`).
unsafe impl Send for MpiComm {}

impl MpiComm {
    /// Starts MPI. `rank` is what the launcher says, for errors until MPI says it.
    pub(super) fn start(rank: usize) -> Result<Self, CommError> {
        let began = Instant::now();
        let check = |call: &str, code: c_int| check(rank, call, began, code);
        yield_while_waiting();
        let mut level = 0;
        // SAFETY (all of this function): the pointers are to live variables, null is allowed for both arguments of
        // MPI_Init_thread, and RSMPI_* are constants.
        unsafe {
            let wanted = ffi::RSMPI_THREAD_SERIALIZED;
            check("MPI_Init_thread", ffi::MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), wanted, &mut level))?;
            if level < wanted {
                let reason = format!("{} was built without support for threads", library_version());
                return Err(error(rank, "MPI_Init_thread", began, Fault::Unavailable, reason));
            }
            // The duplicate inherits it. Without it an error would end the process before our message.
            let handler = ffi::RSMPI_ERRORS_RETURN;
            check("MPI_Comm_set_errhandler", ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, handler))?;
            let mut handle = ffi::RSMPI_COMM_NULL;
            check("MPI_Comm_dup", ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &mut handle))?;
            let mut host = ffi::RSMPI_COMM_NULL;
            let (kind, info) = (ffi::RSMPI_COMM_TYPE_SHARED, ffi::RSMPI_INFO_NULL);
            check("MPI_Comm_split_type", ffi::MPI_Comm_split_type(handle, kind, 0, info, &mut host))?;
            let (rank, world_size) = place_in(handle, check)?;
            let (local_rank, local_size) = place_in(host, check)?;
            check("MPI_Comm_free", ffi::MPI_Comm_free(&mut host))?;
            Ok(Self { handle, rank, world_size, local_rank, local_size, broken: Cell::new(false) })
        }
    }

    /// Checks the return code of a call for `operation`, which began at `began`.
    fn check(&self, operation: &str, what: &str, began: Instant, code: c_int) -> Result<(), CommError> {
        let result = check(self.rank, &format!("{operation} of {what}"), began, code);
        self.broken.set(self.broken.get() || result.is_err());
        result
    }

    /// `ranks` is the number of ranks in the type of the data.
    fn reduce<T: Element + DivAssign>(
        &self,
        data: &mut [T],
        op: ReduceOp,
        ranks: T,
        what: &str,
    ) -> Result<(), CommError> {
        let began = Instant::now();
        for part in data.chunks_mut(PER_CALL) {
            let count = part.len() as c_int;
            // SAFETY: the buffer holds `count` elements of the type, exclusively borrowed until the call is over.
            let code = unsafe {
                let op = if op == ReduceOp::Max { ffi::RSMPI_MAX } else { ffi::RSMPI_SUM };
                ffi::MPI_Allreduce(IN_PLACE, part.as_mut_ptr().cast(), count, T::datatype(), op, self.handle)
            };
            self.check("all-reduce", what, began, code)?;
            if op == ReduceOp::Mean {
                part.iter_mut().for_each(|value| *value /= ranks);
            }
        }
        Ok(())
    }

    fn copy_from<T: Element>(&self, root: usize, data: &mut [T], what: &str) -> Result<(), CommError> {
        let began = Instant::now();
        for part in data.chunks_mut(PER_CALL) {
            let (count, root) = (part.len() as c_int, root as c_int);
            // SAFETY: the buffer holds `count` elements of the type, exclusively borrowed until the call is over.
            let code = unsafe { ffi::MPI_Bcast(part.as_mut_ptr().cast(), count, T::datatype(), root, self.handle) };
            self.check("broadcast", what, began, code)?;
        }
        Ok(())
    }

    /// How many bytes each rank has for a gather.
    fn gather_lengths(&self, own: usize, what: &str) -> Result<Vec<usize>, CommError> {
        let began = Instant::now();
        let own = own as u64;
        let mut lengths = vec![0u64; self.world_size];
        // SAFETY: one element is sent, and there is room for one of each rank.
        let code = unsafe {
            let (sent, received) = (ptr::from_ref(&own).cast(), lengths.as_mut_ptr().cast());
            let one = ffi::RSMPI_UINT64_T;
            ffi::MPI_Allgather(sent, 1, one, received, 1, one, self.handle)
        };
        self.check("gather", what, began, code)?;
        Ok(lengths.into_iter().map(|length| length as usize).collect())
    }

    /// Gathers `counts[rank]` bytes of each rank, one after the other.
    fn gather_parts(&self, own: &[u8], counts: &[usize], what: &str) -> Result<Vec<u8>, CommError> {
        let began = Instant::now();
        debug_assert_eq!(own.len(), counts[self.rank]);
        let mut received = vec![0u8; counts.iter().sum()];
        let offsets = counts.iter().scan(0, |end, count| Some(std::mem::replace(end, *end + count)));
        let offsets: Vec<_> = offsets.map(|offset| offset as c_int).collect();
        let counts: Vec<_> = counts.iter().map(|&count| count as c_int).collect();
        // SAFETY: each buffer is as long as the counts say, and all is alive until the call is over.
        let code = unsafe {
            let byte = ffi::RSMPI_UINT8_T;
            let (sent, buffer) = (own.as_ptr().cast(), received.as_mut_ptr().cast());
            let (counts, offsets) = (counts.as_ptr(), offsets.as_ptr());
            ffi::MPI_Allgatherv(sent, own.len() as c_int, byte, buffer, counts, offsets, byte, self.handle)
        };
        self.check("gather", what, began, code)?;
        Ok(received)
    }
}

impl Communicator for MpiComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn local_size(&self) -> usize {
        self.local_size
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, data: &mut [f32], op: ReduceOp, what: &str) -> Result<(), CommError> {
        self.reduce(data, op, self.world_size as f32, what)
    }

    fn all_reduce_f64(&self, data: &mut [f64], op: ReduceOp, what: &str) -> Result<(), CommError> {
        self.reduce(data, op, self.world_size as f64, what)
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
        let per_rank = (PER_GATHER / self.world_size).max(1);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        for begin in (0..longest).step_by(per_rank) {
            let counts: Vec<_> = lengths.iter().map(|&length| length.saturating_sub(begin).min(per_rank)).collect();
            let own = &data[begin.min(data.len())..][..counts[self.rank]];
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
        let began = Instant::now();
        // SAFETY: the handle is valid as long as `self`.
        let code = unsafe { ffi::MPI_Barrier(self.handle) };
        self.check("barrier", what, began, code)
    }

    fn abort(&self, code: i32, reason: &str) -> ! {
        let rank = format!("rank {}: ", self.rank);
        // A `CommError` names the rank itself.
        failure::say(&format!("error: {rank}{}", reason.strip_prefix(&rank).unwrap_or(reason)));
        end_job(code)
    }
}

impl Drop for MpiComm {
    fn drop(&mut self) {
        // The shutdown waits for all ranks. After a failure that would be for ever; a process that ends without it makes
        // the launcher end the others.
        if self.broken.get() || std::thread::panicking() {
            return;
        }
        let began = Instant::now();
        // SAFETY: MPI is running and no call is under way, since `self` is exclusively borrowed.
        let ended = unsafe {
            check(self.rank, "MPI_Comm_free", began, ffi::MPI_Comm_free(&mut self.handle))
                .and_then(|()| check(self.rank, "MPI_Finalize", began, ffi::MPI_Finalize()))
        };
        if let Err(error) = ended {
            failure::say(&format!("warning: {error}"));
        }
    }
}

/// Ends all ranks of the job with an exit code.
pub(super) fn end_job(code: i32) -> ! {
    let status = failure::exit_status(code);
    failure::only_once();
    failure::leave_soon(status);
    let mut finalized = 0;
    // SAFETY: MPI was started, for this is known only to a job. MPI_Abort may come from a thread beside one that is
    // within a call, which MPI_THREAD_SERIALIZED does not promise to work; `leave_soon` covers that.
    unsafe {
        if ffi::MPI_Finalized(&mut finalized) == ffi::MPI_SUCCESS as c_int && finalized == 0 {
            ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, status);
        }
    }
    failure::leave_now(status)
}

/// Name and version of the library, such as `Open MPI v4.1.4` or `MPICH Version: 4.0.2`.
pub(super) fn library_version() -> String {
    let mut length = 0;
    // SAFETY: there is room for the longest text and its zero, and the call is allowed before MPI is started.
    let text = unsafe {
        let mut text = vec![0u8; ffi::RSMPI_MAX_LIBRARY_VERSION_STRING as usize + 1];
        ffi::MPI_Get_library_version(text.as_mut_ptr().cast::<c_char>(), &mut length);
        text
    };
    let text = text_of(&text);
    let name = text.split([',', '\n']).next().unwrap_or_default();
    name.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Ranks that wait for others spin. Where loader threads or more ranks than cores want to run, that may cost them a
/// thousand times the exchange itself, so Open MPI is asked to give the core away between two looks.
fn yield_while_waiting() {
    const SETTING: &str = "OMPI_MCA_mpi_yield_when_idle";
    if env::var_os(SETTING).is_none() {
        // SAFETY: there is no other thread yet (see `init`).
        unsafe { env::set_var(SETTING, "1") };
    }
}

/// This process's rank in a communicator, and its size.
fn place_in(
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

fn check(rank: usize, operation: &str, began: Instant, code: c_int) -> Result<(), CommError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: there is room for the longest text and its zero.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    Err(error(rank, operation, began, Fault::Lost, text_of(&text)))
}

fn error(rank: usize, operation: &str, began: Instant, fault: Fault, reason: String) -> CommError {
    CommError { rank, operation: operation.into(), elapsed_s: began.elapsed().as_secs_f64(), fault, reason }
}

/// The text before the first zero.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).trim().into()
}

/// What MPI can reduce and copy.
trait Element: Copy {
    fn datatype() -> ffi::MPI_Datatype;
}

macro_rules! element {
    ($type:ty, $datatype:ident) => {
        impl Element for $type {
            fn datatype() -> ffi::MPI_Datatype {
                // SAFETY: a constant of the C side.
                unsafe { ffi::$datatype }
            }
        }
    };
}

element!(f32, RSMPI_FLOAT);
element!(f64, RSMPI_DOUBLE);
element!(u8, RSMPI_UINT8_T);
