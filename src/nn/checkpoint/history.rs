//! The checkpoints of a run: which count, and which are kept.

use std::fs;
use std::path::{Path, PathBuf};

use super::Checkpoint;
use super::names::{path_of, steps};
use super::saved::cannot_be_written;
use crate::model::TensorFileError;
use nnunet_core::fsio;
use nnunet_data::work::RunDir;

/// Which checkpoints are kept beside the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest, at least one.
    pub newest: usize,
    /// Those of every so many steps for ever; 0: none.
    pub every: u64,
}

/// Adds checkpoints to a run, and removes old ones.
pub struct History {
    run: RunDir,
    keep: Keep,
    /// Of a run that was here before and is replaced as soon as this one has a checkpoint.
    replaced: Vec<PathBuf>,
}

impl History {
    /// The checkpoints of a run that begins anew or goes on; removes what an interrupted write has left.
    ///
    /// # Errors
    /// The run directory cannot be read or written.
    pub fn open(run: &RunDir, keep: Keep, goes_on: bool) -> Result<Self, TensorFileError> {
        let folder = run.checkpoints();
        let replaced = if goes_on { Vec::new() } else { steps(&folder).into_iter().map(|(_, path)| path).collect() };
        for folder in [run.root(), &folder] {
            fsio::remove_partial(folder).map_err(|error| TensorFileError::new(folder, error))?;
        }
        Ok(Self { run: run.clone(), keep, replaced })
    }

    /// Writes a checkpoint after so many steps of the run, which from then on is the latest, and if it says so the best.
    ///
    /// # Errors
    /// It cannot be written. The latest and the best are what they were.
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

    /// Makes the checkpoint that a run goes on from the best if it says so: the run may have been lost between the two.
    ///
    /// # Errors
    /// The link cannot be written.
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

    /// Removes what is not to be kept; what cannot be removed is in nobody's way.
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
        // The best of the run that was here before.
        if best.is_none_or(|best| !best.exists()) {
            let _ = fs::remove_file(self.run.checkpoint_best());
        }
    }
}

/// Whether both lead to the same folder.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}
