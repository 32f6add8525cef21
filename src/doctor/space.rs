//! Checks of free space for temporary files.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Finding;

const MIB: u64 = 1 << 20;
const GIB: f64 = (1_u64 << 30) as f64;
/// Minimum of `/dev/shm`: MPI processes of one host exchange messages through files there, about 4 MiB each (Open MPI
/// 4).
const MIN_SHARED_MEMORY: u64 = 64 * MIB;
/// Minimum of the temporary folder, to which little is written.
const MIN_TEMPORARY: u64 = 64 * MIB;

pub(super) fn examine() -> [Finding; 2] {
    let remount = "sudo mount -o remount,size=2g /dev/shm # in a container: run it with --shm-size=2g";
    let other = "export TMPDIR=DIR # a folder with free space";
    [
        folder("/dev/shm", Path::new("/dev/shm"), MIN_SHARED_MEMORY, remount),
        folder("temp folder", &std::env::temp_dir(), MIN_TEMPORARY, other),
    ]
}

fn folder(part: &'static str, path: &Path, least: u64, fix: &str) -> Finding {
    match free_and_total(path) {
        Ok((free, total)) => {
            let room = format!("{}: {:.1} of {:.1} GiB free", path.display(), free as f64 / GIB, total as f64 / GIB);
            if free < least {
                return Finding::optional(part, format!("{room}, less than {} MiB", least / MIB), fix);
            }
            Finding::found(part, room)
        }
        Err(error) => Finding::optional(part, format!("{}: {error}", path.display()), fix),
    }
}

/// Bytes available to this user on the file system of a folder, and its total size.
fn free_and_total(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in NUL and the out-pointer is valid; the structure is filled if the call succeeds.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::PartState;

    #[test]
    fn room_is_measured_and_lack_of_it_reported() {
        let folder_of = |path: &str, least| folder("temp folder", Path::new(path), least, "make room").state;
        let PartState::Found(room) = folder_of("/", 0) else { panic!("the root exists") };
        assert!(room.starts_with("/: ") && room.ends_with(" GiB free"), "{room}");
        for (path, least) in [("/", u64::MAX), ("/no/such/folder", 0)] {
            let PartState::Missing { fix, needed, .. } = folder_of(path, least) else { panic!("{path} is no use") };
            assert_eq!((fix.as_str(), needed), ("make room", false));
        }
    }
}
