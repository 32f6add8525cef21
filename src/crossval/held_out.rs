//! What the folds of a configuration have left behind.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::CrossvalError;
use nnunet_data::dataset::{Dataset, DatasetJson, Splits};
use nnunet_data::work::{FoldId, Source, WorkDir};
use nnunet_eval::Pair;

/// The held-out cases of a work folder's dataset, and where the folds of its configurations have put their predictions.
#[derive(Clone, Debug)]
pub struct HeldOut<'a> {
    pub(super) work: &'a WorkDir,
    /// The dataset's description.
    pub dataset: DatasetJson,
    /// The folds that are looked at.
    pub folds: Vec<usize>,
    /// The raw dataset's label maps by case.
    truth: HashMap<String, PathBuf>,
    splits: Splits,
}

impl<'a> HeldOut<'a> {
    /// Reads what is known of the dataset; without `folds`, all of its splits are looked at.
    ///
    /// # Errors
    /// The work folder is not complete, there is no such fold, or the raw dataset has moved.
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

    /// Makes an empty folder for the gathered results of a configuration: `output`, which must not hold anything yet, or that
    /// of the work folder, whose contents are removed.
    ///
    /// # Errors
    /// The folder cannot be made, or `output` is not empty.
    pub fn prepare_folder(&self, configuration: &str, output: Option<&Path>) -> Result<PathBuf, CrossvalError> {
        let Some(output) = output else {
            let folder = self.work.crossval(configuration, &folds_text(&self.folds));
            renew(&folder)?;
            return Ok(folder);
        };
        fs::create_dir_all(output).map_err(CrossvalError::io(output))?;
        let mut entries = fs::read_dir(output).map_err(CrossvalError::io(output))?;
        match entries.next() {
            Some(_) => Err(CrossvalError::invalid(output, "is not empty: its files would be taken for results")),
            None => Ok(output.to_owned()),
        }
    }

    /// The files with this ending that the folds of a configuration have left for each case, without it.
    ///
    /// # Errors
    /// A fold has not been validated, or two folds have validated the same case.
    pub fn files(&self, configuration: &str, ending: &str) -> Result<BTreeMap<String, PathBuf>, CrossvalError> {
        let mut files = BTreeMap::new();
        for &fold in &self.folds {
            let folder = self.work.run(configuration, FoldId::Number(fold)).validation();
            if !folder.is_dir() {
                let train =
                    format!("`nnunet-dist train -w {} -c {configuration} -f {fold}`", self.work.root().display());
                return Err(CrossvalError::invalid(
                    &folder,
                    format_args!("fold {fold} has not been validated; {train}"),
                ));
            }
            let found = cases_in(&folder, ending)?;
            let (_, expected) = self.splits.fold(fold)?;
            for case in expected.iter().filter(|case| !found.contains_key(*case)) {
                tracing::warn!("{}: nothing of {case}, which fold {fold} holds out", folder.display());
            }
            for (case, path) in found {
                if let Some(other) = files.insert(case.clone(), path.clone()) {
                    let defect = format!("{case} is here and in {}: two folds hold it out", other.display());
                    return Err(CrossvalError::invalid(&path, defect));
                }
            }
        }
        Ok(files)
    }

    /// Pairs the label maps of `folder` with the raw dataset's.
    ///
    /// # Errors
    /// The folder has none, or the dataset lacks one of them.
    pub fn pairs(&self, folder: &Path) -> Result<Vec<Pair>, CrossvalError> {
        let predictions = cases_in(folder, &self.dataset.file_ending)?;
        if predictions.is_empty() {
            return Err(CrossvalError::invalid(folder, format_args!("holds no *{}", self.dataset.file_ending)));
        }
        let pair = |(case, prediction): (String, PathBuf)| match self.truth.get(&case) {
            Some(reference) => Ok(Pair { prediction, reference: reference.clone() }),
            None => Err(CrossvalError::invalid(&prediction, "the raw dataset has no label map of this case")),
        };
        predictions.into_iter().map(pair).collect()
    }

    /// Puts the dataset's description and the plans into a folder of results, as nnU-Net does.
    pub(super) fn describe(&self, folder: &Path) -> Result<(), CrossvalError> {
        for (from, name) in [(self.work.dataset_json(), "dataset.json"), (self.work.plans(), "plans.json")] {
            let to = folder.join(name);
            nnunet_core::fsio::copy(&from, &to).map_err(CrossvalError::io(&to))?;
        }
        Ok(())
    }
}

/// Folds as they stand in the names of folders: `0_1_2_3_4`.
pub(super) fn folds_text(folds: &[usize]) -> String {
    folds.iter().map(usize::to_string).collect::<Vec<_>>().join("_")
}

/// The files of a folder with this ending by what stands before it; hidden ones are passed over.
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

/// Makes an empty folder in the place of an old one.
pub(super) fn renew(folder: &Path) -> Result<(), CrossvalError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(CrossvalError::io(folder))?;
    }
    fs::create_dir_all(folder).map_err(CrossvalError::io(folder))
}
