//! MPI's C functions with checked return codes.

use std::ffi::{c_char, c_int};
use std::time::Instant;

use ::mpi::ffi;

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
