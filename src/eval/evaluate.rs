//! Evaluation of pairs of files, and pairing of the label maps of two folders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nnunet_data::dataset::LabelValue;
use nnunet_image::{LabelMap, read_labels};
use rayon::prelude::*;

use super::classes::class_key;
use super::surface::ClassMasks;
use super::{CaseResult, Classes, Confusion, EvalError, Measure, Measures, Metrics, Summary, SurfaceDistances};

/// A predicted label map and its reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Path of the predicted label map.
    pub prediction: PathBuf,
    /// Path of the reference label map.
    pub reference: PathBuf,
}

/// Evaluates each prediction against its reference, in parallel; results are in input order.
///
/// # Errors
/// Returns the error of the first pair, in input order, that cannot be read or differs in shape. A pair that differs in
/// geometry is only warned of, so that a training does not fail at its end.
pub fn evaluate_files(pairs: &[Pair], classes: &Classes, measures: &Measures) -> Result<Summary, EvalError> {
    Ok(Summary::new(evaluate_cases(pairs, classes, measures)?))
}

/// Same as [`evaluate_files`], without the means over cases.
///
/// # Errors
/// Returns an error in the cases of [`evaluate_files`].
pub fn evaluate_cases(pairs: &[Pair], classes: &Classes, measures: &Measures) -> Result<Vec<CaseResult>, EvalError> {
    evaluate_checked(pairs, classes, measures, OtherGeometry::Warn)
}

/// Consequence of a prediction whose geometry is not its reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OtherGeometry {
    Refuse,
    Warn,
}

fn evaluate_checked(
    pairs: &[Pair],
    classes: &Classes,
    measures: &Measures,
    other_geometry: OtherGeometry,
) -> Result<Vec<CaseResult>, EvalError> {
    let cases: Vec<_> = pairs.par_iter().map(|pair| evaluate_pair(pair, classes, measures, other_geometry)).collect();
    // Collected in order first, so that the reported error does not depend on thread timing.
    cases.into_iter().collect()
}

/// All labels that occur in any of the files.
fn labels_of(pairs: &[Pair]) -> Result<BTreeSet<i16>, EvalError> {
    let labels: Vec<_> = pairs
        .par_iter()
        .map(|pair| {
            let [prediction, reference] = read_pair(pair)?;
            Ok(Confusion::new(&reference.data, &prediction.data).labels())
        })
        .collect();
    labels.into_iter().try_fold(BTreeSet::new(), |mut all, labels: Result<_, EvalError>| {
        all.extend(labels?);
        Ok(all)
    })
}

/// Returns the error of a prediction that is not where its reference is. Programs that use ITK write a label map to the
/// place of the image's qform, which may be another than that of its sform.
fn geometry_error(pair: &Pair, prediction: &LabelMap, reference: &LabelMap) -> Option<EvalError> {
    let difference = prediction.geometry.difference(&reference.geometry)?;
    let places = |map: &LabelMap| [Some(map.geometry.clone()), map.geometry.by_qform()].into_iter().flatten();
    if places(prediction).any(|ours| places(reference).any(|theirs| ours.difference(&theirs).is_none())) {
        return None;
    }
    Some(EvalError::Geometry { prediction: pair.prediction.clone(), difference, reference: pair.reference.clone() })
}

/// Reads a prediction and its reference, which must have the same shape.
///
/// # Errors
/// Returns an error if either cannot be read or the shapes differ.
pub fn read_pair(pair: &Pair) -> Result<[LabelMap; 2], EvalError> {
    let reference = read_labels(&pair.reference)?;
    let prediction = read_labels(&pair.prediction)?;
    if prediction.data.shape() != reference.data.shape() {
        return Err(EvalError::Shape {
            prediction: pair.prediction.clone(),
            prediction_shape: prediction.data.shape().to_vec(),
            reference: pair.reference.clone(),
            reference_shape: reference.data.shape().to_vec(),
        });
    }
    Ok([prediction, reference])
}

fn evaluate_pair(
    pair: &Pair,
    classes: &Classes,
    measures: &Measures,
    other_geometry: OtherGeometry,
) -> Result<CaseResult, EvalError> {
    let [prediction, reference] = read_pair(pair)?;
    match (geometry_error(pair, &prediction, &reference), other_geometry) {
        (Some(error), OtherGeometry::Refuse) => return Err(error),
        (Some(EvalError::Geometry { prediction, difference, reference }), _) => tracing::warn!(
            "{}: {difference} of {}; distances and volumes use the reference's spacing",
            prediction.display(),
            reference.display()
        ),
        _ => {}
    }
    let counts = Confusion::new(&reference.data, &prediction.data);
    let masks = measures
        .need_surfaces()
        .then(|| ClassMasks::new(prediction.data.view(), reference.data.view(), classes.ignore_label));
    let spacing = reference.geometry.spacing;
    let metrics = classes.foreground.par_iter().map(|class| {
        let key = class_key(class);
        let surfaces = masks.as_ref().map(|masks| surface_distances(masks, class, spacing));
        let mut metrics = counts.metrics(class, classes.ignore_label);
        for &measure in &measures.chosen {
            let value = match (&surfaces, measure) {
                (Some(surfaces), Measure::Nsd) => surfaces.normalized_surface_dice(measures.tolerance.for_class(&key)),
                (Some(surfaces), Measure::Hd95) => surfaces.hausdorff_95(),
                (Some(surfaces), Measure::Assd) => surfaces.average(),
                _ => measure_from_counts(measure, &metrics, spacing.iter().product()),
            };
            metrics.measured.set(measure, value);
        }
        (key, metrics)
    });
    Ok(CaseResult {
        metrics: metrics.collect::<Vec<_>>().into_iter().collect(),
        prediction_file: pair.prediction.clone(),
        reference_file: pair.reference.clone(),
    })
}

fn surface_distances(masks: &ClassMasks, class: &LabelValue, spacing: [f64; 3]) -> SurfaceDistances {
    let [prediction, reference] = masks.for_class(class);
    SurfaceDistances::new(prediction.view(), reference.view(), masks.extent(), spacing)
}

/// Value of a measure that follows from voxel counts; `voxel` is the voxel volume in mm³.
fn measure_from_counts(measure: Measure, metrics: &Metrics<u64>, voxel: f64) -> f64 {
    let [tp, fp, tn, n_pred, n_ref] =
        [metrics.tp, metrics.fp, metrics.tn, metrics.n_pred, metrics.n_ref].map(|count| count as f64);
    // 0 / 0 is NaN: undefined.
    match measure {
        Measure::Sensitivity => tp / n_ref,
        Measure::Precision => tp / n_pred,
        Measure::Specificity => tn / (tn + fp),
        Measure::Avd => (n_pred - n_ref).abs() * voxel,
        Measure::Rvd if n_ref == 0.0 => f64::NAN,
        Measure::Rvd => (n_pred - n_ref) / n_ref,
        Measure::Nsd | Measure::Hd95 | Measure::Assd => f64::NAN,
    }
}

/// File name endings of label maps. The header represents a `.hdr` / `.img` pair.
const ENDINGS: [&str; 11] =
    [".nii.gz", ".nii", ".hdr", ".mha", ".mhd", ".nrrd", ".nhdr", ".png", ".bmp", ".tiff", ".tif"];
/// Maximum number of names an error lists.
const LISTED: usize = 10;

/// Options of [`evaluate_folder`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FolderOptions {
    /// Classes to evaluate; by default those of the `dataset.json` in or beside the reference folder, else of the one
    /// in the prediction folder, else all labels that occur in either folder.
    pub classes: Option<Classes>,
    /// Ignore references without a prediction (nnU-Net's `--chill`).
    pub allow_missing: bool,
    /// Measures in addition to nnU-Net's metrics.
    pub measures: Measures,
    /// Compare voxel by voxel, with a warning, where a prediction has another geometry than its reference.
    pub allow_other_geometry: bool,
}

/// Evaluates the label maps of two folders, paired by file name without ending.
///
/// # Errors
/// Returns [`EvalError::Unpaired`] if a file has no counterpart; otherwise an error in the cases of
/// [`super::evaluate_files`].
pub fn evaluate_folder(predictions: &Path, truth: &Path, options: &FolderOptions) -> Result<Summary, EvalError> {
    let pairs = pair_folders(predictions, truth, options.allow_missing)?;
    let classes = match (&options.classes, dataset_json(predictions, truth)) {
        (Some(classes), _) => classes.clone(),
        (None, Some(path)) => Classes::read(&path)?,
        (None, None) => Classes::from_labels(&labels_of(&pairs)?),
    };
    if classes.foreground.is_empty() {
        return Err(EvalError::invalid(truth, "has no foreground class to evaluate"));
    }
    let other_geometry = if options.allow_other_geometry { OtherGeometry::Warn } else { OtherGeometry::Refuse };
    Ok(Summary::new(evaluate_checked(&pairs, &classes, &options.measures, other_geometry)?))
}

fn dataset_json(predictions: &Path, truth: &Path) -> Option<PathBuf> {
    let places = [truth.join("dataset.json"), truth.join("../dataset.json"), predictions.join("dataset.json")];
    places.into_iter().find(|path| path.is_file())
}

/// Pairs the label maps of two folders by file name without ending, in the order of the case names.
///
/// # Errors
/// Returns an error if a folder cannot be read or a file has no counterpart. References without a prediction are
/// accepted if `allow_missing` is set; predictions without a reference never are.
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
    format!("{}: missing label maps of {} case(s): {}{more}", folder.display(), cases.len(), listed.join(", "))
}

/// Label maps of a folder by case; hidden files and other file types are ignored. Files whose names are not UTF-8 are
/// skipped with a warning.
///
/// # Errors
/// Returns an error if the folder cannot be read, has no label map, or has two of one case.
pub fn label_maps(folder: &Path) -> Result<BTreeMap<String, PathBuf>, EvalError> {
    let mut cases = BTreeMap::new();
    let mut twice = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(EvalError::io(folder))? {
        let path = entry.map_err(EvalError::io(folder))?.path();
        if path.file_name().is_some_and(|name| name.to_str().is_none()) {
            tracing::warn!("{}: left out, since its name is not UTF-8; rename it", path.display());
        }
        let Some(case) = case_of(&path) else { continue };
        if cases.insert(case.clone(), path).is_some() {
            twice.insert(case);
        }
    }
    if !twice.is_empty() {
        let twice: Vec<_> = twice.into_iter().take(LISTED).collect();
        return Err(EvalError::invalid(folder, format!("has more than one label map of {}", twice.join(", "))));
    }
    if cases.is_empty() {
        return Err(EvalError::invalid(folder, format!("has no label maps ({})", ENDINGS.join(", "))));
    }
    Ok(cases)
}

fn case_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str().filter(|name| !name.starts_with('.'))?;
    let lower = name.to_lowercase();
    let ending = ENDINGS.iter().find(|ending| lower.ends_with(**ending))?;
    Some(name[..name.len() - ending.len()].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_volumes_follow_from_the_counts() {
        let measured = |metrics: &Metrics<u64>| {
            Measure::ALL
                .map(|measure| measure_from_counts(measure, metrics, 0.5))
                .into_iter()
                .take(5)
                .collect::<Vec<_>>()
        };
        assert_eq!(measured(&Metrics::from_counts(6, 2, 4, 14)), [0.6, 0.75, 0.875, 1.0, -0.2]);
        let [sensitivity, precision, specificity, avd, rvd] = measured(&Metrics::from_counts(0, 3, 0, 5))[..] else {
            panic!()
        };
        assert!(sensitivity.is_nan() && rvd.is_nan());
        assert_eq!((precision, specificity, avd), (0.0, 0.625, 1.5));
        let [sensitivity, precision, ..] = measured(&Metrics::from_counts(0, 0, 3, 5))[..] else { panic!() };
        assert!(sensitivity == 0.0 && precision.is_nan());
    }

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        folder
    }

    #[test]
    fn pairs_files_by_case_regardless_of_their_ending() {
        let predictions = folder(&["b.NII.GZ", "a.nii.gz", "summary.json", "a.npz", "._a.nii.gz"]);
        let truth = folder(&["a.nii", "b.hdr", "b.img"]);
        let pairs = pair_folders(predictions.path(), truth.path(), false).unwrap();
        let names = |pair: &Pair| {
            [&pair.prediction, &pair.reference].map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(pairs.iter().map(names).collect::<Vec<_>>(), [["a.nii.gz", "a.nii"], ["b.NII.GZ", "b.hdr"]]);
    }

    #[test]
    fn lists_all_files_without_counterpart() {
        let predictions = folder(&["a.nii.gz", "c.nii.gz"]);
        let truth = folder(&["a.nii.gz", "b.nii.gz", "d.nii.gz"]);
        let error = pair_folders(predictions.path(), truth.path(), false).unwrap_err().to_string();
        let expected = [
            format!("{}: missing label maps of 2 case(s): b, d", predictions.path().display()),
            format!("{}: missing label maps of 1 case(s): c", truth.path().display()),
        ];
        assert_eq!(error, expected.join("; "));
        // Predictions without a reference cannot be evaluated, even with `allow_missing`.
        let error = pair_folders(predictions.path(), truth.path(), true).unwrap_err().to_string();
        assert_eq!(error, expected[1]);
        std::fs::remove_file(predictions.path().join("c.nii.gz")).unwrap();
        assert_eq!(pair_folders(predictions.path(), truth.path(), true).unwrap().len(), 1);
    }

    #[test]
    fn names_unusable_folders() {
        let (empty, double) = (folder(&["readme.txt"]), folder(&["a.nii", "a.nii.gz"]));
        for (folder, defect) in [(&empty, "no label maps"), (&double, "more than one label map of a")] {
            let error = label_maps(folder.path()).unwrap_err().to_string();
            assert!(error.contains(defect) && error.contains(folder.path().to_str().unwrap()), "{error}");
        }
        assert!(matches!(label_maps(&empty.path().join("missing")), Err(EvalError::Io { .. })));
    }
}
