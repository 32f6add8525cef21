//! Checks of the host: processor, oneDNN, and free space for temporary files.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nnunet_nn::ops::Precision;
use nnunet_nn::ops::cpu::onednn;

use super::Finding;

/// Relevant vector extensions: flag in `/proc/cpuinfo` and display name.
const EXTENSIONS: [(&str, &str); 6] = [
    ("avx2", "AVX2"),
    ("avx512f", "AVX-512"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("amx_tile", "AMX"),
    ("asimd", "NEON"),
    ("sve", "SVE"),
];

/// Model, vector extensions, and cores available to this process under affinity and cgroup limits.
pub(super) fn processor() -> Finding {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = match std::thread::available_parallelism() {
        Ok(usable) => format!("{usable} of {} cores usable", online(&cpuinfo).max(usable.get())),
        Err(error) => format!("number of usable cores unknown: {error}"),
    };
    Finding::found("CPU", format!("{}; {cores}", describe(&cpuinfo)))
}

/// The library that computes convolutions on the CPU.
pub(super) fn onednn() -> Finding {
    match onednn::library() {
        Some(library) => {
            let (major, minor, patch) = library.version();
            let formats = match onednn::has_kernels(Precision::AmpBf16) {
                true => "f32 and bf16",
                false => "f32; no bf16 kernels for this processor, --precision amp-bf16 would be slow",
            };
            Finding::found("oneDNN", format!("{major}.{minor}.{patch}, {formats}"))
        }
        None if onednn::is_disabled() => {
            let effect = "disabled by NNUNET_DIST_ONEDNN=0; convolutions on the CPU are several times slower";
            Finding::optional("oneDNN", effect, "unset NNUNET_DIST_ONEDNN")
        }
        None => {
            let effect = "convolutions on the CPU are several times slower";
            Finding::optional("oneDNN", effect, onednn::INSTALL)
        }
    }
}

/// Model and vector extensions from the text of `/proc/cpuinfo`.
fn describe(cpuinfo: &str) -> String {
    let flags = value(cpuinfo, "flags").or_else(|| value(cpuinfo, "Features")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let model = value(cpuinfo, "model name").unwrap_or(std::env::consts::ARCH);
    let extensions = EXTENSIONS.iter().filter(|(flag, _)| has(flag)).map(|(_, name)| *name);
    std::iter::once(model).chain(extensions).collect::<Vec<_>>().join(", ")
}

fn online(cpuinfo: &str) -> usize {
    cpuinfo.lines().filter(|line| line.starts_with("processor")).count()
}

/// Value of a key for the first processor.
fn value<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    let pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == key).map(|(_, value)| value)
}

const MIB: u64 = 1 << 20;
const GIB: f64 = (1_u64 << 30) as f64;
/// Minimum of `/dev/shm`: MPI processes of one host exchange messages through files there, about 4 MiB each (Open MPI
/// 4).
const MIN_SHARED_MEMORY: u64 = 64 * MIB;
/// Minimum of the temporary folder, to which little is written.
const MIN_TEMPORARY: u64 = 64 * MIB;

pub(super) fn space() -> [Finding; 2] {
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

    const CPUINFO: &str = "\
processor\t: 0
model name\t: Example 9000
flags\t\t: fpu avx avx2 avx512f amx_tile

processor\t: 1
model name\t: Example 9000
flags\t\t: fpu avx avx2 avx512f amx_tile
";

    #[test]
    fn model_and_extensions_are_read_from_cpuinfo() {
        assert_eq!(describe(CPUINFO), "Example 9000, AVX2, AVX-512, AMX");
        assert_eq!(online(CPUINFO), 2);
        assert_eq!(describe("Features : fp asimd sve"), format!("{}, NEON, SVE", std::env::consts::ARCH));
    }

    #[test]
    fn reports_free_space_and_lack_of_it() {
        let folder_of = |path: &str, least| folder("temp folder", Path::new(path), least, "make room").state;
        let PartState::Found(room) = folder_of("/", 0) else { panic!("the root exists") };
        assert!(room.starts_with("/: ") && room.ends_with(" GiB free"), "{room}");
        for (path, least) in [("/", u64::MAX), ("/no/such/folder", 0)] {
            let PartState::Missing { fix, needed, .. } = folder_of(path, least) else { panic!("{path} is no use") };
            assert_eq!((fix.as_str(), needed), ("make room", false));
        }
    }
}
