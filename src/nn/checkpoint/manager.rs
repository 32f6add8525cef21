//! Management of a run's checkpoints: writing, links to the latest and best, deletion of old ones, listing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::HEADER;
use super::contents::{Checkpoint, Header, Training, cannot_be_written};
use super::folder::{checkpoint_path, steps};
use crate::model::{ModelDescription, TensorFileError};
use nnunet_core::fsio;
use nnunet_data::work::RunDir;

/// Retention policy: the checkpoints kept in addition to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Number of most recent checkpoints to keep, at least 1.
    pub newest: usize,
    /// Also keep every checkpoint whose step is a multiple of this; 0 disables.
    pub every: u64,
}

/// Checkpoint manager of a run: adds checkpoints and deletes old ones.
pub struct CheckpointManager {
    run: RunDir,
    retention: RetentionPolicy,
    /// Checkpoints of a previous run in this folder, deleted once the new run has its first checkpoint.
    replaced: Vec<PathBuf>,
}

impl CheckpointManager {
    /// Opens the checkpoints of a run. `resumes` is true if the run resumes. Removes files left by interrupted writes.
    ///
    /// # Errors
    /// Returns an error if the run directory cannot be read or written.
    pub fn open(run: &RunDir, retention: RetentionPolicy, resumes: bool) -> Result<Self, TensorFileError> {
        let folder = run.checkpoints();
        let replaced = if resumes { Vec::new() } else { steps(&folder).into_iter().map(|(_, path)| path).collect() };
        for folder in [run.root(), &folder] {
            fsio::remove_all_partial(folder).map_err(|error| TensorFileError::new(folder, error))?;
        }
        Ok(Self { run: run.clone(), retention, replaced })
    }

    /// Writes the checkpoint of a step, makes it the latest and, if `is_best` is set, the best, and deletes old
    /// checkpoints.
    ///
    /// # Errors
    /// Returns an error if the checkpoint cannot be written. The links to the latest and best are then unchanged.
    pub fn add(&mut self, step: u64, checkpoint: &Checkpoint) -> Result<(), TensorFileError> {
        let path = checkpoint_path(&self.run, step);
        checkpoint.write(&path)?;
        self.link(&self.run.checkpoint_latest(), &path)?;
        if checkpoint.training.is_best {
            self.link(&self.run.checkpoint_best(), &path)?;
        }
        self.delete_old(step);
        Ok(())
    }

    /// Links the checkpoint a run resumes from as the best if `is_best` is set. Repairs a run that was interrupted
    /// between updating the two links.
    ///
    /// # Errors
    /// Returns an error if the link cannot be written.
    pub fn resume_from(&self, step: u64, is_best: bool) -> Result<(), TensorFileError> {
        let path = checkpoint_path(&self.run, step);
        let best = self.run.checkpoint_best();
        match is_best && path.exists() && !is_same(&best, &path) {
            true => self.link(&best, &path),
            false => Ok(()),
        }
    }

    fn link(&self, link: &Path, path: &Path) -> Result<(), TensorFileError> {
        let target = path.strip_prefix(self.run.root()).unwrap_or(path);
        fsio::link_atomically(link, target).map_err(|error| cannot_be_written(link, &error))
    }

    /// Deletes checkpoints outside the retention policy. Failures to delete are only logged at debug level.
    fn delete_old(&mut self, latest: u64) {
        let best = fs::canonicalize(self.run.checkpoint_best()).ok();
        let all = steps(&self.run.checkpoints());
        let own: Vec<_> = all.iter().filter(|(step, path)| *step <= latest && !self.replaced.contains(path)).collect();
        let newest = own.iter().rev().take(self.retention.newest.max(1)).map(|(step, _)| *step);
        let every = own
            .iter()
            .map(|(step, _)| *step)
            .filter(|step| self.retention.every > 0 && step.is_multiple_of(self.retention.every));
        let kept: Vec<u64> = newest.chain(every).chain([latest]).collect();
        let is_replaced = |path: &PathBuf| self.replaced.contains(path);
        for (step, path) in &all {
            let is_best = best.is_some() && fs::canonicalize(path).ok() == best;
            let is_own = *step == latest || !is_replaced(path);
            if is_own && (kept.contains(step) || is_best) {
                continue;
            }
            if let Err(error) = fsio::remove_folder(path) {
                tracing::debug!("{}: {error}", path.display());
            }
        }
        self.replaced.clear();
        // Remove a dangling link left by the previous run's best checkpoint.
        if best.is_none_or(|best| !best.exists()) {
            let _ = fs::remove_file(self.run.checkpoint_best());
        }
    }
}

/// Whether both paths resolve to the same folder.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// A checkpoint on disk.
#[derive(Clone, Debug)]
pub struct CheckpointInfo {
    pub path: PathBuf,
    /// Whether `checkpoint_latest` points to it.
    pub is_latest: bool,
    /// Whether `checkpoint_best` points to it.
    pub is_best: bool,
    /// Total size of its files in bytes.
    pub bytes: u64,
    /// Modification time, if the file system provides it.
    pub written: Option<SystemTime>,
    /// `None` if `checkpoint.json` cannot be read.
    pub contents: Option<Contents>,
}

/// Contents of `checkpoint.json`.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Program and version that wrote the checkpoint.
    pub program: String,
    pub model: ModelDescription,
    /// `None` for a network without training state.
    pub training: Option<Training>,
}

/// Lists the checkpoints of a run, oldest first, then the targets of the latest and best links that are not among them.
/// Checksums are not verified.
pub fn list(run: &RunDir) -> Vec<CheckpointInfo> {
    let [latest, best] = [run.checkpoint_latest(), run.checkpoint_best()].map(|link| fs::canonicalize(link).ok());
    let mut paths: Vec<PathBuf> = steps(&run.checkpoints()).into_iter().map(|(_, path)| path).collect();
    let known = |paths: &[PathBuf], path: &PathBuf| {
        paths.iter().any(|known| fs::canonicalize(known).ok() == Some(path.clone()))
    };
    for (link, target) in [(run.checkpoint_best(), &best), (run.checkpoint_latest(), &latest)] {
        if target.as_ref().is_some_and(|target| !known(&paths, target)) {
            paths.push(link);
        }
    }
    let info = |path: PathBuf| {
        let canonical = fs::canonicalize(&path).ok();
        CheckpointInfo {
            is_latest: canonical.is_some() && canonical == latest,
            is_best: canonical.is_some() && canonical == best,
            bytes: bytes(&path),
            written: fs::metadata(&path).and_then(|metadata| metadata.modified()).ok(),
            contents: contents(&path),
            path,
        }
    };
    paths.into_iter().map(info).collect()
}

fn contents(path: &Path) -> Option<Contents> {
    let bytes = fs::read(path.join(HEADER)).ok()?;
    let Header { program, model, training, .. } = Header::parse(path, &bytes).ok()?;
    Some(Contents { program, model, training })
}

fn bytes(path: &Path) -> u64 {
    let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| length(&entry.path())).sum(),
        Err(_) => length(path),
    }
}
