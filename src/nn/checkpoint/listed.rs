//! The checkpoints that a run has, without their tensors.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::header::{Header, Training};
use super::{HEADER, names};
use crate::model::ModelDescription;
use nnunet_data::work::RunDir;

/// A checkpoint on the disk.
#[derive(Clone, Debug)]
pub struct Listed {
    pub path: PathBuf,
    /// Whether `checkpoint_latest` is it.
    pub is_latest: bool,
    /// Whether `checkpoint_best` is it.
    pub is_best: bool,
    /// Of all its files.
    pub bytes: u64,
    /// When it was written, where the file system says.
    pub written: Option<SystemTime>,
    /// `None` where `checkpoint.json` cannot be read.
    pub contents: Option<Contents>,
}

/// What `checkpoint.json` says.
#[derive(Clone, Debug)]
pub struct Contents {
    /// What has written it.
    pub program: String,
    pub model: ModelDescription,
    /// `None` of a network alone.
    pub training: Option<Training>,
}

/// The checkpoints of a run, oldest first, and what else is under the names of the latest and the best. Nothing is compared
/// with its checksum.
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
