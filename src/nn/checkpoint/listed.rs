//! Lists the checkpoints of a run without reading their tensors.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::header::{Header, Training};
use super::{HEADER, names};
use crate::model::ModelDescription;
use nnunet_data::work::RunDir;

/// A checkpoint on disk.
#[derive(Clone, Debug)]
pub struct Listed {
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
pub fn list(run: &RunDir) -> Vec<Listed> {
    let [latest, best] = [run.checkpoint_latest(), run.checkpoint_best()].map(|link| fs::canonicalize(link).ok());
    let mut paths: Vec<PathBuf> = names::steps(&run.checkpoints()).into_iter().map(|(_, path)| path).collect();
    let known = |paths: &[PathBuf], path: &PathBuf| {
        paths.iter().any(|known| fs::canonicalize(known).ok() == Some(path.clone()))
    };
    for (link, target) in [(run.checkpoint_best(), &best), (run.checkpoint_latest(), &latest)] {
        if target.as_ref().is_some_and(|target| !known(&paths, target)) {
            paths.push(link);
        }
    }
    let listed = |path: PathBuf| {
        let canonical = fs::canonicalize(&path).ok();
        Listed {
            is_latest: canonical.is_some() && canonical == latest,
            is_best: canonical.is_some() && canonical == best,
            bytes: bytes(&path),
            written: fs::metadata(&path).and_then(|metadata| metadata.modified()).ok(),
            contents: contents(&path),
            path,
        }
    };
    paths.into_iter().map(listed).collect()
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
