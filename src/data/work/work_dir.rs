//! Locations of the files of a dataset and its runs, and the link to the raw dataset.

use std::path::{Path, PathBuf};

use nnunet_core::fsio;
use nnunet_core::user_file::{self, UserFileError};
use serde::{Deserialize, Serialize};

use super::{ConfigError, FoldId, RunDir, one_line};

/// The work folder of one dataset, written by `plan` and `preprocess` and read by `train`.
///
/// ```text
/// WORK/
///   source.toml                   location of the raw dataset
///   dataset.json                  in nnU-Net v2's schema, also if the dataset uses MSD's
///   dataset_fingerprint.json
///   PLANS.json                    nnUNetPlans.json, and further plans
///   splits_final.json
///   preprocessed/DATA_IDENTIFIER/ one store per data identifier of the plans
///   runs/CONFIGURATION/fold_FOLD/ see RunDir; for other plans than nnUNetPlans runs/PLANS__CONFIGURATION/fold_FOLD/
///   runs/CONFIGURATION/crossval_results_folds_FOLDS/
///   ensembles/NAME/               predictions of two configurations together for the held-out cases
///   inference_information.json, inference_instructions.txt
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkDir {
    root: PathBuf,
    plans: String,
}

/// Name of the default plans.
pub const DEFAULT_PLANS: &str = "nnUNetPlans";

/// JSON files of a work folder that are not plans, without extension.
const NO_PLANS: [&str; 4] = ["dataset", "dataset_fingerprint", "splits_final", "inference_information"];

/// Checks that a name is valid for a plans file.
///
/// # Errors
/// Returns a description of the problem.
pub fn check_plans_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.starts_with('.') || name.ends_with(".json") || !name.chars().all(is_plain) {
        return Err(format!(
            "`{name}` is not a valid plans name; use letters, digits, `_`, `-` and `.`, without .json"
        ));
    }
    // Files of non-default plans are named PLANS__FILE.
    let own = name.rsplit_once("__").map_or(name, |(_, own)| own);
    match NO_PLANS.contains(&own) {
        true => Err(format!("`{name}` is reserved for another file of the work folder; choose another name")),
        false => Ok(()),
    }
}

impl WorkDir {
    /// Creates the work folder at `root`, with [`DEFAULT_PLANS`]; does not access the disk.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), plans: DEFAULT_PLANS.to_owned() }
    }

    /// Returns the same work folder with other plans.
    pub fn with_plans(self, name: impl Into<String>) -> Self {
        Self { plans: name.into(), ..self }
    }

    /// Path of the folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Location of the raw dataset, see [`super::Source`].
    pub fn source(&self) -> PathBuf {
        self.root.join("source.toml")
    }

    /// Description of the dataset.
    pub fn dataset_json(&self) -> PathBuf {
        self.root.join("dataset.json")
    }

    /// Fingerprint of the dataset.
    pub fn fingerprint(&self) -> PathBuf {
        self.root.join("dataset_fingerprint.json")
    }

    /// Plans file.
    pub fn plans(&self) -> PathBuf {
        self.root.join(format!("{}.json", self.plans))
    }

    /// Returns the names of all plans in the folder, sorted.
    pub fn names_of_plans(&self) -> Vec<String> {
        let files = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
        let mut names: Vec<String> = names.filter(|name| check_plans_name(name).is_ok()).collect();
        names.sort();
        names
    }

    /// Cross-validation splits.
    pub fn splits(&self) -> PathBuf {
        self.root.join("splits_final.json")
    }

    /// Store of the preprocessed cases for a data identifier (`nnUNetPlans_3d_fullres`).
    pub fn preprocessed(&self, data_identifier: &str) -> PathBuf {
        self.root.join("preprocessed").join(data_identifier)
    }

    /// Folder of a configuration's runs, with one run per fold.
    pub fn runs(&self, configuration: &str) -> PathBuf {
        self.root.join("runs").join(self.of_plans(configuration))
    }

    /// Returns the existing runs of a configuration: folds by number, then the run on all cases.
    pub fn begun_runs(&self, configuration: &str) -> Vec<RunDir> {
        let entries = std::fs::read_dir(self.runs(configuration)).into_iter().flatten();
        let fold = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix("fold_")?.parse().ok();
        let mut folds: Vec<FoldId> = entries.filter_map(|entry| fold(entry.ok()?)).collect();
        folds.sort_by_key(|fold| match fold {
            FoldId::Number(number) => *number,
            FoldId::All => usize::MAX,
        });
        folds.into_iter().map(|fold| self.run(configuration, fold)).collect()
    }

    /// Default folder of a run.
    pub fn run(&self, configuration: &str, fold: FoldId) -> RunDir {
        RunDir::new(self.runs(configuration).join(format!("fold_{fold}")))
    }

    /// Cross-validation results of a configuration for `folds`, such as `0_1_2`.
    pub fn crossval(&self, configuration: &str, folds: &str) -> PathBuf {
        self.runs(configuration).join(format!("crossval_results_folds_{folds}"))
    }

    /// Predictions of an ensemble for the held-out cases.
    pub fn ensemble(&self, name: &str) -> PathBuf {
        self.root.join("ensembles").join(self.of_plans(name))
    }

    /// File with the best configuration or ensemble.
    pub fn inference_information(&self) -> PathBuf {
        self.root.join(self.of_plans("inference_information.json"))
    }

    /// File with the commands for prediction with the best configuration.
    pub fn inference_instructions(&self) -> PathBuf {
        self.root.join(self.of_plans("inference_instructions.txt"))
    }

    /// Prefixes a name with the plans, unless they are the default.
    fn of_plans(&self, name: &str) -> String {
        match self.plans.as_str() {
            DEFAULT_PLANS => name.to_owned(),
            plans => format!("{plans}__{name}"),
        }
    }
}

/// Location of the raw dataset of a work folder. Preprocessing and validation read images and labels from there.
///
/// It is a separate file because `dataset.json` has nnU-Net's format and is copied into released models. After moving a
/// dataset, edit this file or run `plan` again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Absolute path of the raw dataset's folder.
    pub dataset: PathBuf,
}

impl Source {
    /// Creates a link to `dataset`, made absolute so that it is valid from any current directory.
    ///
    /// # Errors
    /// Returns an error if the folder does not exist.
    pub fn new(dataset: &Path) -> Result<Self, ConfigError> {
        let dataset = dataset.canonicalize().map_err(|error| ConfigError::new(dataset.display(), error))?;
        Ok(Self { dataset })
    }

    /// Reads the link of a work folder.
    ///
    /// # Errors
    /// Returns an error if the work folder has not been planned, the file is invalid, or the dataset is not there.
    pub fn load(work: &WorkDir) -> Result<Self, ConfigError> {
        let path = work.source();
        let text = user_file::read_text(&path).map_err(|error| match error {
            UserFileError::Io(error) => {
                ConfigError::new(path.display(), format_args!("{error}; run `nnunet-dist plan` first"))
            }
            UserFileError::Invalid(defect) => ConfigError::new(path.display(), defect),
        })?;
        let invalid = |error: toml::de::Error| ConfigError::new(path.display(), one_line(error.message()));
        let source: Self = toml::from_str(&text).map_err(invalid)?;
        if source.dataset.is_dir() {
            return Ok(source);
        }
        let defect = format!(
            "the raw dataset {} is not there; if it was moved, correct its path in this file, or run `nnunet-dist plan` \
             with the new one",
            source.dataset.display()
        );
        Err(ConfigError::new(path.display(), defect))
    }

    /// Writes the link into a work folder.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written.
    pub fn save(&self, work: &WorkDir) -> Result<(), ConfigError> {
        let path = work.source();
        let text = toml::to_string(self).map_err(|error| ConfigError::new(path.display(), error))?;
        fsio::write_bytes(&path, text.as_bytes()).map_err(|error| ConfigError::new(path.display(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_have_separate_files_and_runs() {
        let work = WorkDir::new("w");
        assert_eq!(work.plans(), Path::new("w/nnUNetPlans.json"));
        assert_eq!(work.run("2d", FoldId::Number(1)).root(), Path::new("w/runs/2d/fold_1"));
        let mine = work.with_plans("mine");
        assert_eq!(mine.plans(), Path::new("w/mine.json"));
        assert_eq!(mine.run("2d", FoldId::All).root(), Path::new("w/runs/mine__2d/fold_all"));
    }

    #[test]
    fn plans_names_cannot_leave_the_folder_or_overwrite_other_files() {
        for name in ["nnUNetPlans", "nnUNetResEncUNetMPlans", "plans_24GB.v2", "größer-3"] {
            assert_eq!(check_plans_name(name), Ok(()));
        }
        for name in ["", "..", "../plans", "/plans", ".hidden", "a b", "nnUNetPlans.json", "dataset", "splits_final"] {
            assert!(check_plans_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_link_is_absolute_and_survives_a_round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let work = WorkDir::new(directory.path().join("w"));
        assert!(Source::load(&work).unwrap_err().to_string().contains("nnunet-dist plan"));
        let source = Source::new(directory.path()).unwrap();
        source.save(&work).unwrap();
        assert!(source.dataset.is_absolute());
        assert_eq!(Source::load(&work).unwrap(), source);
        let text = std::fs::read_to_string(work.source()).unwrap();
        std::fs::write(work.source(), format!("\u{feff}{text}")).unwrap();
        assert_eq!(Source::load(&work).unwrap(), source, "a byte order mark is no defect");
        Source { dataset: directory.path().join("moved") }.save(&work).unwrap();
        let error = Source::load(&work).unwrap_err().to_string();
        assert!(error.contains("source.toml") && error.contains("moved is not there"), "{error}");
    }
}
