//! Two folders of label maps, paired by case.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::evaluate::{count_files, summarise};
use super::{Classes, EvalError, Pair, Summary};

/// File name endings of label maps. Of a `.hdr` / `.img` pair, the header stands for both.
const ENDINGS: [&str; 11] =
    [".nii.gz", ".nii", ".hdr", ".mha", ".mhd", ".nrrd", ".nhdr", ".png", ".bmp", ".tiff", ".tif"];
/// How many names an error lists.
const LISTED: usize = 10;

/// Compares the label maps of two folders; files belong together where their names agree, endings aside.
///
/// The classes are those of the `dataset.json` in or beside `truth`, else all labels seen in either folder.
///
/// # Errors
/// [`EvalError::Unpaired`] where a file has no counterpart; otherwise as [`super::evaluate_files`].
pub fn evaluate_folder(predictions: &Path, truth: &Path) -> Result<Summary, EvalError> {
    let pairs = pair(predictions, truth)?;
    let counts = count_files(&pairs)?;
    let classes = match dataset_json(truth) {
        Some(path) => Classes::read(&path)?,
        None => Classes::of_seen(&counts.iter().flat_map(|counts| counts.labels()).collect()),
    };
    if classes.foreground.is_empty() {
        return Err(EvalError::invalid(truth, "there is no foreground class to evaluate"));
    }
    Ok(summarise(&pairs, &counts, &classes))
}

fn dataset_json(truth: &Path) -> Option<PathBuf> {
    [truth.join("dataset.json"), truth.join("../dataset.json")].into_iter().find(|path| path.is_file())
}

/// Pairs of files in the order of the cases' names.
fn pair(predictions: &Path, truth: &Path) -> Result<Vec<Pair>, EvalError> {
    let mut predicted = label_maps(predictions)?;
    let references = label_maps(truth)?;
    let without_prediction: Vec<_> = references.keys().filter(|case| !predicted.contains_key(*case)).collect();
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
fn label_maps(folder: &Path) -> Result<BTreeMap<String, PathBuf>, EvalError> {
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
        let pairs = pair(predictions.path(), truth.path()).unwrap();
        let names = |pair: &Pair| {
            [&pair.prediction, &pair.reference].map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(pairs.iter().map(names).collect::<Vec<_>>(), [["a.nii.gz", "a.nii"], ["b.nii.gz", "b.hdr"]]);
    }

    #[test]
    fn files_without_counterpart_are_all_listed() {
        let predictions = folder(&["a.nii.gz", "c.nii.gz"]);
        let truth = folder(&["a.nii.gz", "b.nii.gz", "d.nii.gz"]);
        let error = pair(predictions.path(), truth.path()).unwrap_err().to_string();
        let expected = [
            format!("{}: no label map of 2 case(s): b, d", predictions.path().display()),
            format!("{}: no label map of 1 case(s): c", truth.path().display()),
        ];
        assert_eq!(error, expected.join("; "));
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
