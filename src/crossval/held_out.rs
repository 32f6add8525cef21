//! Held-out predictions of the folds of a configuration.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::CrossvalError;
use nnunet_data::dataset::{Dataset, DatasetJson, Splits};
use nnunet_data::work::{FoldId, Source, WorkDir};
use nnunet_eval::Pair;

/// The held-out cases of a work folder's dataset, and access to the predictions of the folds.
#[derive(Clone, Debug)]
pub struct HeldOutResults<'a> {
    pub(super) work: &'a WorkDir,
    /// Contents of the `dataset.json`.
    pub dataset: DatasetJson,
    /// Folds to use.
    pub folds: Vec<usize>,
    /// Label maps of the raw dataset by case.
    truth: HashMap<String, PathBuf>,
    splits: Splits,
}

impl<'a> HeldOutResults<'a> {
    /// Opens a work folder; an empty `folds` selects all folds.
    ///
    /// # Errors
    /// Returns an error if the work folder is incomplete, a fold does not exist, or the raw dataset has moved.
    pub fn open(work: &'a WorkDir, folds: &[usize]) -> Result<Self, CrossvalError> {
        let dataset = DatasetJson::load(&work.dataset_json())?;
        if let Some(defect) = dataset.region_problem() {
            return Err(CrossvalError::invalid(&work.dataset_json(), defect));
        }
        let splits = Splits::load(&work.splits())?;
        let folds = if folds.is_empty() { (0..splits.folds().len()).collect() } else { folds.to_vec() };
        for fold in &folds {
            splits.fold(*fold)?;
        }
        let raw = Dataset::open(&Source::load(work)?.dataset)?;
        let truth = raw.cases.into_iter().filter_map(|case| Some((case.id, case.label?))).collect();
        Ok(Self { work, dataset, folds, truth, splits })
    }

    /// Creates an empty folder for the collected results of a configuration: `output`, which must be empty, or by
    /// default one in the work folder, whose previous contents are removed.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created, or `output` is not empty.
    pub fn prepare_folder(&self, configuration: &str, output: Option<&Path>) -> Result<PathBuf, CrossvalError> {
        let Some(output) = output else {
            let folder = self.work.crossval(configuration, &folds_text(&self.folds));
            recreate_dir(&folder)?;
            return Ok(folder);
        };
        fs::create_dir_all(output).map_err(CrossvalError::io(output))?;
        let mut entries = fs::read_dir(output).map_err(CrossvalError::io(output))?;
        match entries.next() {
            Some(_) => Err(CrossvalError::invalid(output, "is not empty; its files would be mistaken for results")),
            None => Ok(output.to_owned()),
        }
    }

    /// Files with this ending that the folds of a configuration wrote, by case name.
    ///
    /// # Errors
    /// Returns an error if a fold has not been validated, or two folds have validated the same case.
    pub fn files(&self, configuration: &str, ending: &str) -> Result<BTreeMap<String, PathBuf>, CrossvalError> {
        let mut files = BTreeMap::new();
        for &fold in &self.folds {
            let folder = self.work.run(configuration, FoldId::Number(fold)).validation();
            if !folder.is_dir() {
                let train =
                    format!("`nnunet-dist train -w {} -c {configuration} -f {fold}`", self.work.root().display());
                return Err(CrossvalError::invalid(
                    &folder,
                    format_args!("fold {fold} has not been validated; run {train}"),
                ));
            }
            let found = cases_in(&folder, ending)?;
            let (_, expected) = self.splits.fold(fold)?;
            for case in expected.iter().filter(|case| !found.contains_key(*case)) {
                tracing::warn!("{}: no prediction of {case}, which fold {fold} holds out", folder.display());
            }
            for (case, path) in found {
                if let Some(other) = files.insert(case.clone(), path.clone()) {
                    let defect = format!("{case} is also in {}: two folds hold it out", other.display());
                    return Err(CrossvalError::invalid(&path, defect));
                }
            }
        }
        Ok(files)
    }

    /// Pairs the label maps of `folder` with those of the raw dataset.
    ///
    /// # Errors
    /// Returns an error if the folder has no label map, or the dataset lacks one of them.
    pub fn pairs(&self, folder: &Path) -> Result<Vec<Pair>, CrossvalError> {
        let predictions = cases_in(folder, &self.dataset.file_ending)?;
        if predictions.is_empty() {
            return Err(CrossvalError::invalid(folder, format_args!("has no *{}", self.dataset.file_ending)));
        }
        let pair = |(case, prediction): (String, PathBuf)| match self.truth.get(&case) {
            Some(reference) => Ok(Pair { prediction, reference: reference.clone() }),
            None => Err(CrossvalError::invalid(&prediction, "the raw dataset has no label map of this case")),
        };
        predictions.into_iter().map(pair).collect()
    }

    /// Copies `dataset.json` and `plans.json` to a folder of results, as nnU-Net does.
    pub(super) fn copy_description(&self, folder: &Path) -> Result<(), CrossvalError> {
        for (from, name) in [(self.work.dataset_json(), "dataset.json"), (self.work.plans(), "plans.json")] {
            let to = folder.join(name);
            nnunet_core::fsio::copy(&from, &to).map_err(CrossvalError::io(&to))?;
        }
        Ok(())
    }
}

/// Fold numbers as used in folder names: `0_1_2_3_4`.
pub(super) fn folds_text(folds: &[usize]) -> String {
    folds.iter().map(usize::to_string).collect::<Vec<_>>().join("_")
}

/// Files of a folder with this ending, by case name; hidden files are ignored.
fn cases_in(folder: &Path, ending: &str) -> Result<BTreeMap<String, PathBuf>, CrossvalError> {
    let mut cases = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(CrossvalError::io(folder))? {
        let path = entry.map_err(CrossvalError::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
        if let Some(case) = name.and_then(|name| name.strip_suffix(ending)) {
            cases.insert(case.to_owned(), path);
        }
    }
    Ok(cases)
}

/// Creates an empty folder, replacing an existing one.
pub(super) fn recreate_dir(folder: &Path) -> Result<(), CrossvalError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(CrossvalError::io(folder))?;
    }
    fs::create_dir_all(folder).map_err(CrossvalError::io(folder))
}
