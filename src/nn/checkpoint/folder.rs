//! Checkpoint folders: atomic writes, verification against SHA-256 checksums, names and order.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::model::TensorFileError;
use nnunet_core::fsio;
use nnunet_data::work::RunDir;

/// Name of the checksum file, in the format of coreutils' `sha256sum`.
const SUMS: &str = "SHA256SUMS";

/// Writes files into a folder atomically: it appears at `path` once all files are synced to disk. Replaces an existing
/// folder at `path`.
///
/// # Errors
/// Returns an error if the disk is full or the parent folder is not writable. No partial files are left.
pub fn write(path: &Path, files: &[(&str, Vec<u8>)]) -> io::Result<()> {
    let parent = fsio::parent(path);
    fs::create_dir_all(parent)?;
    let partial = fsio::partial_folder(parent)?;
    let mut sums = String::new();
    for (name, bytes) in files {
        write_synced(&partial.path().join(name), bytes)?;
        sums += &format!("{}  {name}\n", hex(bytes));
    }
    write_synced(&partial.path().join(SUMS), sums.as_bytes())?;
    fsio::sync_folder(partial.path())?;
    fsio::replace_folder(partial.path(), path)?;
    fsio::sync_folder(parent)
}

/// Reads files of the folder at `path`. If it is damaged, falls back with a warning to the newest intact earlier
/// checkpoint of the same run. Also returns the path that was read. A file that is not in the folder's checksum list is
/// returned empty.
///
/// # Errors
/// Returns an error that names the damage if there is no intact checkpoint.
pub fn read<const N: usize>(path: &Path, names: [&str; N]) -> Result<(PathBuf, [Vec<u8>; N]), TensorFileError> {
    let damage = match read_whole(path, names) {
        Ok(files) => return Ok((path.to_owned(), files)),
        Err(damage) => damage,
    };
    for earlier in earlier_checkpoints(path) {
        if let Ok(files) = read_whole(&earlier, names) {
            tracing::warn!("{damage}; falling back to {}", earlier.display());
            return Ok((earlier, files));
        }
    }
    Err(damage)
}

fn read_whole<const N: usize>(path: &Path, names: [&str; N]) -> Result<[Vec<u8>; N], TensorFileError> {
    if path.is_file() {
        return Err(TensorFileError::new(path, "is a file; a checkpoint is a folder with checkpoint.json"));
    }
    let sums = read_sums(path)?;
    let mut files = [const { Vec::new() }; N];
    for (bytes, name) in files.iter_mut().zip(names) {
        let Some(expected) = sums.get(name) else { continue };
        let file = path.join(name);
        *bytes = fs::read(&file).map_err(|error| TensorFileError::new(&file, error))?;
        if hex(bytes) != *expected {
            return Err(TensorFileError::new(&file, format!("is damaged: its checksum does not match {SUMS}")));
        }
    }
    Ok(files)
}

/// Reads the checksums, keyed by file name.
fn read_sums(path: &Path) -> Result<BTreeMap<String, String>, TensorFileError> {
    let file = path.join(SUMS);
    let text = fs::read_to_string(&file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if path.exists() => TensorFileError::new(path, format!("not a checkpoint: no {SUMS}")),
        io::ErrorKind::NotFound => TensorFileError::new(path, "does not exist"),
        _ => TensorFileError::new(&file, error),
    })?;
    let sums = text.lines().map(|line| line.split_once("  ").map(|(sum, name)| (name.to_owned(), sum.to_owned())));
    match sums.collect::<Option<BTreeMap<_, _>>>() {
        Some(sums) if sums.contains_key(super::HEADER) => Ok(sums),
        _ => Err(TensorFileError::new(&file, "is damaged")),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prefix of checkpoint names, followed by the step, zero-padded so that names sort by step.
const STEP: &str = "step_";

/// Path of the checkpoint written after `step` steps.
pub(super) fn checkpoint_path(run: &RunDir, step: u64) -> PathBuf {
    run.checkpoints().join(format!("{STEP}{step:010}"))
}

/// Lists the checkpoints in a folder as (step, path), oldest first.
pub(super) fn steps(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut steps: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((step_of(&entry.path())?, entry.path()))).collect();
    steps.sort();
    steps
}

fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(STEP)?.parse().ok()
}

/// Lists the checkpoints of the same run older than the one at `path`, newest first. `path` may be a link.
pub(super) fn earlier_checkpoints(path: &Path) -> Vec<PathBuf> {
    let target = match fs::read_link(path) {
        Ok(target) => fsio::parent(path).join(target),
        Err(_) => path.to_owned(),
    };
    let Some(step) = step_of(&target) else { return Vec::new() };
    let mut earlier = steps(fsio::parent(&target));
    earlier.retain(|(other, _)| *other < step);
    earlier.into_iter().rev().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 2] = [super::super::HEADER, "data"];

    fn files(data: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        vec![(FILES[0], b"{}".to_vec()), (FILES[1], data.to_vec())]
    }

    #[test]
    fn what_is_written_is_read_and_replaced_as_a_whole() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("checkpoint");
        for data in [b"one", b"two"] {
            write(&path, &files(data)).unwrap();
            assert_eq!(read_whole(&path, FILES).unwrap(), [b"{}".to_vec(), data.to_vec()]);
        }
        assert_eq!(read_whole(&path, ["never"]).unwrap(), [b"".to_vec()]);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "no leftover files");
        // Test vector "abc" of FIPS 180-4.
        assert!(hex(b"abc").starts_with("ba7816bf8f01cfea"));
    }

    #[test]
    fn any_damage_is_noticed_and_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("checkpoint");
        let damaged = |damage: &dyn Fn(), word: &str| {
            write(&path, &files(b"values")).unwrap();
            damage();
            let error = read_whole(&path, FILES).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        damaged(&|| fs::write(path.join("data"), b"value").unwrap(), "data: is damaged");
        damaged(&|| fs::write(path.join("data"), b"valuez").unwrap(), "data: is damaged");
        damaged(&|| fs::write(path.join(FILES[0]), b"[]").unwrap(), "checkpoint.json: is damaged");
        damaged(&|| fs::remove_file(path.join("data")).unwrap(), "data: No such file");
        damaged(&|| fs::write(path.join(SUMS), b"").unwrap(), "SHA256SUMS: is damaged");
        damaged(&|| fs::remove_file(path.join(SUMS)).unwrap(), "no SHA256SUMS");
        damaged(&|| fs::remove_dir_all(&path).unwrap(), "does not exist");
    }
}
