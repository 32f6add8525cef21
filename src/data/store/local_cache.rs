//! Copies of preprocessed cases on a local disk of the host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::native::files_of;
use nnunet_comm::distributed::Communicator;
use nnunet_core::fsio;

/// Copies `cases` of the store at `folder` into a separate folder below `local_cache_dir`, once per host, and returns
/// that folder. The ranks of a host share the work; all files are present on return. An existing file of the same size
/// and modification time is kept. Concurrent jobs may copy the same cases.
///
/// # Errors
/// Returns an error if a file cannot be read or written; it names the folder and the space the cases need.
pub fn copy_to_local_cache(
    folder: &Path,
    cases: &[String],
    local_cache_dir: &Path,
    comm: &dyn Communicator,
) -> Result<PathBuf, LocalCacheError> {
    let staged = local_cache_dir.join(cache_name(folder));
    let mut files: Vec<PathBuf> = cases.iter().flat_map(|case| files_of(folder, case)).collect();
    files.sort();
    let copies: Vec<_> = files.iter().map(|file| staged.join(file.file_name().unwrap_or_default())).collect();
    copy_all(&files, &copies, local_cache_dir, comm)?;
    Ok(staged)
}

/// Copies label maps by case like [`copy_to_local_cache`], possibly from several folders; returns the paths of the
/// copies.
///
/// # Errors
/// Returns an error under the same conditions as [`copy_to_local_cache`].
pub fn copy_label_maps_to_local_cache(
    label_maps: &BTreeMap<String, PathBuf>,
    local_cache_dir: &Path,
    comm: &dyn Communicator,
) -> Result<BTreeMap<String, PathBuf>, LocalCacheError> {
    let copy_of = |file: &Path| {
        let folder = local_cache_dir.join(cache_name(file.parent().unwrap_or(Path::new("."))));
        folder.join(file.file_name().unwrap_or_default())
    };
    let files: Vec<PathBuf> = label_maps.values().cloned().collect();
    let copies: Vec<PathBuf> = files.iter().map(|file| copy_of(file)).collect();
    copy_all(&files, &copies, local_cache_dir, comm)?;
    Ok(label_maps.keys().cloned().zip(copies).collect())
}

/// Copies the files that are missing; the ranks of a host share the work.
fn copy_all(
    files: &[PathBuf],
    copies: &[PathBuf],
    local_cache_dir: &Path,
    comm: &dyn Communicator,
) -> Result<(), LocalCacheError> {
    let fail = |source: io::Error| LocalCacheError::Copy {
        folder: local_cache_dir.to_owned(),
        megabytes: files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum::<u64>() >> 20,
        source,
    };
    for (file, copy) in files.iter().zip(copies).skip(comm.local_rank()).step_by(comm.local_size()) {
        comm.enter_unbounded("staging of preprocessed cases");
        copy_if_needed(file, copy).map_err(fail)?;
    }
    Ok(comm.barrier("staging of preprocessed cases")?)
}

/// An error while staging cases.
#[derive(Debug, thiserror::Error)]
pub enum LocalCacheError {
    /// A file could not be copied.
    #[error("{}: cannot copy {megabytes} MB of preprocessed cases: {source}; use another --local-cache-dir, or omit it", folder.display())]
    Copy { folder: PathBuf, megabytes: u64, source: io::Error },
    /// Another rank failed.
    #[error("{0}")]
    Comm(#[from] nnunet_comm::distributed::CommError),
    /// The copies cannot be read.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Returns the store's name with a hash of its path, so that the stores of two datasets do not mix.
fn cache_name(folder: &Path) -> String {
    let path = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let hash =
        path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{name}-{hash:016x}")
}

fn copy_if_needed(from: &Path, to: &Path) -> io::Result<()> {
    let source = fs::metadata(from)?;
    let modified = source.modified()?;
    if let Ok(copy) = fs::metadata(to)
        && copy.len() == source.len()
        && copy.modified()? == modified
    {
        return Ok(());
    }
    fsio::write_atomically(to, |file| {
        io::copy(&mut File::open(from)?, file)?;
        // Set the modification time before the file gets its final name.
        io::Write::flush(file)?;
        file.get_ref().set_modified(modified)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_comm::distributed::Single;

    fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
        folder
    }

    #[test]
    fn only_missing_or_changed_files_are_copied() {
        let store =
            folder_with(&[("a.npy", "data"), ("a_seg.npy", "labels"), ("a.json", "{}"), ("b.npy", "not asked for")]);
        let disk = tempfile::tempdir().unwrap();
        let cases = ["a".to_owned()];
        let staged = copy_to_local_cache(store.path(), &cases, disk.path(), &Single).unwrap();
        assert_eq!(fs::read_to_string(staged.join("a.npy")).unwrap(), "data");
        assert_eq!(fs::read_dir(&staged).unwrap().count(), 3);

        // A repeated copy would be a new file.
        let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(staged.join(name)).unwrap());
        let before = inode("a.npy");
        fs::write(staged.join("a_seg.npy"), "cut").unwrap();
        assert_eq!(copy_to_local_cache(store.path(), &cases, disk.path(), &Single).unwrap(), staged);
        assert_eq!(inode("a.npy"), before);
        assert_eq!(fs::read_to_string(staged.join("a_seg.npy")).unwrap(), "labels");
    }

    #[test]
    fn stores_have_separate_folders() {
        let [one, other] = [(); 2].map(|()| folder_with(&[("a.npy", "x"), ("a_seg.npy", "y"), ("a.json", "{}")]));
        let disk = tempfile::tempdir().unwrap();
        let staged = |store: &tempfile::TempDir| {
            copy_to_local_cache(store.path(), &["a".to_owned()], disk.path(), &Single).unwrap()
        };
        assert_ne!(staged(&one), staged(&other));
    }

    #[test]
    fn an_unusable_cache_folder_is_named() {
        let store = folder_with(&[("a.npy", "x"), ("a_seg.npy", "y"), ("a.json", "{}"), ("file", "")]);
        let error = copy_to_local_cache(store.path(), &["a".to_owned()], &store.path().join("file"), &Single)
            .unwrap_err()
            .to_string();
        assert!(error.contains("file: cannot copy 0 MB") && error.contains("--local-cache-dir"), "{error}");
    }
}
