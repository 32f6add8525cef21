//! Two folders of label maps, paired by case.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::evaluate::labels_of;
use super::{Classes, EvalError, Measures, Pair, Summary, evaluate_files};

/// File name endings of label maps. Of a `.hdr` / `.img` pair, the header stands for both.
const ENDINGS: [&str; 11] =
    [".nii.gz", ".nii", ".hdr", ".mha", ".mhd", ".nrrd", ".nhdr", ".png", ".bmp", ".tiff", ".tif"];
/// How many names an error lists.
const LISTED: usize = 10;

/// How two folders are compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FolderOptions {
    /// What is evaluated; by default what the `dataset.json` in or beside the true label maps says, else the one beside the
    /// predictions, else all labels seen in either folder.
    pub classes: Option<Classes>,
    /// Pass over true label maps without a prediction (nnU-Net's `--chill`).
    pub allow_missing: bool,
    /// What to compute beyond nnU-Net's metrics.
    pub measures: Measures,
}

/// Compares the label maps of two folders; files belong together where their names agree, endings aside.
///
/// # Errors
/// [`EvalError::Unpaired`] where a file has no counterpart; otherwise as [`super::evaluate_files`].
pub fn evaluate_folder(predictions: &Path, truth: &Path, options: &FolderOptions) -> Result<Summary, EvalError> {
    let pairs = pair_folders(predictions, truth, options.allow_missing)?;
    let classes = match (&options.classes, dataset_json(predictions, truth)) {
        (Some(classes), _) => classes.clone(),
        (None, Some(path)) => Classes::read(&path)?,
        (None, None) => Classes::of_seen(&labels_of(&pairs)?),
    };
    if classes.foreground.is_empty() {
        return Err(EvalError::invalid(truth, "there is no foreground class to evaluate"));
    }
    evaluate_files(&pairs, &classes, &options.measures)
}

fn dataset_json(predictions: &Path, truth: &Path) -> Option<PathBuf> {
    let places = [truth.join("dataset.json"), truth.join("../dataset.json"), predictions.join("dataset.json")];
    places.into_iter().find(|path| path.is_file())
}

/// Label maps of two folders whose names agree, endings aside, in the order of the cases' names.
///
/// # Errors
/// A folder cannot be read, or a file has no counterpart: a prediction always must, a true label map unless
/// `allow_missing`.
pub fn pair_folders(predictions: &Path, truth: &Path, allow_missing: bool) -> Result<Vec<Pair>, EvalError> {
    let mut predicted = label_maps(predictions)?;
    let references = label_maps(truth)?;
    let without_prediction = references.keys().filter(|case| !allow_missing && !predicted.contains_key(*case));
    let without_prediction: Vec<_> = without_prediction.collect();
    let without_reference: Vec<_> = predicted.keys().filter(|case| !references.contains_key(*case)).collect();
    if !without_prediction.is_empty() || !without_reference.is_empty() {
        let missing = [(predictions, without_prediction), (truth, without_reference)];
        let lines = missing.iter().filter(|(_, cases)| !cases.is_empty());
        let lines: Vec<_> = lines.map(|(folder, cases)| list_missing(folder, cases)).collect();
        return Err(EvalError::Unpaired(lines.join("; ")));
    }
    let pairs = references
        .into_iter()
        .filter_map(|(case, reference)| predicted.remove(&case).map(|prediction| Pair { prediction, reference }));
    Ok(pairs.collect())
}

fn list_missing(folder: &Path, cases: &[&String]) -> String {
    let listed: Vec<_> = cases.iter().take(LISTED).map(|case| case.as_str()).collect();
    let more = if cases.len() > LISTED { ", …" } else { "" };
    format!("{}: no label map of {} case(s): {}{more}", folder.display(), cases.len(), listed.join(", "))
}

/// Label maps of a folder by case; hidden files and files of other kinds are passed over.
///
/// # Errors
/// The folder cannot be read, has no label map, or two of a case.
pub fn label_maps(folder: &Path) -> Result<BTreeMap<String, PathBuf>, EvalError> {
    let mut cases = BTreeMap::new();
    let mut twice = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(EvalError::io(folder))? {
        let path = entry.map_err(EvalError::io(folder))?.path();
        let Some(case) = case_of(&path) else { continue };
        if cases.insert(case.clone(), path).is_some() {
            twice.insert(case);
        }
    }
    if !twice.is_empty() {
        let twice: Vec<_> = twice.into_iter().take(LISTED).collect();
        return Err(EvalError::invalid(folder, format!("more than one label map of {}", twice.join(", "))));
    }
    if cases.is_empty() {
        return Err(EvalError::invalid(folder, format!("no label maps ({})", ENDINGS.join(", "))));
    }
    Ok(cases)
}

fn case_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str().filter(|name| !name.starts_with('.'))?;
    let case = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending))?;
    Some(case.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        folder
    }

    #[test]
    fn files_are_paired_by_case_whatever_their_ending() {
        let predictions = folder(&["b.nii.gz", "a.nii.gz", "summary.json", "a.npz", "._a.nii.gz"]);
        let truth = folder(&["a.nii", "b.hdr", "b.img"]);
        let pairs = pair_folders(predictions.path(), truth.path(), false).unwrap();
        let names = |pair: &Pair| {
            [&pair.prediction, &pair.reference].map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(pairs.iter().map(names).collect::<Vec<_>>(), [["a.nii.gz", "a.nii"], ["b.nii.gz", "b.hdr"]]);
    }

    #[test]
    fn files_without_counterpart_are_all_listed() {
        let predictions = folder(&["a.nii.gz", "c.nii.gz"]);
        let truth = folder(&["a.nii.gz", "b.nii.gz", "d.nii.gz"]);
        let error = pair_folders(predictions.path(), truth.path(), false).unwrap_err().to_string();
        let expected = [
            format!("{}: no label map of 2 case(s): b, d", predictions.path().display()),
            format!("{}: no label map of 1 case(s): c", truth.path().display()),
        ];
        assert_eq!(error, expected.join("; "));
        // Predictions without a reference cannot be evaluated, whatever is allowed.
        let error = pair_folders(predictions.path(), truth.path(), true).unwrap_err().to_string();
        assert_eq!(error, expected[1]);
        std::fs::remove_file(predictions.path().join("c.nii.gz")).unwrap();
        assert_eq!(pair_folders(predictions.path(), truth.path(), true).unwrap().len(), 1);
    }

    #[test]
    fn unusable_folders_are_named() {
        let (empty, double) = (folder(&["readme.txt"]), folder(&["a.nii", "a.nii.gz"]));
        for (folder, defect) in [(&empty, "no label maps"), (&double, "more than one label map of a")] {
            let error = label_maps(folder.path()).unwrap_err().to_string();
            assert!(error.contains(defect) && error.contains(folder.path().to_str().unwrap()), "{error}");
        }
        assert!(matches!(label_maps(&empty.path().join("missing")), Err(EvalError::Io { .. })));
    }
}
