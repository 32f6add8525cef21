//! Memory-mapped files.
//!
//! If a file shrinks while it is mapped, for example because another program overwrites it, access to the missing part
//! raises SIGBUS. The handler installed here names the file and the rank, and ends the process with exit code 75.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use memmap2::Mmap;

/// Exit code of a temporary failure (`EX_TEMPFAIL` of sysexits.h).
const EXIT_CODE: c_int = 75;

/// A file mapped into memory for reading.
///
/// The program replaces its files by renaming and never changes them in place, so the contents of a mapping are stable
/// unless someone else changes the file.
pub struct MappedFile {
    map: Mmap,
    entry: &'static Entry,
}

/// A mapped range. Entries are never freed, so that the signal handler can read them at any time.
struct Entry {
    /// 0 after the file was unmapped.
    start: AtomicUsize,
    len: usize,
    path: Vec<u8>,
    next: AtomicPtr<Entry>,
}

/// Newest entry.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());
/// Rank of this process plus 1; 0 if unknown.
static RANK: AtomicUsize = AtomicUsize::new(0);
/// Handler that was installed before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(&File::open(path)?, path)
    }

    /// Maps an open file; `path` names it in messages.
    ///
    /// # Errors
    /// Returns an error if the file cannot be mapped; only regular files can.
    pub fn from_file(file: &File, path: &Path) -> io::Result<Self> {
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
        }
        install_handler();
        // SAFETY: the mapping is only read. Files are replaced by renaming, which leaves the mapped inode unchanged; if
        // the file is truncated by someone else, access raises SIGBUS, which ends the process.
        let map = unsafe { Mmap::map(file) }?;
        let entry: &'static Entry = Box::leak(Box::new(Entry {
            start: AtomicUsize::new(map.as_ptr().addr()),
            len: map.len(),
            path: path.as_os_str().as_bytes().to_vec(),
            next: AtomicPtr::new(ptr::null_mut()),
        }));
        let mut head = ENTRIES.load(Ordering::Acquire);
        loop {
            entry.next.store(head, Ordering::Relaxed);
            match ENTRIES.compare_exchange(head, ptr::from_ref(entry).cast_mut(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(newer) => head = newer,
            }
        }
        Ok(Self { map, entry })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        self.entry.start.store(0, Ordering::Release);
    }
}

/// Sets the rank that messages name.
pub fn set_rank(rank: usize) {
    RANK.store(rank + 1, Ordering::Relaxed);
}

fn install_handler() {
    PREVIOUS.get_or_init(|| {
        // SAFETY: all-zero bytes are a valid `sigaction`, and the pointers are to initialized values on the stack.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let mut previous: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGBUS, &action, &mut previous);
            previous
        }
    });
}

/// Only async-signal-safe functions are called here.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` of a fault.
    let address = unsafe { (*info).si_addr() }.addr();
    let mut entry = ENTRIES.load(Ordering::Acquire);
    // SAFETY: entries are never freed, and immutable except for their atomic fields.
    while let Some(Entry { start, len, path, next }) = unsafe { entry.as_ref() } {
        let start = start.load(Ordering::Acquire);
        if start != 0 && (start..start + len.next_multiple_of(1 << 16)).contains(&address) {
            let mut line = Line::new();
            line.push(b"error: ");
            line.push(path);
            line.push(b": the file became shorter while it was in use");
            if let Some(rank) = RANK.load(Ordering::Relaxed).checked_sub(1) {
                line.push(b" (rank ");
                line.push_number(rank);
                line.push(b")");
            }
            line.push(b"; another program has changed it, or its disk has failed: restore it and run again\n");
            // SAFETY: the buffer is valid for its length; both calls are async-signal-safe.
            unsafe {
                libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
                libc::_exit(EXIT_CODE);
            }
        }
        entry = next.load(Ordering::Acquire);
    }
    // Not one of these files: leave it to the previous handler. The fault repeats after the return.
    // SAFETY: the previous action was returned by `sigaction`; a handler with SA_SIGINFO has this signature.
    unsafe {
        match PREVIOUS.get() {
            Some(previous) if previous.sa_flags & libc::SA_SIGINFO != 0 && previous.sa_sigaction > 1 => {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(previous.sa_sigaction);
                handler(signal, info, context);
            }
            _ => {
                libc::signal(libc::SIGBUS, libc::SIG_DFL);
            }
        }
    }
}

/// A line of text in a fixed buffer, since a signal handler must not allocate.
struct Line {
    bytes: [u8; 4608],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 4608], len: 0 }
    }

    fn push(&mut self, text: &[u8]) {
        let text = &text[..text.len().min(self.bytes.len() - self.len)];
        self.bytes[self.len..][..text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    fn push_number(&mut self, number: usize) {
        let mut digits = [0; 20];
        let (mut rest, mut at) = (number, digits.len());
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PATH: &str = "NNUNET_TEST_SHRINKING_FILE";

    /// Runs in a child process, which the handler ends.
    #[test]
    fn shrinks_a_mapped_file() {
        let Some(path) = std::env::var_os(PATH) else { return };
        set_rank(12);
        let map = MappedFile::open(Path::new(&path)).unwrap();
        assert_eq!(map[(1 << 20) - 1], 7);
        std::fs::write(&path, [1, 2, 3]).unwrap();
        panic!("read {}", map[1 << 19]);
    }

    #[test]
    fn a_file_that_shrinks_ends_the_process_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case_000.npy");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let test = "mapped::tests::shrinks_a_mapped_file";
        let output = command.args(["--exact", test, "--nocapture"]).env(PATH, &path).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EXIT_CODE), "{stderr}");
        assert!(stderr.contains("case_000.npy: the file became shorter") && stderr.contains("(rank 12)"), "{stderr}");
    }

    #[test]
    fn devices_are_not_mapped() {
        assert!(MappedFile::open(Path::new("/dev/zero")).is_err());
    }
}
