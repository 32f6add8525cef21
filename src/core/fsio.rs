//! Atomic file operations: a file is either complete or absent.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// Name prefix of incomplete files and folders.
pub const PARTIAL: &str = ".partial-";

/// Writes a file atomically, so that a reader never sees a partial file: writes to a temporary file in the same folder,
/// fsyncs it, and renames it.
///
/// Creates the parent directories. On error, no temporary file is left behind.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
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
pub fn write_unsynced(path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> io::Result<()> {
    write_beside(path, write)?.persist(path).map(drop).map_err(|error| error.error)
}

/// Writes to a temporary file in the folder of `path`.
fn write_beside(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<NamedTempFile> {
    let directory = parent(path);
    fs::create_dir_all(directory)?;
    let mut temporary = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(directory)?;
    {
        let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        write(&mut buffered)?;
        buffered.flush()?;
    }
    set_default_mode(temporary.as_file())?;
    Ok(temporary)
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
    let beside = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(folder)?;
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
    let aside = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent(path))?;
    fs::rename(path, aside.path().join("old"))?;
    aside.close()
}

/// Removes temporary files and folders left behind in a folder by killed writers.
pub fn remove_partial(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let is_folder = entry.file_type()?.is_dir();
            if is_folder { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
    }
    Ok(())
}

/// Sets mode 0755 on a folder, since temporary folders are private to their owner.
pub fn make_folder_readable(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
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

/// Sets mode 0644, since temporary files are private to their owner but results must be readable like other files.
#[cfg(unix)]
fn set_default_mode(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_default_mode(_: &File) -> io::Result<()> {
    Ok(())
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
}
