//! Held-out cases: Dice by class and by case, and pictures of the worst cases with prediction and reference.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};
use ndarray::Array3;

use super::RunFiles;
use super::elements::{cell, dice_bar, note, scrolling, table};
use super::format::{count, number, score};
use nnunet_data::dataset::{Dataset, DatasetJson, Foreground, LabelValue};
use nnunet_data::work::Source;
use nnunet_eval::{CaseResult, Metrics, Summary, case_name, class_key};
use nnunet_image::read_labels;
use nnunet_viz::inspect::{InspectCase, comparison, label_color};

/// Tables of the classes and of the cases, worst first.
pub fn tables(run: &RunFiles, summary: &Summary) -> Markup {
    let voxel_counts = format!("Voxel counts are means over {}.", count(summary.metric_per_case.len(), "case"));
    html! {
        h3 { "Classes" }
        (scrolling("Classes", class_table(run, summary)))
        (note(&voxel_counts))
        h3 { "Cases, worst first" }
        (scrolling("Dice of each case", case_table(run, summary)))
    }
}

/// Cases in ascending order of their mean Dice; cases without any class last.
fn worst_first(summary: &Summary) -> Vec<&CaseResult> {
    let mut cases: Vec<&CaseResult> = summary.metric_per_case.iter().collect();
    let rank = |case: &CaseResult| mean_dice(case).unwrap_or(f64::INFINITY);
    cases.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
    cases
}

/// Mean Dice over the classes in the reference or the prediction of the case.
fn mean_dice(case: &CaseResult) -> Option<f64> {
    let defined: Vec<f64> = case.metrics.values().map(|metrics| metrics.dice).filter(|dice| !dice.is_nan()).collect();
    (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
}

fn class_table(run: &RunFiles, summary: &Summary) -> Markup {
    let further: Vec<&str> =
        summary.foreground_mean.scores().map(|(name, _)| name).filter(|name| *name != "Dice").collect();
    let heads = ["class", "mean Dice", "lowest", "median", "cases"].into_iter().chain(further.iter().copied());
    let heads: Vec<&str> = heads.chain(["reference voxels", "predicted", "FN", "FP"]).collect();
    let row = |(key, metrics): (&String, &Metrics<f64>)| {
        let dice = summary.metric_per_case.iter().filter_map(|case| Some(case.metrics.get(key)?.dice));
        let mut dice: Vec<f64> = dice.filter(|dice| !dice.is_nan()).collect();
        dice.sort_by(f64::total_cmp);
        let median = (!dice.is_empty()).then(|| (dice[(dice.len() - 1) / 2] + dice[dice.len() / 2]) / 2.0);
        let further =
            further.iter().map(|name| score(metrics.scores().find(|(other, _)| other == name).map(|(_, value)| value)));
        let counts = [metrics.n_ref, metrics.n_pred, metrics.fn_, metrics.fp].map(number);
        let cells = [score(dice.first().copied()), score(median), dice.len().to_string()]
            .into_iter()
            .chain(further)
            .chain(counts);
        [cell(run.class_name(key)), dice_bar(Some(metrics.dice))].into_iter().chain(cells.map(cell)).collect()
    };
    table(&heads, summary.mean.iter().map(row))
}

fn case_table(run: &RunFiles, summary: &Summary) -> Markup {
    let keys: Vec<&String> = summary.mean.keys().collect();
    let names: Vec<String> = keys.iter().map(|key| run.class_name(key)).collect();
    let heads: Vec<&str> = ["case", "mean Dice"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let row = |case: &CaseResult| {
        let dice = keys.iter().map(|key| dice_bar(case.metrics.get(*key).map(|metrics| metrics.dice)));
        let name = cell(case_name(&case.prediction_file));
        [name, dice_bar(mean_dice(case))].into_iter().chain(dice).collect()
    };
    table(&heads, worst_first(summary).into_iter().map(row))
}

/// Pictures of the `number` cases with the lowest Dice; if images are missing, a note with the reason.
pub fn pictures(run: &RunFiles, summary: &Summary, number: usize) -> Markup {
    let cases = worst_first(summary).into_iter().filter(|case| mean_dice(case).is_some()).take(number);
    let raw = match raw_dataset(run, summary) {
        Ok(raw) => raw,
        Err(reason) => return note(&format!("No pictures: {reason}.")),
    };
    let targets = run.dataset.as_ref().unwrap_or(&raw.json);
    let figures = cases.map(|case| {
        let name = case_name(&case.prediction_file);
        figure(run, case, &name, &raw, targets)
            .unwrap_or_else(|reason| note(&format!("No picture of {name}: {reason}.")))
    });
    html! {
        (note("Slices through the largest reference area; patient right is at the left."))
        @for figure in figures { (figure) }
    }
}

/// Raw dataset of the work folder, else the one that contains the reference label maps of the summary.
fn raw_dataset(run: &RunFiles, summary: &Summary) -> Result<Dataset, String> {
    let of_work = run.work.as_ref().map(|work| Source::load(work).map(|source| source.dataset));
    let root = match of_work {
        Some(source) => source.map_err(|error| error.to_string())?,
        None => {
            let truth = summary.metric_per_case.first().map(|case| case.reference_file.as_path());
            let root =
                truth.and_then(|truth| truth.parent()?.parent()).filter(|root| root.join("dataset.json").is_file());
            root.ok_or("the run is not in a work folder; pass it with -w WORK")?.to_owned()
        }
    };
    Dataset::open(&root).map_err(|error| format!("the raw dataset cannot be read: {error}"))
}

fn figure(
    run: &RunFiles,
    case: &CaseResult,
    name: &str,
    raw: &Dataset,
    targets: &DatasetJson,
) -> Result<Markup, String> {
    let mut files = InspectCase::from_dataset(raw, name).map_err(|error| error.to_string())?;
    // Only the first channel is displayed.
    files.images.truncate(1);
    let (_, mut view) = files.inspect().map_err(|error| error.to_string())?;
    let file = case.prediction_file.file_name().ok_or("the summary does not name the prediction file")?;
    let prediction = read_labels(&run.dir.validation().join(file)).map_err(|error| error.to_string())?.data;
    // Regions: show both as predicted, where a voxel has the label of the last region that contains it.
    let reference = view.labels.take().unwrap_or(Array3::zeros(prediction.raw_dim()));
    let [reference, prediction] = [reference, prediction].map(|labels| as_predicted(labels, targets));
    view.labels = Some(reference);
    let png = comparison(&view, &prediction).map_err(|error| error.to_string())?;

    let voxel_ml = view.geometry.spacing.iter().product::<f64>() / 1000.0;
    let volumes = |class: &Foreground| {
        metrics_of(case, class.members).map_or(String::new(), |metrics| {
            let [reference, predicted] = [metrics.n_ref, metrics.n_pred].map(|voxels| voxels as f64 * voxel_ml);
            format!(": Dice {}, reference {reference:.1} ml, predicted {predicted:.1} ml", score(Some(metrics.dice)))
        })
    };
    let color = |class: &Foreground| {
        let [red, green, blue] = label_color(class.output);
        format!("--c:rgb({red},{green},{blue})")
    };
    let dice = format!("mean Dice {}", score(mean_dice(case)));
    let description = format!("{name}: reference labels above predicted labels, in slices of the image; {dice}");
    Ok(html! {
        figure.case {
            figcaption {
                h3 { (name) ", " (dice) }
                ul.legend {
                    @for class in &targets.foreground() {
                        li style=(color(class)) { b { (class.name) } (volumes(class)) }
                    }
                }
            }
            (scrolling("Picture", html! { img src={ "data:image/png;base64," (STANDARD.encode(png)) } alt=(description); }))
        }
    })
}

/// Metrics of a class, or of a region with these members, by its key in `summary.json`.
fn metrics_of<'a>(case: &'a CaseResult, members: &[i16]) -> Option<&'a Metrics<u64>> {
    let class = members.first().filter(|_| members.len() == 1).map(|label| class_key(&LabelValue::Class(*label)));
    let region = class_key(&LabelValue::Region(members.to_vec()));
    case.metrics.get(&region).or_else(|| case.metrics.get(&class?))
}

/// Maps labels to the labels of predictions.
fn as_predicted(labels: Array3<i16>, targets: &DatasetJson) -> Array3<i16> {
    let targets = targets.foreground();
    let outputs: BTreeMap<i16, i16> =
        targets.iter().flat_map(|target| target.members.iter().map(|member| (*member, target.output))).collect();
    labels.mapv_into(|label| outputs.get(&label).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_labels_of_regions_become_those_of_predictions() {
        let json = r#"{"channel_names": {"0": "MR"}, "numTraining": 1, "file_ending": ".nii", "regions_class_order": [2, 1, 3],
            "labels": {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": 3, "ignore": 4}}"#;
        let json: DatasetJson = serde_json::from_str(json).unwrap();
        let labels = Array3::from_shape_vec((1, 1, 5), vec![0, 1, 2, 3, 4]).unwrap();
        assert_eq!(as_predicted(labels, &json).into_raw_vec_and_offset().0, [0, 1, 2, 3, 0]);
    }
}
