//! Files that are either wholly there or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// How the names of files and folders begin that are not whole yet.
pub const PARTIAL: &str = ".partial-";

/// Writes a file so that a reader never sees a part of it: to a temporary name beside it, fsync, rename.
///
/// Creates the parent directories. On error nothing is left behind.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = write_beside(path, write)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    // The rename itself is durable only once the directory is.
    sync_folder(parent(path))
}

/// As [`write_atomically`], but without waiting for the disk: for many files that can be made again.
///
/// After a loss of power a file written shortly before may be short or empty, so readers check the length.
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

/// The folder that a file is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Waits until the names in a folder are on the disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes `link` a symbolic link to `target`, in place of whatever has been there.
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

/// Removes a folder so that nobody takes what is left of it for the whole meanwhile.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    let aside = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent(path))?;
    fs::rename(path, aside.path().join("old"))?;
    aside.close()
}

/// Removes what writers have left in a folder that were killed.
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

/// Temporary folders are private to their owner, too.
pub fn share_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

/// As [`write_atomically`], for contents already in memory.
pub fn write_bytes(path: &Path, contents: &[u8]) -> io::Result<()> {
    write_atomically(path, |file| file.write_all(contents))
}

/// Copies a file's contents, as [`write_unsynced`] writes.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    write_unsynced(to, |file| io::copy(&mut source, file).map(drop))
}

/// Writes JSON indented by 4, as nnU-Net's files are, with a final newline.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> io::Result<()> {
    write_atomically(path, |file| {
        let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut *file, indented))?;
        file.write_all(b"\n")
    })
}

/// Temporary files are private to their owner; results are shared with the group like any other file.
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
