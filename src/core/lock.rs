//! Locks of folders that one process at a time may write.
//!
//! A lock is a file, so that it works on network file systems: it names host, process and command of its owner, who
//! renews it every few seconds. The lock of a process that is gone is taken over: on the same host at once, on another
//! host when it has not been renewed for a while. Renewals are observed, not compared with a clock, so the clocks of
//! the hosts may differ.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

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
    path: PathBuf,
    owner: Owner,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
}

/// Contents of a lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    host: String,
    pid: u32,
    /// Command line.
    command: String,
    /// Counts the renewals.
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
        command: String,
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
        let owner = Owner { host: host_name(), pid: std::process::id(), command: command(), renewals: 0 };
        loop {
            match create(&path, &owner) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => take_over(&path)?,
                Err(error) => return Err(fail(error)),
            }
        }
        let (stop, stopped) = channel();
        let (file, mut renewed) = (path.clone(), owner.clone());
        let renew = move || {
            while stopped.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
                renewed.renewals += 1;
                // On a full disk or a network file system that is away, the next renewal may succeed.
                let _ = rewrite(&file, &renewed);
            }
        };
        let renewal = thread::Builder::new().name("folder-lock".into()).spawn(renew).map_err(fail)?;
        Ok(Self { path, owner, stop: Some(stop), renewal: Some(renewal) })
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(renewal) = self.renewal.take() {
            let _ = renewal.join();
        }
        // Another process may have taken the lock over while this one was suspended.
        if read(&self.path).is_ok_and(|owner| owner.pid == self.owner.pid && owner.host == self.owner.host) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Creates the file; fails if it exists. Its name appears with its contents, as a link to a complete file.
fn create(path: &Path, owner: &Owner) -> io::Result<()> {
    let beside = path.with_extension(format!("{}-{}", owner.pid, owner.host));
    write(&beside, owner)?;
    // `link` fails if the name exists, on network file systems, too.
    let linked = match fs::hard_link(&beside, path) {
        // A file system without hard links.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).create_new(true).open(path).and_then(|mut file| fill(&mut file, owner))
        }
        linked => linked,
    };
    let _ = fs::remove_file(&beside);
    linked
}

fn write(path: &Path, owner: &Owner) -> io::Result<()> {
    fill(&mut File::create(path)?, owner)
}

fn fill(file: &mut File, owner: &Owner) -> io::Result<()> {
    file.write_all(&serde_json::to_vec(owner)?)
}

/// Replaces the contents of the own lock.
fn rewrite(path: &Path, owner: &Owner) -> io::Result<()> {
    let beside = path.with_extension(format!("{}-{}", owner.pid, owner.host));
    write(&beside, owner)?;
    fs::rename(&beside, path)
}

fn read(path: &Path) -> io::Result<Owner> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
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
        if let Ok(Owner { host, pid, command, .. }) = now {
            let is_here = host == host_name();
            if changed || (is_here && pid != std::process::id() && process_exists(pid)) {
                return Err(LockError::Held { path: path.to_owned(), host, pid, command });
            }
            if is_here {
                break;
            }
        }
        if began.elapsed() > DEAD {
            break;
        }
        thread::sleep(POLL);
    }
    // Of several processes that find it abandoned, the rename succeeds for one.
    let aside = path.with_extension(format!("{}-{}.dead", std::process::id(), host_name()));
    if fs::rename(path, &aside).is_ok() {
        let _ = fs::remove_file(aside);
    }
    Ok(())
}

fn command() -> String {
    std::env::args().skip(1).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { path, host, pid, command } => write!(
                f,
                "{}: in use by process {pid} on {host} (`{command}`); wait for its end, or stop it",
                path.parent().unwrap_or(path).display()
            ),
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for LockError {}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = ".lock";

    fn foreign(host: &str, pid: u32) -> Owner {
        Owner { host: host.into(), pid, command: "train".into(), renewals: 3 }
    }

    #[test]
    fn a_lock_is_released_and_taken_over_from_the_dead() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::acquire(folder.path(), NAME).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // Process IDs are at most 2^22.
        write(&folder.path().join(NAME), &foreign(&host_name(), 1 << 30)).unwrap();
        drop(FolderLock::acquire(folder.path(), NAME).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_error_names_a_live_owner() {
        let folder = tempfile::tempdir().unwrap();
        // Process 1 exists.
        write(&folder.path().join(NAME), &foreign(&host_name(), 1)).unwrap();
        let error = FolderLock::acquire(folder.path(), NAME).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process 1 on {} (`train`)", host_name())), "{error}");
    }

    #[test]
    fn an_owner_on_another_host_is_alive_while_it_renews() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        write(&path, &foreign("node7", 1)).unwrap();
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
}
