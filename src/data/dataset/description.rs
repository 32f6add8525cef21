//! `dataset.json` in any supported schema, converted to that of nnU-Net v2, with its optional list of files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{DatasetError, DatasetJson};

/// Contents of a dataset.json.
#[derive(Debug)]
pub(super) struct Description {
    /// The dataset in nnU-Net v2's schema.
    pub json: DatasetJson,
    /// Training cases if the file lists them: under `dataset` (nnU-Net v2) or `training` (Medical Segmentation
    /// Decathlon, nnU-Net v1). Otherwise the cases are those found in the folders.
    pub cases: Option<Vec<ListedCase>>,
}

/// A training case with its listed files: absolute, or relative to the dataset folder.
#[derive(Debug, PartialEq)]
pub(super) struct ListedCase {
    pub id: String,
    pub images: Vec<PathBuf>,
    pub label: PathBuf,
}

impl Description {
    pub(super) fn load(path: &Path) -> Result<Self, DatasetError> {
        let text = std::fs::read(path).map_err(DatasetError::io(path))?;
        let fields = serde_json::from_slice(&text).map_err(|error| DatasetError::invalid(path, error))?;
        Self::parse(fields).map_err(|defect| DatasetError::invalid(path, defect))
    }

    fn parse(mut fields: Map<String, Value>) -> Result<Self, String> {
        let cases = if fields.contains_key("modality") && !fields.contains_key("channel_names") {
            convert_decathlon(&mut fields)?
        } else {
            fields.get("dataset").map(listed_by_id).transpose()?
        };
        let json = serde_json::from_value(Value::Object(fields))
            .map_err(|error| format!("{error}; see documentation/dataset_format.md of nnU-Net v2"))?;
        Ok(Self { json, cases })
    }
}

/// Converts the Decathlon schema; drops the lists of test files, which are meaningless outside the dataset folder.
fn convert_decathlon(fields: &mut Map<String, Value>) -> Result<Option<Vec<ListedCase>>, String> {
    fields.retain(|key, _| !["test", "numTest"].contains(&key.as_str()));
    if let Some(modality) = fields.shift_remove("modality") {
        fields.insert("channel_names".to_owned(), modality);
    }
    if let Some(labels) = fields.get_mut("labels") {
        *labels = names_to_numbers(labels)?;
    }
    let Some(training) = fields.shift_remove("training") else { return Ok(None) };
    let pairs: Vec<Pair> = parse(training, "training")?;
    if !fields.contains_key("file_ending") {
        let first = pairs.first().ok_or("training lists no cases")?;
        fields.insert("file_ending".to_owned(), file_ending(&first.image)?.into());
    }
    fields.entry("numTraining").or_insert_with(|| pairs.len().into());
    let listed = |pair: Pair| {
        let name = pair.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ending = file_ending(&pair.image)?;
        let id = name.strip_suffix(&ending).unwrap_or(&name).to_owned();
        Ok(ListedCase { id, images: vec![pair.image], label: pair.label })
    };
    pairs.into_iter().map(listed).collect::<Result<_, String>>().map(Some)
}

/// An entry of `training`.
#[derive(Deserialize)]
struct Pair {
    image: PathBuf,
    label: PathBuf,
}

/// Converts `{"0": "background", "1": "organ"}` to `{"background": 0, "organ": 1}`; leaves the latter form unchanged.
fn names_to_numbers(labels: &Value) -> Result<Value, String> {
    let Ok(names) = BTreeMap::<String, String>::deserialize(labels) else { return Ok(labels.clone()) };
    let mut by_number = BTreeMap::new();
    for (number, name) in names {
        let number: i16 = number.parse().map_err(|_| format!("labels: {number:?} is not a label number"))?;
        by_number.insert(number, if number == 0 { "background".to_owned() } else { name });
    }
    let mut numbers = Map::new();
    for (number, name) in by_number {
        if let Some(other) = numbers.insert(name.clone(), number.into()) {
            return Err(format!("labels: {other} and {number} are both named {name:?}"));
        }
    }
    Ok(Value::Object(numbers))
}

/// An entry of `dataset`.
#[derive(Deserialize)]
struct Files {
    images: Vec<PathBuf>,
    label: PathBuf,
}

fn listed_by_id(dataset: &Value) -> Result<Vec<ListedCase>, String> {
    let files: BTreeMap<String, Files> = parse(dataset.clone(), "dataset")?;
    Ok(files.into_iter().map(|(id, Files { images, label })| ListedCase { id, images, label }).collect())
}

fn parse<T: serde::de::DeserializeOwned>(value: Value, key: &str) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("{key}: {error}"))
}

/// Returns the ending of a file name, with its dot: `.nii.gz`, `.png`.
fn file_ending(path: &Path) -> Result<String, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    let dot = stem.rfind('.').ok_or_else(|| format!("training: {} has no file ending", path.display()))?;
    Ok(name[dot..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Description, String> {
        Description::parse(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn the_decathlon_form_becomes_nnunets() {
        let decathlon = r#"{"name": "A", "tensorImageSize": "4D", "modality": {"0": "FLAIR", "1": "T1w"},
            "labels": {"0": "Background", "10": "b", "2": "a"}, "numTraining": 2, "numTest": 1,
            "training": [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}],
            "test": ["./imagesTs/BRATS_002.nii.gz"]}"#;
        let v2 = r#"{"name": "A", "tensorImageSize": "4D", "channel_names": {"0": "FLAIR", "1": "T1w"},
            "labels": {"background": 0, "a": 2, "b": 10}, "numTraining": 2, "file_ending": ".nii.gz"}"#;
        let Description { json, cases } = parse(decathlon).unwrap();
        assert_eq!(json, parse(v2).unwrap().json);
        assert_eq!(json.labels.keys().collect::<Vec<_>>(), ["background", "a", "b"]);
        let case = ListedCase {
            id: "BRATS_001".into(),
            images: vec!["./imagesTr/BRATS_001.nii.gz".into()],
            label: "./labelsTr/BRATS_001.nii.gz".into(),
        };
        assert_eq!(cases, Some(vec![case]));
    }

    #[test]
    fn defects_name_their_key() {
        let rest = r#""numTraining": 1, "file_ending": ".nii""#;
        for (text, defect) in [
            (format!(r#"{{{rest}, "labels": {{"background": 0}}}}"#), "missing field `channel_names`"),
            (
                format!(r#"{{{rest}, "modality": {{"0": "CT"}}, "labels": {{"x": "y"}}}}"#),
                "\"x\" is not a label number",
            ),
            (format!(r#"{{{rest}, "modality": {{"0": "CT"}}, "labels": {{"1": "y", "2": "y"}}}}"#), "both named \"y\""),
            (r#"{"modality": {}, "training": [{"image": "a", "label": "b"}]}"#.to_owned(), "a has no file ending"),
            (r#"{"modality": {}, "training": [{"image": "a"}]}"#.to_owned(), "training: missing field `label`"),
            (format!(r#"{{{rest}, "channel_names": {{}}, "labels": {{}}, "dataset": []}}"#), "dataset: "),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(defect), "{text}: {error}");
        }
    }
}
