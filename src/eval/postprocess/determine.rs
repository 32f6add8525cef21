//! Determines which postprocessing steps improve the Dice.

use std::fs;
use std::path::Path;

use indexmap::IndexMap;
use rayon::prelude::*;
use serde::Serialize;

use super::steps::StepsFile;
use super::{KeepLargest, Postprocessing, apply_to_folder};
use crate::{
    CaseResult, Classes, Confusion, EvalError, Measures, Metrics, Pair, Summary, class_key, evaluate_files,
    json_to_file, label_maps, pair_folders, read_pair,
};
use nnunet_data::dataset::{DatasetJson, LabelValue};

/// Options of [`determine`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DetermineOptions {
    /// Delete the postprocessed label maps afterwards.
    pub discard_postprocessed: bool,
}

/// Result of [`determine`].
#[derive(Clone, Debug)]
pub struct Determined {
    /// The selected postprocessing.
    pub postprocessing: Postprocessing,
    /// All steps that were tried.
    pub trials: Vec<Trial>,
    /// Metrics of the predictions before postprocessing.
    pub before: Summary,
    /// Metrics of the postprocessed predictions.
    pub after: Summary,
}

/// A postprocessing step that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// `all foreground`, or the key of the class or region in `summary.json`.
    pub name: String,
    /// Dice without the step: mean over the classes, or of the class.
    pub before: f64,
    /// Dice with the step.
    pub after: f64,
    /// Whether the step is part of the selected postprocessing.
    pub is_selected: bool,
}

/// Contents of `postprocessing.json`.
#[derive(Serialize)]
struct File<'a> {
    input_folder: Means<'a>,
    postprocessed: Means<'a>,
    #[serde(flatten)]
    steps: StepsFile,
}

#[derive(Serialize)]
struct Means<'a> {
    foreground_mean: &'a Metrics<f64>,
    mean: &'a IndexMap<String, Metrics<f64>>,
}

/// Selects the postprocessing steps that improve the Dice of the predictions in `folder` against the references in
/// `pairs`. Writes `postprocessing.json`, `summary.json` and the label maps in `postprocessed/` to the folder.
///
/// nnU-Net's rules: keeping only the largest component of all foreground together is selected if it raises the mean
/// Dice and lowers that of no class. If there are several classes or regions, the same is then tried for each, in the
/// order of the dataset and on top of the steps selected so far, and selected if it raises the Dice of that class.
///
/// Classes are disjoint, so a step for one class does not change another, and all are tried in one pass over the files.
/// Regions overlap and take one pass each.
///
/// # Errors
/// Returns an error if a file cannot be read or written, or a prediction does not match its reference.
pub fn determine(
    folder: &Path,
    pairs: &[Pair],
    dataset: &DatasetJson,
    options: DetermineOptions,
) -> Result<Determined, EvalError> {
    let classes = Classes::from_dataset(dataset);
    let before = evaluate_files(pairs, &classes, &Measures::default())?;
    let mut postprocessing = Postprocessing::default();
    let mut trials = Vec::new();

    let foreground: Vec<i16> = dataset.classes().into_iter().filter(|label| *label != 0).collect();
    let step = KeepLargest { labels: foreground, background_label: 0 };
    let after = evaluate_with(pairs, &Postprocessing { steps: vec![step.clone()] }, &classes)?;
    let is_selected = improves(&before, &after);
    trials.push(Trial {
        name: "all foreground".to_owned(),
        before: before.foreground_mean.dice,
        after: after.foreground_mean.dice,
        is_selected,
    });
    let mut current = if is_selected { after } else { before.clone() };
    postprocessing.steps.extend(is_selected.then_some(step));

    if classes.foreground.len() > 1 {
        let groups: Vec<&[LabelValue]> = match dataset.has_regions() {
            true => classes.foreground.chunks(1).collect(),
            false => vec![&classes.foreground],
        };
        for group in groups {
            let dice = dice_after_each(pairs, &postprocessing, group, &classes)?;
            for (class, after) in group.iter().zip(dice) {
                let name = class_key(class);
                let before = current.mean.get(&name).map_or(f64::NAN, |metrics| metrics.dice);
                let is_selected = after > before;
                trials.push(Trial { name, before, after, is_selected });
                postprocessing.steps.extend(is_selected.then(|| KeepLargest::for_class(class)));
            }
            if dataset.has_regions() && trials.last().is_some_and(|trial| trial.is_selected) {
                current = evaluate_with(pairs, &postprocessing, &classes)?;
            }
        }
    }

    let after = write(folder, pairs, &before, &postprocessing, &classes)?;
    if options.discard_postprocessed {
        let path = folder.join("postprocessed");
        fs::remove_dir_all(&path).map_err(EvalError::io(&path))?;
    }
    Ok(Determined { postprocessing, trials, before, after })
}

/// Same as [`determine`], with the references in a folder of label maps with the same names. References without a
/// prediction are ignored with a warning. `dataset_json` defaults to the file in the prediction folder, else in or
/// beside the reference folder.
///
/// # Errors
/// Returns an error in the cases of [`determine`], and if there is no `dataset.json` or a prediction has no reference.
pub fn determine_folder(
    folder: &Path,
    truth: &Path,
    dataset_json: Option<&Path>,
    options: DetermineOptions,
) -> Result<Determined, EvalError> {
    let pairs = pair_folders(folder, truth, true)?;
    let missing = label_maps(truth)?.len() - pairs.len();
    if missing > 0 {
        tracing::warn!("{}: {missing} cases have no prediction; postprocessing should use all", folder.display());
    }
    let places = [folder.join("dataset.json"), truth.join("dataset.json"), truth.join("../dataset.json")];
    let found = dataset_json.map(Path::to_owned).or_else(|| places.into_iter().find(|path| path.is_file()));
    let path = found.ok_or_else(|| EvalError::invalid(folder, "has no dataset.json; pass one with --dataset-json"))?;
    let dataset = DatasetJson::load(&path).map_err(|error| EvalError::invalid(&path, error))?;
    determine(folder, &pairs, &dataset, options)
}

impl Determined {
    /// One line per trial, and the mean Dice before and after.
    pub fn table(&self) -> String {
        let name = |trial: &Trial| format!("largest component of {}", trial.name);
        let width = self.trials.iter().map(|trial| name(trial).chars().count()).max().unwrap_or(0);
        let line = |trial: &Trial| {
            let verdict = if trial.is_selected { "kept" } else { "no" };
            format!("{:<width$}  Dice {:.4} -> {:.4}  {verdict}\n", name(trial), trial.before, trial.after)
        };
        let lines: String = self.trials.iter().map(line).collect();
        format!("{lines}mean Dice {:.4} -> {:.4}\n", self.before.mean_dice(), self.after.mean_dice())
    }
}

/// nnU-Net's criterion for all foreground; comparisons with NaN are false.
fn improves(before: &Summary, after: &Summary) -> bool {
    let is_worse = |(class, after): (&String, &Metrics<f64>)| {
        before.mean.get(class).is_some_and(|before| after.dice < before.dice)
    };
    after.foreground_mean.dice > before.foreground_mean.dice && !after.mean.iter().any(is_worse)
}

/// Evaluates postprocessed predictions in memory.
fn evaluate_with(pairs: &[Pair], postprocessing: &Postprocessing, classes: &Classes) -> Result<Summary, EvalError> {
    let case = |pair: &Pair| {
        let [mut prediction, reference] = read_pair(pair)?;
        postprocessing.apply(&mut prediction.data);
        let counts = Confusion::new(&reference.data, &prediction.data);
        let metrics = |class: &LabelValue| (class_key(class), counts.metrics(class, classes.ignore_label));
        Ok(CaseResult {
            metrics: classes.foreground.iter().map(metrics).collect(),
            prediction_file: pair.prediction.clone(),
            reference_file: pair.reference.clone(),
        })
    };
    Ok(Summary::new(in_parallel(pairs, case)?))
}

/// Mean Dice of each class of `group` after `postprocessing` followed by the same step for this class.
fn dice_after_each(
    pairs: &[Pair],
    postprocessing: &Postprocessing,
    group: &[LabelValue],
    classes: &Classes,
) -> Result<Vec<f64>, EvalError> {
    let case = |pair: &Pair| {
        let [mut prediction, reference] = read_pair(pair)?;
        postprocessing.apply(&mut prediction.data);
        // Steps of one group do not interfere: classes are disjoint, and regions come in groups of one.
        Postprocessing { steps: group.iter().map(KeepLargest::for_class).collect() }.apply(&mut prediction.data);
        let counts = Confusion::new(&reference.data, &prediction.data);
        let metrics = group.iter().map(|class| (class_key(class), counts.metrics(class, classes.ignore_label)));
        Ok(CaseResult {
            metrics: metrics.collect(),
            prediction_file: pair.prediction.clone(),
            reference_file: pair.reference.clone(),
        })
    };
    let summary = Summary::new(in_parallel(pairs, case)?);
    Ok(group.iter().map(|class| summary.mean.get(&class_key(class)).map_or(f64::NAN, |mean| mean.dice)).collect())
}

/// Runs `run` on all pairs in parallel; returns all results, or the first error in input order.
fn in_parallel<T: Send>(
    pairs: &[Pair],
    run: impl Fn(&Pair) -> Result<T, EvalError> + Send + Sync,
) -> Result<Vec<T>, EvalError> {
    let results: Vec<_> = pairs.par_iter().map(run).collect();
    results.into_iter().collect()
}

/// Writes the results to the prediction folder; returns the metrics of the postprocessed predictions.
fn write(
    folder: &Path,
    pairs: &[Pair],
    before: &Summary,
    postprocessing: &Postprocessing,
    classes: &Classes,
) -> Result<Summary, EvalError> {
    before.save(&folder.join("summary.json"))?;
    let output = folder.join("postprocessed");
    if output.exists() {
        fs::remove_dir_all(&output).map_err(EvalError::io(&output))?;
    }
    apply_to_folder(postprocessing, folder, &output)?;
    let postprocessed = |pair: &Pair| Pair {
        prediction: output.join(pair.prediction.file_name().unwrap_or_default()),
        reference: pair.reference.clone(),
    };
    let pairs: Vec<Pair> = pairs.iter().map(postprocessed).collect();
    let after = evaluate_files(&pairs, classes, &Measures::default())?;
    after.save(&output.join("summary.json"))?;
    fn means(summary: &Summary) -> Means<'_> {
        Means { foreground_mean: &summary.foreground_mean, mean: &summary.mean }
    }
    let file = File { input_folder: means(before), postprocessed: means(&after), steps: postprocessing.into() };
    json_to_file(&folder.join("postprocessing.json"), &file)?;
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(dice: &[f64]) -> Summary {
        let metrics = dice.iter().enumerate().map(|(class, dice)| {
            (class.to_string() + "1", Metrics { dice: *dice, ..Metrics::from_counts(1, 1, 1, 1) })
        });
        let metrics: IndexMap<_, _> = metrics.collect();
        Summary::new(vec![CaseResult { metrics, prediction_file: "p".into(), reference_file: "r".into() }])
    }

    #[test]
    fn all_foreground_must_help_on_average_and_harm_no_class() {
        for (before, after, expected) in [
            ([0.5, 0.5], [0.6, 0.5], true),
            ([0.5, 0.5], [0.9, 0.49], false),
            ([0.5, 0.5], [0.5, 0.5], false),
            ([0.5, f64::NAN], [0.6, f64::NAN], false),
        ] {
            assert_eq!(improves(&summary(&before), &summary(&after)), expected, "{before:?} {after:?}");
        }
    }
}
