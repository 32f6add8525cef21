//! Postprocessing steps, their file format, and their application to a folder of predictions.

use std::fs;
use std::path::Path;

use ndarray::Array3;
use nnunet_core::{fsio, user_file};
use nnunet_data::dataset::LabelValue;
use nnunet_image::{read_labels, write_labels};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::components::keep_largest;
use crate::{EvalError, label_maps};

/// Name of the only postprocessing function of nnU-Net.
const KEEP_LARGEST: &str = "remove_all_but_largest_component_from_segmentation";

/// An ordered list of postprocessing steps; may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Postprocessing {
    pub steps: Vec<KeepLargest>,
}

/// Sets to background everything outside of the largest connected component of the union of some labels, see
/// [`keep_largest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepLargest {
    /// Labels whose union is considered.
    #[serde(rename = "labels_or_regions", deserialize_with = "flat")]
    pub labels: Vec<i16>,
    /// Label assigned to the removed voxels.
    #[serde(default)]
    pub background_label: i16,
}

impl KeepLargest {
    /// Step for a class, or for the union of the classes of a region.
    pub fn for_class(class: &LabelValue) -> Self {
        Self { labels: class.members().to_vec(), background_label: 0 }
    }
}

/// The part of nnU-Net's `postprocessing.json` that describes the steps.
#[derive(Serialize, Deserialize)]
pub(super) struct StepsFile {
    postprocessing_fns: Vec<String>,
    postprocessing_kwargs: Vec<KeepLargest>,
}

impl From<&Postprocessing> for StepsFile {
    fn from(postprocessing: &Postprocessing) -> Self {
        let steps = postprocessing.steps.clone();
        Self { postprocessing_fns: vec![KEEP_LARGEST.to_owned(); steps.len()], postprocessing_kwargs: steps }
    }
}

impl Postprocessing {
    /// Reads a `postprocessing.json` written by [`super::determine`] or by nnU-Net v2.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or contains an unknown function.
    pub fn load(path: &Path) -> Result<Self, EvalError> {
        let text = user_file::read_text(path).map_err(EvalError::user_file(path))?;
        let StepsFile { postprocessing_fns: names, postprocessing_kwargs: steps } =
            crate::from_json(&text).map_err(|error| EvalError::invalid(path, error))?;
        if let Some(name) = names.iter().find(|name| *name != KEEP_LARGEST) {
            return Err(EvalError::invalid(path, format!("unknown function `{name}`; supported is `{KEEP_LARGEST}`")));
        }
        if names.len() != steps.len() {
            let defect = format!("has {} postprocessing_fns, but {} postprocessing_kwargs", names.len(), steps.len());
            return Err(EvalError::invalid(path, defect));
        }
        Ok(Self { steps })
    }

    /// Applies all steps in order.
    pub fn apply(&self, labels: &mut Array3<i16>) {
        for KeepLargest { labels: members, background_label } in &self.steps {
            keep_largest(labels.view_mut(), members, *background_label);
        }
    }
}

/// Deserializes a label, a list of labels, or a list of labels and regions to their union.
fn flat<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<i16>, D::Error> {
    fn add(value: &Value, labels: &mut Vec<i16>) -> Result<(), String> {
        match value {
            Value::Array(values) => values.iter().try_for_each(|value| add(value, labels)),
            _ => {
                let label = value.as_i64().and_then(|label| i16::try_from(label).ok());
                labels.push(label.ok_or_else(|| format!("labels_or_regions: {value} is not a label"))?);
                Ok(())
            }
        }
    }
    let mut labels = Vec::new();
    add(&Value::deserialize(deserializer)?, &mut labels).map_err(serde::de::Error::custom)?;
    Ok(labels)
}

/// Writes every label map of `input`, postprocessed, to `output` under the same name, and a copy of `dataset.json` if
/// there is one. Returns the number of label maps.
///
/// # Errors
/// Returns an error if a file cannot be read or written, or if both folders are the same.
pub fn apply_to_folder(postprocessing: &Postprocessing, input: &Path, output: &Path) -> Result<usize, EvalError> {
    let maps = label_maps(input)?;
    fs::create_dir_all(output).map_err(EvalError::io(output))?;
    let is_same = fs::canonicalize(input).ok() == fs::canonicalize(output).ok();
    if is_same {
        return Err(EvalError::invalid(output, "is the input folder, which would be overwritten"));
    }
    let paths: Vec<_> = maps.values().collect();
    let written: Vec<_> = paths
        .par_iter()
        .map(|path| {
            let mut labels = read_labels(path)?;
            postprocessing.apply(&mut labels.data);
            let path = output.join(path.file_name().unwrap_or_default());
            write_labels(&path, &labels).map_err(EvalError::from)
        })
        .collect();
    written.into_iter().collect::<Result<(), _>>()?;
    let dataset = input.join("dataset.json");
    if dataset.is_file() {
        let target = output.join("dataset.json");
        fsio::copy(&dataset, &target).map_err(EvalError::io(&target))?;
    }
    Ok(maps.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Postprocessing, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Postprocessing::load(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_a_file_of_nnunet() {
        let text = r#"{"input_folder": {"foreground_mean": {"Dice": NaN}},
            "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation",
                "remove_all_but_largest_component_from_segmentation"],
            "postprocessing_kwargs": [{"labels_or_regions": [[1, 2], 3]}, {"labels_or_regions": 2}]}"#;
        let steps = [vec![1, 2, 3], vec![2]].map(|labels| KeepLargest { labels, background_label: 0 }).to_vec();
        assert_eq!(load(text).unwrap(), Postprocessing { steps });
        assert_eq!(load(r#"{"postprocessing_fns": [], "postprocessing_kwargs": []}"#).unwrap().steps, []);
    }

    #[test]
    fn rejects_unknown_functions_and_labels() {
        for (text, defect) in [
            (r#"{"postprocessing_fns": ["smooth"], "postprocessing_kwargs": [{"labels_or_regions": 1}]}"#, "`smooth`"),
            (r#"{"postprocessing_fns": [], "postprocessing_kwargs": [{"labels_or_regions": 1}]}"#, "has 0"),
            (r#"{"postprocessing_fns": [], "postprocessing_kwargs": [{"labels_or_regions": "a"}]}"#, "not a label"),
            ("[]", "invalid"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(defect), "{text}: {error}");
        }
    }
}
