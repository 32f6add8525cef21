//! Ensembling of prediction folders.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{EnsembleError, Members, merge_cases};
use nnunet_core::fsio;
use nnunet_data::dataset::DatasetJson;

/// Maximum number of cases an error lists.
const LISTED: usize = 10;

/// Options of [`ensemble_folders`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnsembleOptions {
    /// Path of the `dataset.json`; by default the one in the first folder.
    pub dataset_json: Option<PathBuf>,
    /// Also write the mean probabilities, e.g. for ensembles of ensembles.
    pub save_probabilities: bool,
}

/// Averages the cases of `inputs`, folders with `CASE.npz` and a label map for each case, and writes the label maps and
/// `dataset.json` to `output`. Returns the number of cases.
///
/// # Errors
/// Returns an error if the folders do not have the same cases, or a case cannot be merged.
pub fn ensemble_folders(inputs: &[PathBuf], output: &Path, options: &EnsembleOptions) -> Result<usize, EnsembleError> {
    let cases = find_members(inputs)?;
    let dataset = read_dataset(inputs, options)?;
    let path = output.join("dataset.json");
    fsio::write_json(&path, &dataset).map_err(|source| EnsembleError::Io { path, source })?;
    merge_cases(&cases, output, &dataset, options.save_probabilities)?;
    Ok(cases.len())
}

fn read_dataset(inputs: &[PathBuf], options: &EnsembleOptions) -> Result<DatasetJson, EnsembleError> {
    let path = match (&options.dataset_json, inputs.first()) {
        (Some(path), _) => path.clone(),
        (None, Some(first)) => first.join("dataset.json"),
        (None, None) => PathBuf::from("dataset.json"),
    };
    if !path.is_file() {
        let defect = "does not exist; pass the dataset's file with --dataset-json".to_owned();
        return Err(EnsembleError::Invalid { path, defect });
    }
    let dataset = DatasetJson::load(&path)?;
    match dataset.region_problem() {
        Some(defect) => Err(EnsembleError::Invalid { path, defect }),
        None => Ok(dataset),
    }
}

/// Finds the cases, which must be the same in all folders.
fn find_members(inputs: &[PathBuf]) -> Result<Vec<Members>, EnsembleError> {
    let folders = inputs.iter().map(|folder| cases_of(folder)).collect::<Result<Vec<_>, _>>()?;
    let all: BTreeSet<&String> = folders.iter().flatten().collect();
    for (folder, cases) in inputs.iter().zip(&folders) {
        let missing: Vec<&str> = all.iter().filter(|case| !cases.contains(**case)).map(|case| case.as_str()).collect();
        if !missing.is_empty() {
            let more = if missing.len() > LISTED { ", …" } else { "" };
            let listed = missing[..missing.len().min(LISTED)].join(", ");
            let defect = format!("lacks probabilities of {} case(s) that others have: {listed}{more}", missing.len());
            return Err(EnsembleError::Invalid { path: folder.clone(), defect });
        }
    }
    let members = |case: &String| {
        let probabilities = inputs.iter().map(|folder| folder.join(format!("{case}.npz"))).collect();
        Members { case: case.clone(), probabilities }
    };
    Ok(all.into_iter().map(members).collect())
}

/// Cases with probabilities (`*.npz`) in a folder; hidden files are ignored.
fn cases_of(folder: &Path) -> Result<BTreeSet<String>, EnsembleError> {
    let io = |source| EnsembleError::Io { path: folder.to_owned(), source };
    let mut cases = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let case = name.to_str().filter(|name| !name.starts_with('.')).and_then(|name| name.strip_suffix(".npz"));
        cases.extend(case.map(str::to_owned));
    }
    if cases.is_empty() {
        let defect = "has no probabilities (*.npz); run predict with --save-probabilities".to_owned();
        return Err(EnsembleError::Invalid { path: folder.to_owned(), defect });
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|file| std::fs::write(folder.path().join(file), "").unwrap());
        folder
    }

    #[test]
    fn all_folders_must_have_the_same_cases() {
        let (one, other) = (folder(&["b.npz", "a.npz", "a.nii.gz", ".c.npz"]), folder(&["a.npz", "b.npz"]));
        let inputs = [one.path().to_owned(), other.path().to_owned()];
        let members = find_members(&inputs).unwrap();
        assert_eq!(members.iter().map(|member| member.case.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(members[1].probabilities, [inputs[0].join("b.npz"), inputs[1].join("b.npz")]);

        std::fs::remove_file(other.path().join("b.npz")).unwrap();
        let error = find_members(&inputs).unwrap_err().to_string();
        assert!(error.contains("others have: b") && error.contains(inputs[1].to_str().unwrap()), "{error}");
        std::fs::remove_file(other.path().join("a.npz")).unwrap();
        assert!(find_members(&inputs).unwrap_err().to_string().contains("--save-probabilities"));
        let error = read_dataset(&inputs, &EnsembleOptions::default()).unwrap_err().to_string();
        assert!(error.contains("--dataset-json"), "{error}");
    }
}
