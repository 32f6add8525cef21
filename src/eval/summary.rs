//! Results of an evaluation, and the statistics that they are made of.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{EvalError, Measured, json};
use nnunet_core::user_file;

/// Key of the background class, which is excluded from means over classes, as in nnU-Net.
pub(super) const BACKGROUND: &str = "0";

/// Contents of nnU-Net v2's `summary.json`, plus optional measures and confidence intervals.
///
/// Classes are keyed by their number, regions by a tuple as Python prints it (`"(1, 2)"`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean of [`Summary::mean`] over classes: NaN if a class occurs in no case.
    pub foreground_mean: Metrics<f64>,
    /// Mean of each class over the cases in which the metric is defined.
    pub mean: IndexMap<String, Metrics<f64>>,
    /// Results of each case.
    pub metric_per_case: Vec<CaseResult>,
    /// Confidence intervals of the means, if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Confidence>,
}

/// Confidence intervals of the means in a [`Summary`].
///
/// Bootstrap: all cases are resampled with replacement, and the means are computed as for the summary. The interval is
/// the range from the 2.5th to the 97.5th percentile of the resampled means (Efron and Tibshirani: An introduction to
/// the bootstrap, 1993, chapter 13). All classes and metrics share the same resamples. Resamples in which a mean is
/// undefined are excluded from its interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confidence {
    /// Confidence level, `0.0..1.0`.
    pub level: f64,
    /// Number of bootstrap resamples.
    pub resamples: usize,
    /// Seed of the resampling.
    pub seed: u64,
    /// Intervals of the mean over classes, by metric.
    pub foreground_mean: IndexMap<String, Interval>,
    /// Intervals by class and metric.
    pub mean: IndexMap<String, IndexMap<String, Interval>>,
}

/// A confidence interval and its number of cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower bound; NaN if undefined.
    #[serde(deserialize_with = "json::null_is_nan")]
    pub lower: f64,
    /// Upper bound; NaN if undefined.
    #[serde(deserialize_with = "json::null_is_nan")]
    pub upper: f64,
    /// Number of cases in which the metric is defined; for the mean over classes, in which it is defined for any class.
    pub cases: usize,
}

/// Metrics of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// Metrics per class or region.
    pub metrics: IndexMap<String, Metrics<u64>>,
    /// Path of the predicted label map.
    pub prediction_file: PathBuf,
    /// Path of the reference label map.
    pub reference_file: PathBuf,
}

/// Overlap metrics and voxel counts of one class. `Count` is `u64` for a case and `f64` for a mean over cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics<Count> {
    /// `2 TP / (2 TP + FP + FN)`; NaN if the class is in neither label map.
    #[serde(rename = "Dice", deserialize_with = "json::null_is_nan")]
    pub dice: f64,
    /// False negative voxels.
    #[serde(rename = "FN")]
    pub fn_: Count,
    /// False positive voxels.
    #[serde(rename = "FP")]
    pub fp: Count,
    /// `TP / (TP + FP + FN)`; NaN if the class is in neither label map.
    #[serde(rename = "IoU", deserialize_with = "json::null_is_nan")]
    pub iou: f64,
    /// True negative voxels.
    #[serde(rename = "TN")]
    pub tn: Count,
    /// True positive voxels.
    #[serde(rename = "TP")]
    pub tp: Count,
    /// Predicted voxels, `TP + FP`.
    pub n_pred: Count,
    /// Reference voxels, `TP + FN`.
    pub n_ref: Count,
    /// Values of the optional measures.
    #[serde(flatten)]
    pub measured: Measured,
}

impl Summary {
    /// Computes the means over the cases, all of which must have the same classes.
    pub fn new(metric_per_case: Vec<CaseResult>) -> Self {
        let classes = metric_per_case.first().map(|case| case.metrics.keys().cloned().collect()).unwrap_or_default();
        let mean: IndexMap<String, _> = Vec::into_iter(classes)
            .map(|class: String| {
                let cases = metric_per_case.iter().filter_map(|case| Some(case.metrics.get(&class)?.as_f64()));
                let mean = Metrics::combine(&cases.collect::<Vec<_>>(), |values| mean_of_defined(values));
                (class, mean)
            })
            .collect();
        let foreground = mean.iter().filter(|(class, _)| *class != BACKGROUND).map(|(_, metrics)| *metrics);
        let foreground_mean = Metrics::combine(&foreground.collect::<Vec<_>>(), |values| mean_of(values));
        Self { foreground_mean, mean, metric_per_case, confidence: None }
    }

    /// Reads a `summary.json` written by this program or by nnU-Net.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a summary.
    pub fn load(path: &Path) -> Result<Self, EvalError> {
        let text = user_file::read_text(path).map_err(EvalError::user_file(path))?;
        json::from_str(&text).map_err(|error| EvalError::invalid(path, error))
    }

    /// Writes a `summary.json` atomically.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), EvalError> {
        json::to_file(path, self)
    }

    /// Mean Dice over the foreground classes that occur in any case; NaN if none does.
    pub fn mean_dice(&self) -> f64 {
        let foreground = self.mean.iter().filter(|(class, _)| *class != BACKGROUND);
        mean_of_defined(&mut foreground.map(|(_, metrics)| metrics.dice))
    }
}

impl Metrics<u64> {
    /// Metrics of a class with these voxel counts.
    pub fn from_counts(tp: u64, fp: u64, fn_: u64, tn: u64) -> Self {
        // 0 / 0 gives the NaN that nnU-Net writes for a class in neither label map.
        let errors = (fp + fn_) as f64;
        let hits = tp as f64;
        let (dice, iou) = (2.0 * hits / (2.0 * hits + errors), hits / (hits + errors));
        Self { dice, fn_, fp, iou, tn, tp, n_pred: tp + fp, n_ref: tp + fn_, measured: Measured::default() }
    }

    fn as_f64(&self) -> Metrics<f64> {
        let Self { dice, iou, measured, .. } = *self;
        let [fn_, fp, tn, tp, n_pred, n_ref] =
            [self.fn_, self.fp, self.tn, self.tp, self.n_pred, self.n_ref].map(|count| count as f64);
        Metrics { dice, fn_, fp, iou, tn, tp, n_pred, n_ref, measured }
    }
}

impl Metrics<f64> {
    /// Computes each member from the same member of `others`.
    fn combine(others: &[Self], f: impl Fn(&mut dyn Iterator<Item = f64>) -> f64) -> Self {
        let combined = |get: fn(&Self) -> f64| f(&mut others.iter().map(get));
        let measured: Vec<Measured> = others.iter().map(|metrics| metrics.measured).collect();
        Self {
            dice: combined(|metrics| metrics.dice),
            fn_: combined(|metrics| metrics.fn_),
            fp: combined(|metrics| metrics.fp),
            iou: combined(|metrics| metrics.iou),
            tn: combined(|metrics| metrics.tn),
            tp: combined(|metrics| metrics.tp),
            n_pred: combined(|metrics| metrics.n_pred),
            n_ref: combined(|metrics| metrics.n_ref),
            measured: Measured::combine(&measured, |get| f(&mut measured.iter().map(get))),
        }
    }
}

impl<Count> Metrics<Count> {
    /// All metrics except counts, by their name in `summary.json`.
    pub fn scores(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        let measured = self.measured.iter().map(|(measure, value)| (measure.key(), value));
        [("Dice", self.dice), ("IoU", self.iou)].into_iter().chain(measured)
    }
}

/// NumPy's `mean`.
pub(super) fn mean_of(values: &mut dyn Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

/// NumPy's `nanmean`.
pub(super) fn mean_of_defined(values: &mut dyn Iterator<Item = f64>) -> f64 {
    mean_of(&mut values.filter(|value| !value.is_nan()))
}

/// The quantile `part` (`0.0..=1.0`) with linear interpolation (NumPy's `quantile`); NaN if there are no values.
/// Reorders the values.
pub(super) fn quantile(values: &mut [f64], part: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let position = part * last as f64;
    let below = (position as usize).min(last);
    let (_, lower, above) = values.select_nth_unstable_by(below, f64::total_cmp);
    let lower = *lower;
    let upper = above.iter().copied().min_by(f64::total_cmp).unwrap_or(lower);
    lower + (upper - lower) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, first: Metrics<u64>, second: Metrics<u64>) -> CaseResult {
        CaseResult {
            metrics: IndexMap::from([("1".to_owned(), first), ("(1, 2)".to_owned(), second)]),
            prediction_file: format!("pred/{name}.nii.gz").into(),
            reference_file: format!("labels/{name}.nii.gz").into(),
        }
    }

    #[test]
    fn overlap_follows_from_the_counts() {
        let metrics = Metrics::from_counts(3, 1, 2, 10);
        assert_eq!((metrics.dice, metrics.iou), (6.0 / 9.0, 3.0 / 6.0));
        assert_eq!((metrics.n_pred, metrics.n_ref), (4, 5));
        assert_eq!(Metrics::from_counts(0, 1, 0, 10).dice, 0.0);
        let absent = Metrics::from_counts(0, 0, 0, 10);
        assert!(absent.dice.is_nan() && absent.iou.is_nan());
    }

    #[test]
    fn means_skip_cases_without_the_class() {
        let absent = Metrics::from_counts(0, 0, 0, 10);
        let summary = Summary::new(vec![
            case("a", Metrics::from_counts(2, 0, 0, 8), absent),
            case("b", Metrics::from_counts(0, 1, 1, 8), absent),
            case("c", absent, absent),
        ]);
        assert_eq!(summary.mean["1"].dice, 0.5);
        assert_eq!(summary.mean["1"].tn, 26.0 / 3.0);
        assert!(summary.mean["(1, 2)"].dice.is_nan());
        assert!(summary.foreground_mean.dice.is_nan(), "nnU-Net's plain mean");
        assert_eq!(summary.foreground_mean.tp, 1.0 / 3.0);
        assert_eq!(summary.mean_dice(), 0.5);
    }

    #[test]
    fn summary_survives_a_round_trip_through_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("validation/summary.json");
        let summary =
            Summary::new(vec![case("a", Metrics::from_counts(2, 1, 0, 8), Metrics::from_counts(0, 0, 0, 11))]);
        summary.save(&path).unwrap();
        let read = Summary::load(&path).unwrap();
        // NaN is not equal to itself, so the debug texts are compared.
        assert_eq!(format!("{read:?}"), format!("{summary:?}"));
        std::fs::write(&path, "[]").unwrap();
        assert!(matches!(Summary::load(&path), Err(EvalError::Invalid { .. })));
    }

    #[test]
    fn quantiles_are_interpolated_linearly() {
        let mut values = [4.0, 1.0, 3.0, 2.0, 10.0];
        assert_eq!(quantile(&mut values, 0.0), 1.0);
        assert_eq!(quantile(&mut values, 0.5), 3.0);
        assert_eq!(quantile(&mut values, 1.0), 10.0);
        assert!((quantile(&mut values, 0.95) - 8.8).abs() < 1e-12);
        assert_eq!(quantile(&mut [7.0], 0.95), 7.0);
        assert!(quantile(&mut [], 0.95).is_nan());
    }
}
