//! Name of this host, and its processes.

use std::ffi::CStr;
use std::io;

/// Returns the name of this host.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer has the stated length, minus one byte so that a truncated name is still zero-terminated.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns whether a process of this host exists.
pub fn process_exists(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: signal 0 is only checked, not sent.
    let result = unsafe { libc::kill(pid, 0) };
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_exists_and_an_impossible_one_does_not() {
        assert!(process_exists(std::process::id()) && !process_exists(1 << 30) && !process_exists(u32::MAX));
        assert!(!host_name().is_empty());
    }
}
