//! MPI's C functions with checked return codes, and polling of an operation until its timeout.

use std::ffi::{c_char, c_int};
use std::thread;
use std::time::{Duration, Instant};

use ::mpi::ffi;

use crate::distributed::health::{Diagnosis, Health};
use crate::distributed::{CommError, Fault};

/// Checks the return code of `operation`, which `rank` started at `began`.
pub(super) fn check(rank: usize, operation: &str, began: Instant, code: c_int) -> Result<(), CommError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the buffer has room for the longest text and its terminating zero.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    Err(error(rank, operation, began, Fault::Lost, text_of(&text)))
}

pub(super) fn error(rank: usize, operation: &str, began: Instant, fault: Fault, reason: String) -> CommError {
    CommError { rank, operation: operation.into(), elapsed_s: began.elapsed().as_secs_f64(), fault, reason }
}

/// Returns the name and version of the MPI library, such as `Open MPI v4.1.4` or `MPICH Version: 4.0.2`.
pub(crate) fn library_version() -> String {
    let mut length = 0;
    // SAFETY: the buffer has room for the longest text and its zero, and the call is allowed before MPI_Init.
    let text = unsafe {
        let mut text = vec![0u8; ffi::RSMPI_MAX_LIBRARY_VERSION_STRING as usize + 1];
        ffi::MPI_Get_library_version(text.as_mut_ptr().cast::<c_char>(), &mut length);
        text
    };
    let text = text_of(&text);
    text.split([',', '\n']).next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the text before the first zero byte.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).trim().into()
}

/// A scalar type that MPI can reduce and copy.
pub(super) trait MpiScalar: Copy {
    fn datatype() -> ffi::MPI_Datatype;
}

macro_rules! mpi_scalar {
    ($type:ty, $datatype:ident) => {
        impl MpiScalar for $type {
            fn datatype() -> ffi::MPI_Datatype {
                // SAFETY: a constant of the C side.
                unsafe { ffi::$datatype }
            }
        }
    };
}

mpi_scalar!(f32, RSMPI_FLOAT);
mpi_scalar!(f64, RSMPI_DOUBLE);
mpi_scalar!(u8, RSMPI_UINT8_T);
mpi_scalar!(u16, RSMPI_UINT16_T);

/// Number of polls without sleeping.
const SPIN_COUNT: u32 = 256;
/// Sleep between later polls. A poll costs about a microsecond, so the core is free for computation.
const POLL_INTERVAL: Duration = Duration::from_micros(20);
/// After this much waiting, another millisecond of latency is negligible.
const LONG_WAIT: Duration = Duration::from_secs(1);
const LONG_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Result of a poll.
pub(super) enum PollState<T> {
    Done(T),
    /// Progress was made, but the operation is not complete.
    Progressed,
    Unchanged,
}

/// Timeout for waiting on other ranks.
pub(super) struct Deadline<'a> {
    limit: Duration,
    health: &'a Health,
}

impl<'a> Deadline<'a> {
    pub(super) fn new(limit: Duration, health: &'a Health) -> Self {
        Self { limit, health }
    }

    /// Polls until `poll` returns a result, or until the timeout has passed and the late ranks are not just slow.
    ///
    /// # Errors
    /// Returns the error of `poll`, or an error that names the missing rank.
    pub(super) fn poll_until_done<T>(
        &self,
        rank: usize,
        operation: &str,
        began: Instant,
        mut poll: impl FnMut() -> Result<PollState<T>, CommError>,
    ) -> Result<T, CommError> {
        let mut idle_polls = 0;
        // A bucket may have been in flight long before a caller waits for it; other ranks may have started only now.
        let mut deadline = Instant::now() + self.limit;
        loop {
            match poll()? {
                PollState::Done(found) => return Ok(found),
                PollState::Progressed => idle_polls = 0,
                PollState::Unchanged => idle_polls += 1,
            }
            if idle_polls < SPIN_COUNT {
                thread::yield_now();
                continue;
            }
            let now = Instant::now();
            if now >= deadline {
                match self.health.diagnose(self.limit) {
                    Diagnosis::Slow(reason) => {
                        tracing::warn!(
                            "rank {rank}: {operation} is still waiting after {:.0} s: {reason}",
                            began.elapsed().as_secs_f64()
                        );
                        deadline = now + self.limit;
                    }
                    Diagnosis::Lost(reason) => {
                        let operation = format!("{operation}, at {},", self.health.phase());
                        return Err(error(rank, &operation, began, Fault::Lost, reason));
                    }
                }
            }
            thread::sleep(if now + self.limit >= deadline + LONG_WAIT { LONG_POLL_INTERVAL } else { POLL_INTERVAL });
        }
    }
}
