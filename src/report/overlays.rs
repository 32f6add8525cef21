//! Pictures of the worst held-out cases: prediction and reference.

use std::collections::BTreeMap;

use ndarray::Array3;

use super::Run;
use super::html::{Html, join, picture, tag, text};
use super::tables::{mean_dice, worst_first};
use super::text::score;
use nnunet_data::dataset::{Dataset, DatasetJson, Foreground, LabelValue};
use nnunet_data::work::Source;
use nnunet_eval::{CaseResult, Metrics, Summary, case_name, class_key};
use nnunet_image::read_labels;
use nnunet_viz::inspect::{Subject, comparison, label_colour};

/// Pictures of the `number` cases with the lowest Dice; if images are missing, a note with the reason.
pub fn overlays(run: &Run, summary: &Summary, number: usize) -> Html {
    let cases: Vec<&CaseResult> =
        worst_first(summary).into_iter().filter(|case| mean_dice(case).is_some()).take(number).collect();
    let raw = match raw_dataset(run, summary) {
        Ok(raw) => raw,
        Err(reason) => return note(format!("No pictures: {reason}.")),
    };
    let targets = run.dataset.as_ref().unwrap_or(&raw.json);
    let figures = cases.into_iter().map(|case| {
        let name = case_name(&case.prediction_file);
        figure(run, case, &name, &raw, targets)
            .unwrap_or_else(|reason| note(format!("No picture of {name}: {reason}.")))
    });
    let explained = "Slices through the largest reference area; patient right is at the left.";
    join([note(explained.to_owned())].into_iter().chain(figures))
}

/// Raw dataset of the work folder, else the one that contains the reference label maps of the summary.
fn raw_dataset(run: &Run, summary: &Summary) -> Result<Dataset, String> {
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

fn figure(run: &Run, case: &CaseResult, name: &str, raw: &Dataset, targets: &DatasetJson) -> Result<Html, String> {
    let mut subject = Subject::of_dataset(raw, name).map_err(|error| error.to_string())?;
    // Only the first channel is displayed.
    subject.images.truncate(1);
    let (_, mut view) = subject.inspect().map_err(|error| error.to_string())?;
    let file = case.prediction_file.file_name().ok_or("the summary does not name the prediction file")?;
    let prediction = read_labels(&run.dir.validation().join(file)).map_err(|error| error.to_string())?.data;
    // Regions: show both as predicted, where a voxel has the label of the last region that contains it.
    let truth = view.labels.take().unwrap_or(Array3::zeros(prediction.raw_dim()));
    let [truth, prediction] = [truth, prediction].map(|labels| as_predicted(labels, targets));
    view.labels = Some(truth);
    let png = comparison(&view, &prediction)?;

    let voxel_ml = view.geometry.spacing.iter().product::<f64>() / 1000.0;
    let entry = |class: &Foreground| {
        let [red, green, blue] = label_colour(class.output);
        let style = format!("--c:rgb({red},{green},{blue})");
        let numbers = metrics_of(case, class.members).map_or(String::new(), |metrics| {
            let [truth, predicted] = [metrics.n_ref, metrics.n_pred].map(|voxels| voxels as f64 * voxel_ml);
            format!(": Dice {}, reference {truth:.1} ml, predicted {predicted:.1} ml", score(Some(metrics.dice)))
        });
        tag("li", &[("style", &style)], [tag("b", &[], [text(class.name)]), text(numbers)])
    };
    let legend = tag("ul", &[("class", "legend")], targets.foreground().iter().map(entry));
    let dice = format!("mean Dice {}", score(mean_dice(case)));
    let heading = tag("h3", &[], [text(name), text(", "), text(&dice)]);
    let description = format!("{name}: reference labels above predicted labels, in slices of the image; {dice}");
    Ok(tag("figure", &[("class", "case")], [tag("figcaption", &[], [heading, legend]), picture(&png, &description)]))
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

fn note(line: String) -> Html {
    tag("p", &[("class", "note")], [text(line)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn true_labels_of_regions_become_those_of_predictions() {
        let json = r#"{"channel_names": {"0": "MR"}, "numTraining": 1, "file_ending": ".nii", "regions_class_order": [2, 1, 3],
            "labels": {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": 3, "ignore": 4}}"#;
        let json: DatasetJson = serde_json::from_str(json).unwrap();
        let labels = Array3::from_shape_vec((1, 1, 5), vec![0, 1, 2, 3, 4]).unwrap();
        assert_eq!(as_predicted(labels, &json).into_raw_vec_and_offset().0, [0, 1, 2, 3, 0]);
    }
}
