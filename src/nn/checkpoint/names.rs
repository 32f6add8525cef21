//! How a run's checkpoints are named, and so which came before which.

use std::fs;
use std::path::{Path, PathBuf};

use nnunet_core::fsio;
use nnunet_data::work::RunDir;

/// The names of checkpoints begin with this; the step follows, of as many digits each, so that they sort.
const STEP: &str = "step_";

/// Where the checkpoint after so many steps lies.
pub(super) fn path_of(run: &RunDir, step: u64) -> PathBuf {
    run.checkpoints().join(format!("{STEP}{step:010}"))
}

/// The checkpoints in a folder, oldest first.
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

/// The checkpoints of the same run before the one at `path`, newest first; `path` may be a link to it.
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
