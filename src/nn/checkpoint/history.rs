//! Writes a run's checkpoints, updates the links to the latest and best, and deletes old ones.

use std::fs;
use std::path::{Path, PathBuf};

use super::Checkpoint;
use super::names::{path_of, steps};
use super::saved::cannot_be_written;
use crate::model::TensorFileError;
use nnunet_core::fsio;
use nnunet_data::work::RunDir;

/// Retention policy: the checkpoints kept in addition to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Number of most recent checkpoints to keep, at least 1.
    pub newest: usize,
    /// Also keep every checkpoint whose step is a multiple of this; 0 disables.
    pub every: u64,
}

/// Checkpoint manager of a run: adds checkpoints and deletes old ones.
pub struct History {
    run: RunDir,
    keep: Keep,
    /// Checkpoints of a previous run in this folder, deleted once the new run has its first checkpoint.
    replaced: Vec<PathBuf>,
}

impl History {
    /// Opens the checkpoints of a run. `goes_on` is true if the run resumes. Removes files left by interrupted writes.
    ///
    /// # Errors
    /// Returns an error if the run directory cannot be read or written.
    pub fn open(run: &RunDir, keep: Keep, goes_on: bool) -> Result<Self, TensorFileError> {
        let folder = run.checkpoints();
        let replaced = if goes_on { Vec::new() } else { steps(&folder).into_iter().map(|(_, path)| path).collect() };
        for folder in [run.root(), &folder] {
            fsio::remove_partial(folder).map_err(|error| TensorFileError::new(folder, error))?;
        }
        Ok(Self { run: run.clone(), keep, replaced })
    }

    /// Writes the checkpoint of a step, makes it the latest and, if `is_best` is set, the best, and deletes old
    /// checkpoints.
    ///
    /// # Errors
    /// Returns an error if the checkpoint cannot be written. The links to the latest and best are then unchanged.
    pub fn add(&mut self, step: u64, checkpoint: &Checkpoint) -> Result<(), TensorFileError> {
        let path = path_of(&self.run, step);
        checkpoint.write(&path)?;
        self.link(&self.run.checkpoint_latest(), &path)?;
        if checkpoint.training.is_best {
            self.link(&self.run.checkpoint_best(), &path)?;
        }
        self.tidy(step);
        Ok(())
    }

    /// Links the checkpoint a run resumes from as the best if `is_best` is set. Repairs a run that was interrupted
    /// between updating the two links.
    ///
    /// # Errors
    /// Returns an error if the link cannot be written.
    pub fn goes_on_from(&self, step: u64, is_best: bool) -> Result<(), TensorFileError> {
        let path = path_of(&self.run, step);
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
    fn tidy(&mut self, latest: u64) {
        let best = fs::canonicalize(self.run.checkpoint_best()).ok();
        let all = steps(&self.run.checkpoints());
        let own: Vec<_> = all.iter().filter(|(step, path)| *step <= latest && !self.replaced.contains(path)).collect();
        let newest = own.iter().rev().take(self.keep.newest.max(1)).map(|(step, _)| *step);
        let every = own
            .iter()
            .map(|(step, _)| *step)
            .filter(|step| self.keep.every > 0 && step.is_multiple_of(self.keep.every));
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
