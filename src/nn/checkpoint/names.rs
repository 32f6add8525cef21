//! Names and order of a run's checkpoints.

use std::fs;
use std::path::{Path, PathBuf};

use nnunet_core::fsio;
use nnunet_data::work::RunDir;

/// Prefix of checkpoint names, followed by the step, zero-padded so that names sort by step.
const STEP: &str = "step_";

/// Path of the checkpoint written after `step` steps.
pub(super) fn path_of(run: &RunDir, step: u64) -> PathBuf {
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
pub(super) fn before(path: &Path) -> Vec<PathBuf> {
    let target = match fs::read_link(path) {
        Ok(target) => fsio::parent(path).join(target),
        Err(_) => path.to_owned(),
    };
    let Some(step) = step_of(&target) else { return Vec::new() };
    let mut earlier = steps(fsio::parent(&target));
    earlier.retain(|(other, _)| *other < step);
    earlier.into_iter().rev().map(|(_, path)| path).collect()
}
