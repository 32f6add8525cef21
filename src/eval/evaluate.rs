//! Evaluation of pairs of files.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rayon::prelude::*;

use super::classes::key;
use super::masks::ClassMasks;
use super::{CaseResult, Classes, Confusion, EvalError, Measure, Measures, Metrics, Summary, SurfaceDistances};
use nnunet_data::dataset::LabelValue;
use nnunet_image::{LabelMap, read_labels};

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
/// Returns the error of the first pair, in input order, that cannot be read or differs in shape.
pub fn evaluate_files(pairs: &[Pair], classes: &Classes, measures: &Measures) -> Result<Summary, EvalError> {
    Ok(Summary::new(evaluate_cases(pairs, classes, measures)?))
}

/// Same as [`evaluate_files`], without the means over cases.
///
/// # Errors
/// Returns an error in the cases of [`evaluate_files`].
pub fn evaluate_cases(pairs: &[Pair], classes: &Classes, measures: &Measures) -> Result<Vec<CaseResult>, EvalError> {
    let cases: Vec<_> = pairs.par_iter().map(|pair| evaluate_pair(pair, classes, measures)).collect();
    // Collected in order first, so that the reported error does not depend on thread timing.
    cases.into_iter().collect()
}

/// All labels that occur in any of the files.
pub(super) fn labels_of(pairs: &[Pair]) -> Result<BTreeSet<i16>, EvalError> {
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

fn evaluate_pair(pair: &Pair, classes: &Classes, measures: &Measures) -> Result<CaseResult, EvalError> {
    let [prediction, reference] = read_pair(pair)?;
    let counts = Confusion::new(&reference.data, &prediction.data);
    let masks = measures
        .need_surfaces()
        .then(|| ClassMasks::new(prediction.data.view(), reference.data.view(), classes.ignore_label));
    let spacing = reference.geometry.spacing;
    let metrics = classes.foreground.par_iter().map(|class| {
        let key = key(class);
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
}
