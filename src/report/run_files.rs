//! All files of a run directory, and errors about them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nnunet_data::dataset::{DatasetJson, LabelValue};
use nnunet_data::work::{RunDir, WorkDir};
use nnunet_eval::{self as eval, Summary};
use nnunet_nn::checkpoint::{self, CheckpointInfo};
use nnunet_train::config::RunConfig;
use nnunet_train::telemetry::{EpochRecord, RunState, Status, read_log};

/// Maximum depth of the search for runs: a work folder has them at `runs/CONFIG/fold_FOLD`.
const SEARCH_DEPTH: usize = 3;

/// A folder that is not a run directory, or a damaged file of a run.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct ReportError {
    /// Path of the file or folder.
    pub path: PathBuf,
    /// Description of the problem.
    pub defect: String,
}

impl ReportError {
    /// Error for the file or folder at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}

/// The files of a run. Missing files are `None` or empty.
#[derive(Clone, Debug)]
pub struct RunFiles {
    pub dir: RunDir,
    /// Work folder of the run, if known.
    pub work: Option<WorkDir>,
    /// Dataset description with the class names.
    pub dataset: Option<DatasetJson>,
    pub config: Option<RunConfig>,
    pub status: Option<Status>,
    /// One record per epoch.
    pub log: Vec<EpochRecord>,
    /// Checkpoints, oldest first.
    pub checkpoints: Vec<CheckpointInfo>,
    /// Metrics of the held-out cases.
    pub summary: Option<Summary>,
}

impl RunFiles {
    /// Reads a run. `work` defaults to the work folder that contains the run directory.
    ///
    /// # Errors
    /// Returns an error if the folder is not a run directory, or one of its files is damaged.
    pub fn read(folder: &Path, work: Option<&WorkDir>) -> Result<Self, ReportError> {
        if !is_run(folder) {
            let defect =
                if folder.is_dir() { "is not a run directory: no config.toml or log.jsonl" } else { "does not exist" };
            return Err(ReportError::new(folder, defect));
        }
        let dir = RunDir::new(folder);
        let work = work.cloned().or_else(|| enclosing_work_dir(folder));
        let config = read_if_present(&dir.config(), |path| RunConfig::load(path).map_err(|error| error.defect))?;
        let status = read_if_present(&dir.status(), |path| {
            let bytes = fs::read(path).map_err(|error| error.to_string())?;
            serde_json::from_slice(&bytes).map_err(|error| error.to_string())
        })?;
        let log =
            read_if_present(&dir.log(), |path| read_log(path).map_err(|error| error.defect()))?.unwrap_or_default();
        let summary = dir.validation().join("summary.json");
        let summary = read_if_present(&summary, |path| Summary::load(path).map_err(|error| error.to_string()))?;
        let checkpoints = checkpoint::list(&dir);
        let from_checkpoint =
            checkpoints.iter().rev().find_map(|listed| Some(listed.contents.as_ref()?.model.dataset.clone()));
        let dataset = from_checkpoint.or_else(|| DatasetJson::load(&work.as_ref()?.dataset_json()).ok());
        Ok(Self { dir, work, dataset, config, status, log, checkpoints, summary })
    }

    /// Configuration and fold; the folder name if they are unknown.
    pub fn name(&self) -> String {
        match &self.config {
            Some(config) => format!("{}, fold {}", config.configuration, config.fold),
            None => self.dir.root().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// Steps per epoch.
    pub fn steps_per_epoch(&self) -> Option<usize> {
        let status = self.status.as_ref().map(|status| status.iterations_per_epoch);
        status.or(self.config.as_ref().map(|config| config.training.iterations_per_epoch))
    }

    /// Class or region names for a pseudo Dice with this number of classes.
    pub fn class_names(&self, classes: usize) -> Vec<String> {
        let named: Vec<String> =
            self.dataset.iter().flat_map(|dataset| dataset.foreground()).map(|class| class.name.to_owned()).collect();
        if named.len() == classes { named } else { (1..=classes).map(|class| format!("class {class}")).collect() }
    }

    /// Name of a class or region by its key in `summary.json`.
    pub fn class_name(&self, key: &str) -> String {
        let labels = self.dataset.iter().flat_map(|dataset| &dataset.labels);
        // A region of one label is the same as the class, in either spelling.
        let is_class = |value: &LabelValue| {
            let single = if let [label] = value.members() { Some(label.to_string()) } else { None };
            eval::class_key(value) == key || single.as_deref() == Some(key)
        };
        labels
            .filter(|(_, value)| is_class(value))
            .map(|(name, _)| name.clone())
            .next()
            .unwrap_or_else(|| format!("class {key}"))
    }

    /// Time of the last write by the run.
    pub fn last_write(&self) -> Option<SystemTime> {
        let status = self.status.as_ref()?;
        let updated = UNIX_EPOCH + Duration::from_secs(status.updated_unix);
        // Predicting held-out cases takes long and only writes label maps.
        let written = fs::metadata(self.dir.validation()).and_then(|metadata| metadata.modified()).ok();
        Some(written.filter(|_| status.state == RunState::Predicting).map_or(updated, |written| written.max(updated)))
    }
}

/// The run directories among some folders, and those inside the other folders.
///
/// # Errors
/// Returns an error if a folder is not a run directory and contains none.
pub fn find_runs(folders: &[PathBuf]) -> Result<Vec<PathBuf>, ReportError> {
    let mut runs = Vec::new();
    for folder in folders {
        let before = runs.len();
        collect_runs(folder, SEARCH_DEPTH, &mut runs);
        if runs.len() == before {
            let defect = if folder.is_dir() { "has no run: no config.toml or log.jsonl" } else { "does not exist" };
            return Err(ReportError::new(folder, defect));
        }
    }
    Ok(runs)
}

fn collect_runs(folder: &Path, depth: usize, runs: &mut Vec<PathBuf>) {
    if is_run(folder) {
        runs.push(folder.to_owned());
    } else if depth > 0 {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        folders.iter().for_each(|folder| collect_runs(folder, depth - 1, runs));
    }
}

fn is_run(folder: &Path) -> bool {
    let run = RunDir::new(folder);
    [run.config(), run.log(), run.status(), run.checkpoint_latest()].iter().any(|path| path.exists())
}

/// The work folder that contains a run directory.
fn enclosing_work_dir(run: &Path) -> Option<WorkDir> {
    let run = fs::canonicalize(run).ok()?;
    run.ancestors().skip(1).map(WorkDir::new).find(|work| work.source().is_file())
}

fn read_if_present<T>(path: &Path, read: impl FnOnce(&Path) -> Result<T, String>) -> Result<Option<T>, ReportError> {
    match path.exists() {
        true => read(path).map(Some).map_err(|defect| ReportError::new(path, defect)),
        false => Ok(None),
    }
}
