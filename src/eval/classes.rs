//! The classes or regions to evaluate, and the ignore label.

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use nnunet_core::user_file;
use nnunet_data::dataset::{DatasetJson, LabelValue, label_problem};

use super::EvalError;

/// Label name that nnU-Net reserves in `dataset.json` for ignored voxels.
const IGNORE: &str = "ignore";

/// Foreground classes or regions, and the label to ignore.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Classes {
    /// Classes or regions, each with its own metrics, in this order.
    pub foreground: Vec<LabelValue>,
    /// Voxels with this reference label are excluded.
    pub ignore_label: Option<i16>,
}

impl Classes {
    /// Classes of a dataset, by nnU-Net's rules (`LabelManager`): regions in the order of the file if any label is a
    /// region of several classes, else classes in ascending order; without background.
    pub fn from_dataset(dataset: &DatasetJson) -> Self {
        Self::from_declared(dataset.labels.iter().map(|(name, value)| (name.as_str(), value.clone())))
    }

    /// Reads the classes that a `dataset.json` declares, in nnU-Net's form (name to class) or that of the Medical
    /// Segmentation Decathlon (class to name).
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or has no valid `labels`.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let json: Value = user_file::read_json(path).map_err(EvalError::user_file(path))?;
        let is_decathlon = |labels: &Value| IndexMap::<String, String>::deserialize(labels).is_ok();
        let slip = json.get("labels").filter(|labels| !is_decathlon(labels)).and_then(label_problem);
        if let Some(slip) = slip {
            return Err(EvalError::invalid(path, slip));
        }
        let file = LabelsOnly::deserialize(json).map_err(|error| EvalError::invalid(path, error))?;
        let labels = file.labels.iter().map(|(key, value)| match value {
            Declared::Value(value) => Ok((key.as_str(), value.clone())),
            Declared::Name(name) => match key.parse() {
                Ok(class) => Ok((name.as_str(), LabelValue::Class(class))),
                Err(_) => Err(EvalError::invalid(path, format!("label `{key}` has no class number"))),
            },
        });
        Ok(Self::from_declared(labels.collect::<Result<Vec<_>, _>>()?))
    }

    /// All labels except the background, for label maps without a `dataset.json`.
    pub fn from_labels(labels: &BTreeSet<i16>) -> Self {
        let foreground = labels.iter().filter(|&&label| label != 0).map(|&label| LabelValue::Class(label)).collect();
        Self { foreground, ignore_label: None }
    }

    fn from_declared<'a>(labels: impl IntoIterator<Item = (&'a str, LabelValue)>) -> Self {
        let (ignore, mut foreground): (Vec<_>, Vec<_>) = labels
            .into_iter()
            .filter(|(_, value)| value.members().iter().any(|&class| class != 0))
            .partition(|(name, _)| *name == IGNORE);
        let ignore_label = ignore.first().and_then(|(_, value)| value.members().first().copied());
        let has_regions = foreground.iter().any(|(_, value)| value.members().len() > 1);
        if !has_regions {
            let classes: BTreeSet<i16> = foreground.iter().flat_map(|(_, value)| value.members()).copied().collect();
            return Self { ignore_label, ..Self::from_labels(&classes) };
        }
        Self { foreground: foreground.drain(..).map(|(_, value)| value).collect(), ignore_label }
    }
}

/// Key of a class or region in `summary.json`: an integer or a tuple of integers as Python prints it.
pub fn class_key(class: &LabelValue) -> String {
    match class {
        LabelValue::Class(class) => class.to_string(),
        LabelValue::Region(labels) => match labels.as_slice() {
            [single] => format!("({single},)"),
            labels => format!("({})", labels.iter().map(i16::to_string).collect::<Vec<_>>().join(", ")),
        },
    }
}

/// The part of `dataset.json` that an evaluation needs.
#[derive(Deserialize)]
struct LabelsOnly {
    labels: IndexMap<String, Declared>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Declared {
    Value(LabelValue),
    Name(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Classes, EvalError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        Classes::read(file.path())
    }

    #[test]
    fn sorts_classes_and_excludes_background_and_ignore_label() {
        let classes = read(r#"{"labels": {"b": 2, "background": 0, "a": [1], "ignore": 3}}"#).unwrap();
        assert_eq!(classes.foreground, [LabelValue::Class(1), LabelValue::Class(2)]);
        assert_eq!(classes.ignore_label, Some(3));
    }

    #[test]
    fn regions_keep_the_order_of_the_file() {
        let classes = read(r#"{"labels": {"background": 0, "whole": [1, 2, 3], "core": [3, 2], "edge": 3}}"#).unwrap();
        let keys: Vec<_> = classes.foreground.iter().map(class_key).collect();
        assert_eq!(keys, ["(1, 2, 3)", "(3, 2)", "3"]);
        assert_eq!(class_key(&LabelValue::Region(vec![4])), "(4,)");
    }

    #[test]
    fn reads_labels_of_the_decathlon() {
        let classes = read(r#"{"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}"#).unwrap();
        assert_eq!(classes.foreground, [LabelValue::Class(1), LabelValue::Class(2)]);
        let error = read(r#"{"labels": {"one": "Anterior"}}"#).unwrap_err().to_string();
        assert!(error.contains("label `one`"), "{error}");
    }
}
