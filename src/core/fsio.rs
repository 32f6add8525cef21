//! Atomic file operations: a file is either complete or absent.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use tempfile::{NamedTempFile, TempDir};

use crate::host::{host_name, process_exists};

/// Name prefix of incomplete files and folders. The process ID and the host of the writer follow, and a random part:
/// `.partial-PID@HOST-RANDOM`.
const PARTIAL: &str = ".partial-";

/// Age after which the incomplete files of other hosts are removed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Writes a file atomically, so that a reader never sees a partial file: writes to a temporary file in the same folder,
/// fsyncs it, and renames it.
///
/// Creates the parent directories. On error, no temporary file is left behind.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut PartialFile>) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = write_beside(path, write)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    // The rename itself is durable only after the directory is synced.
    sync_folder(parent(path))
}

/// Like [`write_atomically`], but without fsync; for many files that can be regenerated.
///
/// After a power loss, a recently written file may be truncated or empty, so readers must check the length.
pub fn write_unsynced(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut PartialFile>) -> io::Result<()>,
) -> io::Result<()> {
    write_beside(path, write)?.persist(path).map(drop).map_err(|error| error.error)
}

/// Writes to a temporary file in the folder of `path`.
fn write_beside(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut PartialFile>) -> io::Result<()>,
) -> io::Result<NamedTempFile> {
    let directory = parent(path);
    fs::create_dir_all(directory)?;
    remove_abandoned_once(directory);
    let mut temporary = tempfile::Builder::new().prefix(partial_prefix()).tempfile_in(directory)?;
    let mut file = PartialFile { file: temporary.as_file_mut(), failure: None };
    let written = {
        let mut buffered = BufWriter::with_capacity(1 << 20, &mut file);
        write(&mut buffered).and_then(|()| buffered.flush())
    };
    match file.failure {
        Some(failure) => return Err(failure),
        None => written?,
    }
    // Temporary files are private to their owner, but results have the mode of other new files.
    temporary.as_file().set_permissions(Permissions::from_mode(0o666 & !umask()))?;
    Ok(temporary)
}

/// A file that is being written. Its first error is kept, and everything after it is dropped: formats such as zip wrap the
/// error of the system in one of their own, and try to write the end of the archive all the same.
pub struct PartialFile<'a> {
    file: &'a mut File,
    failure: Option<io::Error>,
}

impl PartialFile<'_> {
    /// Sets the modification time.
    ///
    /// # Errors
    /// Returns the error of the operating system.
    pub fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.file.set_modified(time)
    }

    fn latch<T>(&mut self, or: T, work: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        if self.failure.is_some() {
            return Ok(or);
        }
        match work(self.file) {
            // Retried by the caller.
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failure = Some(error);
                Ok(or)
            }
            done => done,
        }
    }
}

impl Write for PartialFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.latch(bytes.len(), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.latch((), File::flush)
    }
}

impl Seek for PartialFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.latch(0, |file| file.seek(to))
    }
}

/// Creates a hidden folder in `parent`, whose contents become visible by renaming. It is deleted when dropped.
pub fn partial_folder(parent: &Path) -> io::Result<TempDir> {
    remove_abandoned_once(parent);
    let folder = tempfile::Builder::new().prefix(partial_prefix()).tempdir_in(parent)?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777 & !umask()))?;
    Ok(folder)
}

/// Replaces the folder at `path` by `new`, or renames `new` to it. A crash leaves either the old or the new folder; the
/// old one is deleted afterwards.
///
/// On file systems that cannot exchange two names (some network file systems), a crash between two renames may leave
/// neither.
pub fn replace_folder(new: &Path, path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return fs::rename(new, path);
    }
    match exchange(new, path) {
        Ok(()) => fs::remove_dir_all(new),
        Err(_) => {
            let aside = partial_folder(parent(path))?;
            fs::rename(path, aside.path().join("old"))?;
            fs::rename(new, path)
        }
    }
}

/// Exchanges two names in one step (`renameat2` with `RENAME_EXCHANGE`).
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let [a, b] = [a, b].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (a, b) = (a?, b?);
    // SAFETY: both paths are NUL-terminated and outlive the call.
    let result =
        unsafe { libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns the mode bits that new files of this process do not have.
fn umask() -> u32 {
    static UMASK: OnceLock<u32> = OnceLock::new();
    // `umask(2)` would change it for other threads meanwhile.
    *UMASK.get_or_init(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
    })
}

fn partial_prefix() -> &'static str {
    static PREFIX: LazyLock<String> = LazyLock::new(|| format!("{PARTIAL}{}@{}-", std::process::id(), host_name()));
    &PREFIX
}

/// Removes the incomplete files and folders of killed writers when this process first writes into `folder`.
fn remove_abandoned_once(folder: &Path) {
    static DONE: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);
    if DONE.lock().is_ok_and(|mut done| done.insert(folder.to_owned())) {
        // Its failure is that of the following write, or does not matter.
        let _ = remove_partial(folder, is_abandoned);
    }
}

/// Returns whether the writer of an incomplete file is gone: its process, if it ran on this host; otherwise, its file
/// has not changed for a day.
fn is_abandoned(name: &str, entry: &fs::DirEntry) -> bool {
    let owner = name.strip_prefix(PARTIAL).and_then(|rest| rest.split_once('@'));
    let owner = owner.and_then(|(pid, rest)| Some((pid.parse().ok()?, rest.rsplit_once('-')?.0)));
    match owner {
        Some((pid, host)) if host == host_name() => !process_exists(pid),
        _ => {
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            changed.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > ABANDONED))
        }
    }
}

/// Checks that text from a file can be a part of a file name, and cannot lead to another folder.
///
/// # Errors
/// Returns a description of the problem.
pub fn check_name_part(text: &str) -> Result<(), String> {
    match text.find(['/', '\\', '\0']) {
        _ if text.is_empty() || text == "." || text == ".." => Err(format!("{text:?} cannot be a file name")),
        Some(_) => Err(format!("{text:?} is a path, but must be a name without `/`, `\\` and NUL")),
        None => Ok(()),
    }
}

/// Returns the folder that contains `path`.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Fsyncs a folder, so that its entries are durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes `link` a symbolic link to `target`, replacing an existing file, link or folder.
pub fn link_atomically(link: &Path, target: &Path) -> io::Result<()> {
    let folder = parent(link);
    let beside = partial_folder(folder)?;
    if link.is_dir() && !link.is_symlink() {
        fs::rename(link, beside.path().join("old"))?;
    }
    let new = beside.path().join("link");
    std::os::unix::fs::symlink(target, &new)?;
    fs::rename(&new, link)?;
    sync_folder(folder)
}

/// Removes a folder atomically: it is renamed first, so that no reader sees it partially deleted.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    let aside = partial_folder(parent(path))?;
    fs::rename(path, aside.path().join("old"))?;
    aside.close()
}

/// Removes all incomplete files and folders in a folder that no other process writes to.
pub fn remove_all_partial(folder: &Path) -> io::Result<()> {
    remove_partial(folder, |_, _| true)
}

fn remove_partial(folder: &Path, is_removed: impl Fn(&str, &fs::DirEntry) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PARTIAL) && is_removed(&name, &entry) {
            let is_folder = entry.file_type()?.is_dir();
            let removed = if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            // Another process may have removed it.
            removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        }
    }
    Ok(())
}

/// Like [`write_atomically`], for contents already in memory.
pub fn write_bytes(path: &Path, contents: &[u8]) -> io::Result<()> {
    write_atomically(path, |file| file.write_all(contents))
}

/// Copies a file's contents, written as with [`write_unsynced`].
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    write_unsynced(to, |file| io::copy(&mut source, file).map(drop))
}

/// Writes JSON with an indent of 4, like nnU-Net's files, and a final newline.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> io::Result<()> {
    write_atomically(path, |file| {
        let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut *file, indented))?;
        file.write_all(b"\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        write_bytes(&path, b"old").unwrap();
        let result = write_atomically(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("disk gone"))
        });
        assert!(result.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn incomplete_files_of_dead_processes_are_removed_by_the_next_write() {
        let directory = tempfile::tempdir().unwrap();
        // Process IDs are at most 2^22.
        let (dead, host) = (1 << 30, host_name());
        let names = [
            format!(".partial-{dead}@{host}-abc"),
            format!(".partial-{}@{host}-abc", std::process::id()),
            format!(".partial-{dead}@another-host-abc"),
        ];
        for name in &names {
            fs::write(directory.path().join(name), b"half").unwrap();
        }
        let old = directory.path().join(".partial-former");
        fs::create_dir(&old).unwrap();
        fs::write(old.join("inside"), b"half").unwrap();
        File::open(&old).unwrap().set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();
        write_bytes(&directory.path().join("new"), b"whole").unwrap();
        let exists = names.each_ref().map(|name| directory.path().join(name).exists());
        assert_eq!((exists, old.exists()), ([false, true, true], false));
    }

    #[test]
    fn names_do_not_lead_to_other_folders() {
        for name in ["", ".", "..", "/etc/x", "../x", "a/b", "a\\b", "a\0b"] {
            assert!(check_name_part(name).is_err(), "{name:?}");
        }
        for name in ["case_1", ".nii.gz", "a b", "..a", "\u{e4}"] {
            assert!(check_name_part(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_folder_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("folder");
        for content in ["first", "second"] {
            let new = partial_folder(directory.path()).unwrap().keep();
            fs::write(new.join("file"), content).unwrap();
            replace_folder(&new, &path).unwrap();
            assert_eq!(fs::read_to_string(path.join("file")).unwrap(), content);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }
}
