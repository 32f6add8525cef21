//! Locks of folders that one process at a time may write.
//!
//! A lock is a symbolic link whose target names process and host of its owner: it is created in one step, on network file
//! systems, too, and needs no space on a full disk. The owner renews it every few seconds. The lock of a process that is gone is taken over: on the same host at once, on another
//! host when it has not been renewed for a while. Renewals are observed, not compared with a clock, so the clocks of
//! the hosts may differ.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::host::{host_name, process_exists};

/// Time between two renewals.
const RENEWAL: Duration = Duration::from_secs(5);
/// Time without a renewal after which the owner on another host counts as dead.
const DEAD: Duration = Duration::from_secs(30);
/// Time between two looks at a lock.
const POLL: Duration = Duration::from_millis(500);

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct FolderLock {
    /// `None` on a file system without symbolic links, whose folders are not locked.
    path: Option<PathBuf>,
    owner: Owner,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
}

/// Target of the link: `PID@HOST#RENEWALS`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    host: String,
    pid: u32,
    renewals: u64,
}

/// A lock that cannot be taken.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds it.
    Held {
        /// The lock file.
        path: PathBuf,
        host: String,
        pid: u32,
    },
    /// The lock file cannot be written or read.
    Io { path: PathBuf, source: io::Error },
}

impl FolderLock {
    /// Locks `folder`, which is created if it is missing, for this process. `name` is that of the lock file.
    ///
    /// # Errors
    /// Returns an error if another process holds the lock. If the owner was on another host, this is known only after
    /// it has renewed the lock, or after 30 s without a renewal.
    pub fn acquire(folder: &Path, name: &str) -> Result<Self, LockError> {
        let path = folder.join(name);
        let fail = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(fail)?;
        let owner = Owner { host: host_name(), pid: std::process::id(), renewals: 0 };
        loop {
            match symlink(owner.to_string(), &path) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => take_over(&path)?,
                Err(error) if is_unsupported(&error) => {
                    return Ok(Self { path: None, owner, stop: None, renewal: None });
                }
                Err(error) => return Err(fail(error)),
            }
        }
        let (stop, stopped) = channel();
        let (file, mut renewed) = (path.clone(), owner.clone());
        let renew = move || {
            while stopped.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
                renewed.renewals += 1;
                // If a network file system is away, the next renewal may succeed.
                let _ = renew_own(&file, &renewed);
            }
        };
        let renewal = thread::Builder::new().name("folder-lock".into()).spawn(renew).map_err(fail)?;
        Ok(Self { path: Some(path), owner, stop: Some(stop), renewal: Some(renewal) })
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(renewal) = self.renewal.take() {
            let _ = renewal.join();
        }
        // Another process may have taken the lock over while this one was suspended.
        if let Some(path) = self.path.as_deref().filter(|path| read(path).is_ok_and(|found| found.is_same(&self.owner)))
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Returns whether the error is that of a file system without symbolic links, such as exFAT and some network shares.
fn is_unsupported(error: &io::Error) -> bool {
    [libc::EPERM, libc::ENOSYS, libc::EOPNOTSUPP].map(Some).contains(&error.raw_os_error())
}

impl Owner {
    /// Returns whether this is the same process, at any renewal.
    fn is_same(&self, other: &Self) -> bool {
        self.pid == other.pid && self.host == other.host
    }
}

/// Renews the own lock. A lock that another process has taken over while this one was suspended is left alone.
fn renew_own(path: &Path, owner: &Owner) -> io::Result<()> {
    if read(path)?.is_same(owner) { rewrite(path, owner) } else { Ok(()) }
}

/// Replaces a lock.
fn rewrite(path: &Path, owner: &Owner) -> io::Result<()> {
    let beside = path.with_extension(format!("{}-{}", owner.pid, owner.host));
    // Left by a renewal that failed, or that was killed.
    let _ = fs::remove_file(&beside);
    symlink(owner.to_string(), &beside)?;
    fs::rename(&beside, path)
}

fn read(path: &Path) -> io::Result<Owner> {
    let target = fs::read_link(path)?;
    let parse = |text: &str| {
        let (pid, rest) = text.split_once('@')?;
        let (host, renewals) = rest.rsplit_once('#')?;
        Some(Owner { host: host.to_owned(), pid: pid.parse().ok()?, renewals: renewals.parse().ok()? })
    };
    target.to_str().and_then(parse).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.pid, self.host, self.renewals)
    }
}

/// Removes the lock of a dead owner.
fn take_over(path: &Path) -> Result<(), LockError> {
    let began = Instant::now();
    let first = read(path);
    loop {
        let now = read(path);
        let changed = match (&first, &now) {
            (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            (Ok(first), Ok(now)) => first != now,
            (first, now) => first.is_ok() != now.is_ok(),
        };
        let is_here = now.as_ref().is_ok_and(|owner| owner.host == host_name());
        if let Ok(Owner { host, pid, .. }) = &now
            && (changed || (is_here && *pid != std::process::id() && process_exists(*pid)))
        {
            return Err(LockError::Held { path: path.to_owned(), host: host.clone(), pid: *pid });
        }
        if is_here || began.elapsed() > DEAD {
            return remove_dead(path, now.ok().as_ref())
                .map_err(|source| LockError::Io { path: path.to_owned(), source });
        }
        thread::sleep(POLL);
    }
}

/// Removes a lock that still names this dead owner, or is still unreadable.
///
/// Several processes may find it abandoned at once. One at a time looks at it again and removes it, or else the second
/// would remove the new lock of the first.
fn remove_dead(path: &Path, dead: Option<&Owner>) -> io::Result<()> {
    let _guard = Guard::acquire(&path.with_extension("take-over"))?;
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        found if found.as_ref().ok() == dead => fs::remove_file(path),
        // Another process was faster.
        _ => Ok(()),
    }
}

/// Exclusive access to the removal of a dead lock. The system releases it if the process is killed.
struct Guard {
    path: PathBuf,
    /// Closed, and so unlocked, after the file has been removed.
    _file: File,
}

impl Guard {
    fn acquire(path: &Path) -> io::Result<Self> {
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(path)?;
            match file.lock() {
                // A network file system without locks.
                Err(error) if is_without_locks(&error) => {}
                result => result?,
            }
            // The process before may have removed the file meanwhile, and another may have created a new one.
            let own = file.metadata()?;
            if fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino())) {
                return Ok(Self { path: path.to_owned(), _file: file });
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn is_without_locks(error: &io::Error) -> bool {
    [libc::ENOLCK, libc::ENOSYS, libc::EOPNOTSUPP].map(Some).contains(&error.raw_os_error())
}

/// Returns the command line of a process of this host.
fn command(host: &str, pid: u32) -> Option<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|_| host == host_name())?;
    let words: Vec<_> = text.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    Some(words.join(" ").trim_end().to_owned()).filter(|command| !command.is_empty())
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { path, host, pid } => {
                let command = command(host, *pid).map_or_else(String::new, |command| format!(" (`{command}`)"));
                let folder = path.parent().unwrap_or(path).display();
                write!(f, "{folder}: in use by process {pid} on {host}{command}; wait for its end, or stop it")
            }
            Self::Io { path, source } => write!(f, "{}: cannot be written: {source}", path.display()),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Held { .. } => None,
            Self::Io { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = ".lock";

    fn foreign(host: &str, pid: u32) -> Owner {
        Owner { host: host.into(), pid, renewals: 3 }
    }

    fn write_lock(path: &Path, owner: &Owner) {
        symlink(owner.to_string(), path).unwrap();
    }

    #[test]
    fn a_lock_is_released_and_taken_over_from_the_dead() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::acquire(folder.path(), NAME).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // Process IDs are at most 2^22.
        write_lock(&folder.path().join(NAME), &foreign(&host_name(), 1 << 30));
        drop(FolderLock::acquire(folder.path(), NAME).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_error_names_a_live_owner() {
        let folder = tempfile::tempdir().unwrap();
        // Process 1 exists.
        write_lock(&folder.path().join(NAME), &foreign(&host_name(), 1));
        let error = FolderLock::acquire(folder.path(), NAME).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process 1 on {}", host_name())), "{error}");
    }

    #[test]
    fn an_owner_on_another_host_is_alive_while_it_renews() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        write_lock(&path, &foreign("node7", 1));
        let renewed = Owner { renewals: 4, ..foreign("node7", 1) };
        let other = {
            let path = path.clone();
            thread::spawn(move || {
                thread::sleep(2 * POLL);
                rewrite(&path, &renewed).unwrap();
            })
        };
        let error = FolderLock::acquire(folder.path(), NAME).unwrap_err().to_string();
        other.join().unwrap();
        assert!(error.contains("process 1 on node7"), "{error}");
    }

    #[test]
    fn one_of_many_takes_over_from_the_dead() {
        for _ in 0..300 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(NAME);
            write_lock(&path, &foreign(&host_name(), 1 << 30));
            let start = std::sync::Barrier::new(4);
            // Process 1 exists, so the lock of the first is that of a live process to the others.
            let take = || {
                start.wait();
                while symlink(foreign(&host_name(), 1).to_string(), &path).is_err() {
                    if take_over(&path).is_err() {
                        return 0;
                    }
                }
                1
            };
            let owners: u32 = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(owners, 1);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_renewal_neither_takes_a_lock_back_nor_stops_after_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        write_lock(&path, &foreign("node7", 5));
        // Left by a renewal that was killed before the rename.
        write_lock(&path.with_extension("5-node7"), &foreign("node7", 5));
        renew_own(&path, &Owner { renewals: 9, ..foreign("node7", 5) }).unwrap();
        assert_eq!(read(&path).unwrap().renewals, 9);
        rewrite(&path, &foreign("node8", 6)).unwrap();
        renew_own(&path, &Owner { renewals: 10, ..foreign("node7", 5) }).unwrap();
        assert_eq!(read(&path).unwrap(), foreign("node8", 6));
    }
}
