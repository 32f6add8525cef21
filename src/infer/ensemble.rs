//! Ensembles: label maps from the mean of the class probabilities of several predictions.
//!
//! Matches nnU-Net v2 (`ensembling/ensemble.py`). [`ensemble_folders`] reads the output of `predict
//! --save-probabilities` from several folders; [`merge_case`] reads the files of one case. Probabilities are many times
//! larger than label maps and are read class by class, so that only one class is in memory, regardless of the number of
//! members.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ndarray::{Array3, ArrayView3};
use nnunet_core::fsio;
use nnunet_data::dataset::{DatasetError, DatasetJson};
use nnunet_image::{ImageError, ImageHeader, LabelMap, read_header, write_labels};
use rayon::prelude::*;

use crate::{ProbabilityArchive, ProbabilityError, ProbabilityMaps, stream_probabilities};

/// Predictions that cannot be ensembled.
#[derive(Debug, thiserror::Error)]
pub enum EnsembleError {
    /// Probabilities cannot be read or written.
    #[error("{0}")]
    Probabilities(#[from] ProbabilityError),
    /// A label map cannot be read or written.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// The `dataset.json` cannot be read.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// Predictions are missing or do not match.
    #[error("{}: {defect}", path.display())]
    Invalid {
        /// Path of the file or folder.
        path: PathBuf,
        /// Description of the problem.
        defect: String,
    },
    /// Some cases failed; the results of the others were written.
    #[error("{} of {total} cases failed: {}", failed.len(), failed.join("; "))]
    Cases {
        /// Name and error of each failed case.
        failed: Vec<String>,
        /// Number of all cases.
        total: usize,
    },
    /// A folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
}

/// A region is segmented where its probability exceeds this (nnU-Net v2, `convert_probabilities_to_segmentation`).
const REGION_THRESHOLD: f32 = 0.5;

/// The predictions of one case to be averaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Case name.
    pub case: String,
    /// Probability files `CASE.npz`, each with its label map beside it.
    pub probabilities: Vec<PathBuf>,
}

/// Merges several cases in parallel, see [`merge_case`]. A failing case does not stop the others.
///
/// # Errors
/// Returns the error of the only case, or an error that lists all cases that cannot be merged.
pub fn merge_cases(
    cases: &[Members],
    output: &Path,
    dataset: &DatasetJson,
    save_probabilities: bool,
) -> Result<(), EnsembleError> {
    let merge = |members: &Members| merge_case(members, output, dataset, save_probabilities);
    let merged: Vec<_> = cases.par_iter().map(merge).collect();
    let total = merged.len();
    let named = cases.iter().zip(merged).filter_map(|(members, merged)| Some((&members.case, merged.err()?)));
    let mut failed: Vec<(&String, EnsembleError)> = named.collect();
    match (failed.len(), total) {
        (0, _) => Ok(()),
        (1, 1) => Err(failed.remove(0).1),
        _ => {
            let failed = failed.into_iter().map(|(case, error)| format!("{case}: {error}")).collect();
            Err(EnsembleError::Cases { failed, total })
        }
    }
}

/// Writes the label map of a case's mean probabilities to `output`, and optionally the mean probabilities.
///
/// The mean is the f32 sum in the order of the members, divided by their number. Classes: argmax, the first of equal
/// maxima. Regions: written one after the other in the order of the dataset's `regions_class_order` where the
/// probability exceeds 0.5. The geometry is that of the first member's label map.
///
/// # Errors
/// Returns an error if a member cannot be read, contains NaN or infinity, or its shape `(class, z, y, x)` does not match
/// the dataset and the first label map, if the members' label maps differ in geometry, or if a result cannot be written.
pub fn merge_case(
    members: &Members,
    output: &Path,
    dataset: &DatasetJson,
    save_probabilities: bool,
) -> Result<(), EnsembleError> {
    let Members { case, probabilities: paths } = members;
    let Some(first) = paths.first() else {
        let defect = "has no predictions to average".to_owned();
        return Err(EnsembleError::Invalid { path: case.into(), defect });
    };
    let mut archives =
        paths.iter().map(|path| ProbabilityArchive::open(path)).collect::<Result<Vec<_>, ProbabilityError>>()?;
    let mut maps = archives.iter_mut().map(ProbabilityArchive::maps).collect::<Result<Vec<_>, ProbabilityError>>()?;
    let header = read_header(&first.with_file_name(format!("{case}{}", dataset.file_ending)))?;
    check_geometries(paths, &format!("{case}{}", dataset.file_ending), &header)?;
    let [_, z, y, x] = header.shape;
    let shape = [dataset.num_segmentation_heads(), z, y, x];
    check_shapes(paths, &maps, shape)?;

    let mut decision = Decision::new(dataset, [z, y, x]);
    let path = output.join(format!("{case}.npz"));
    if save_probabilities {
        stream_probabilities(&path, shape, |write| {
            average(&mut maps, [z, y, x], |class, mean| {
                decision.add(class, mean);
                let mean = ArrayView3::from_shape([z, y, x], mean).expect("a class has all voxels");
                Ok(write(mean).map_err(|error| ProbabilityError::new(&path, error))?)
            })
        })?;
    } else {
        average(&mut maps, [z, y, x], |class, mean| {
            decision.add(class, mean);
            Ok(())
        })?;
    }
    let labels = Array3::from_shape_vec([z, y, x], decision.labels).expect("a label per voxel");
    let path = output.join(format!("{case}{}", dataset.file_ending));
    Ok(write_labels(&path, &LabelMap { data: labels, geometry: header.geometry })?)
}

/// Checks that the label maps beside the probabilities, if they are there, are all at one place.
fn check_geometries(paths: &[PathBuf], label_map: &str, first: &ImageHeader) -> Result<(), EnsembleError> {
    for path in paths.iter().skip(1).map(|path| path.with_file_name(label_map)).filter(|path| path.is_file()) {
        let difference = read_header(&path)?.geometry.difference(&first.geometry);
        if let Some(difference) = difference {
            let first = paths[0].with_file_name(label_map);
            let defect = format!("{difference} of {}; members must be of the same image", first.display());
            return Err(EnsembleError::Invalid { path, defect });
        }
    }
    Ok(())
}

fn check_shapes(paths: &[PathBuf], maps: &[ProbabilityMaps], expected: [usize; 4]) -> Result<(), EnsembleError> {
    let Some((path, maps)) = paths.iter().zip(maps).find(|(_, maps)| maps.shape() != expected) else { return Ok(()) };
    let defect = format!(
        "has probabilities of shape {:?} (class, z, y, x), dataset.json and the first label map require {expected:?}",
        maps.shape()
    );
    Err(EnsembleError::Invalid { path: path.clone(), defect })
}

/// Calls `take` with the class index and mean probabilities of each class.
fn average(
    maps: &mut [ProbabilityMaps],
    shape: [usize; 3],
    mut take: impl FnMut(usize, &[f32]) -> Result<(), EnsembleError>,
) -> Result<(), EnsembleError> {
    let members = maps.len() as f32;
    let classes = maps.first().map_or(0, |maps| maps.shape()[0]);
    let mut mean = vec![0f32; shape.iter().product()];
    for class in 0..classes {
        for (member, maps) in maps.iter_mut().enumerate() {
            let mut not_finite = 0;
            maps.next_class(|at, part| {
                not_finite += part.iter().filter(|value| !value.is_finite()).count();
                let sums = &mut mean[at..at + part.len()];
                match member {
                    0 => sums.copy_from_slice(part),
                    _ => sums.iter_mut().zip(part).for_each(|(sum, value)| *sum += value),
                }
            })?;
            if not_finite > 0 {
                let defect = format_args!("probabilities of class {class} are NaN or infinite in {not_finite} voxels");
                return Err(ProbabilityError::new(maps.path(), defect).into());
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= members);
        take(class, &mean)?;
    }
    Ok(())
}

/// Label map derived from the classes processed so far.
struct Decision {
    /// Label of each region; `None` for classes, whose labels are their indices.
    regions: Option<Vec<i16>>,
    labels: Vec<i16>,
    /// Highest probability so far; used for classes only.
    highest: Vec<f32>,
}

impl Decision {
    fn new(dataset: &DatasetJson, shape: [usize; 3]) -> Self {
        let regions = dataset.has_regions().then(|| dataset.foreground().iter().map(|region| region.output).collect());
        let voxels = shape.iter().product();
        let highest = if regions.is_some() { Vec::new() } else { vec![f32::NEG_INFINITY; voxels] };
        Self { regions, labels: vec![0; voxels], highest }
    }

    fn add(&mut self, class: usize, mean: &[f32]) {
        let Self { regions, labels, highest } = self;
        match regions {
            Some(outputs) => {
                for (label, probability) in labels.iter_mut().zip(mean) {
                    if *probability > REGION_THRESHOLD {
                        *label = outputs[class];
                    }
                }
            }
            None => {
                for ((label, highest), probability) in labels.iter_mut().zip(highest).zip(mean) {
                    if *probability > *highest {
                        (*label, *highest) = (class as i16, *probability);
                    }
                }
            }
        }
    }
}

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
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        if name.to_str().is_none() {
            tracing::warn!("{}: left out, since its name is not UTF-8; rename it", entry.path().display());
        }
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

    fn dataset(labels: &str) -> DatasetJson {
        let fixed = r#""channel_names": {"0": "MR"}, "numTraining": 1, "file_ending": ".nii""#;
        serde_json::from_str(&format!(r#"{{{fixed}, "labels": {labels}}}"#)).unwrap()
    }

    fn decide(dataset: &DatasetJson, means: &[[f32; 4]]) -> Vec<i16> {
        let mut decision = Decision::new(dataset, [1, 2, 2]);
        means.iter().enumerate().for_each(|(class, mean)| decision.add(class, mean));
        decision.labels
    }

    #[test]
    fn the_first_of_the_most_probable_classes_wins() {
        let dataset = dataset(r#"{"background": 0, "a": 1, "b": 2}"#);
        let means = [[0.2, 0.4, 0.5, 0.1], [0.5, 0.4, 0.5, 0.1], [0.3, 0.2, 0.0, 0.8]];
        assert_eq!(decide(&dataset, &means), [1, 0, 0, 2]);
    }

    #[test]
    fn a_region_is_entered_where_it_is_more_probable_than_not() {
        let dataset = dataset(r#"{"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [7, 4]"#);
        let means = [[0.9, 0.6, 0.5, 0.5], [0.5, 0.500_001, 0.9, 0.1]];
        assert_eq!(decide(&dataset, &means), [7, 4, 4, 0]);
    }

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
