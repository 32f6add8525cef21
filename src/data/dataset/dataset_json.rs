//! `dataset.json`: nnU-Net v2's schema, and the conversion of other schemas to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::DatasetError;
use super::regions::{Region, order_problem};
use super::slips::find_slip;
use nnunet_core::fsio::check_name_part;
use nnunet_core::user_file;
use nnunet_image::check_writable;

/// Name of the label whose voxels are ignored by loss and evaluation.
const IGNORE: &str = "ignore";

/// `dataset.json` of nnU-Net v2 (`documentation/dataset_format.md`). Unknown keys are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetJson {
    /// Channel index (as text) to channel name; the name selects the normalization.
    pub channel_names: IndexMap<String, String>,
    /// Label name to class index, or to several indices for region-based training.
    pub labels: IndexMap<String, LabelValue>,
    /// Number of training cases.
    #[serde(rename = "numTraining")]
    pub num_training: usize,
    /// File ending of images and labels, with its dot.
    #[serde(deserialize_with = "name_part")]
    pub file_ending: String,
    /// Class index of each region, for region-based training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions_class_order: Option<Vec<i16>>,
    /// All other keys of the file.
    #[serde(flatten)]
    pub other: IndexMap<String, serde_json::Value>,
}

/// Reads text that becomes a part of file names.
fn name_part<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    check_name_part(&text).map_err(|defect| serde::de::Error::custom(format!("file_ending {defect}")))?;
    Ok(text)
}

/// The value of a label: one class index, or the indices of a region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelValue {
    /// One class.
    Class(i16),
    /// A region: the union of classes.
    Region(Vec<i16>),
}

/// A class, or in region-based training a region, that a network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreground<'a> {
    /// Name in dataset.json.
    pub name: &'a str,
    /// Labels of its voxels in the training label maps.
    pub members: &'a [i16],
    /// Label in predicted label maps.
    pub output: i16,
}

impl DatasetJson {
    /// Reads a dataset.json in the schema of nnU-Net v2, or of the Medical Segmentation Decathlon and nnU-Net v1, which
    /// is converted.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is in neither schema.
    pub fn load(path: &Path) -> Result<Self, DatasetError> {
        Ok(Description::load(path)?.json)
    }

    /// Returns the number of input channels of an image.
    pub fn num_channels(&self) -> usize {
        self.channel_names.len()
    }

    /// Returns true if the targets are regions, which may overlap, instead of classes.
    pub fn has_regions(&self) -> bool {
        self.labels.values().any(|value| value.members().len() > 1)
    }

    /// Returns the label of voxels that loss and evaluation ignore.
    pub fn ignore_label(&self) -> Option<i16> {
        match self.labels.get(IGNORE)? {
            LabelValue::Class(label) => Some(*label),
            LabelValue::Region(_) => None,
        }
    }

    /// Returns all labels that may occur in a training label map except the ignore label, ascending.
    pub fn classes(&self) -> Vec<i16> {
        let mut classes: Vec<i16> = self.named_targets().flat_map(|(_, value)| value.members()).copied().collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }

    /// Returns [`DatasetJson::classes`] without the background, also if the targets are regions.
    pub fn foreground_classes(&self) -> Vec<i16> {
        self.classes().into_iter().filter(|&class| class != 0).collect()
    }

    /// Returns the classes by label, or the regions in the order of the file; without background.
    ///
    /// Entry `i` corresponds to output channel `i` of a region-based network, and to channel `i + 1` of a class-based
    /// network, whose channel 0 is the background. If predicted regions overlap, the later one wins.
    pub fn foreground(&self) -> Vec<Foreground<'_>> {
        let named = self.named_targets().filter(|(_, value)| value.members().iter().any(|&label| label != 0));
        let mut foreground: Vec<_> = named
            .map(|(name, value)| Foreground { name, members: value.members(), output: value.members()[0] })
            .collect();
        if self.has_regions() {
            let order = self.regions_class_order.iter().flatten();
            foreground.iter_mut().zip(order).for_each(|(region, &output)| region.output = output);
        } else {
            foreground.sort_by_key(|class| class.output);
        }
        foreground
    }

    /// Returns the member labels of each region in output channel order; `None` if the targets are classes.
    pub fn regions(&self) -> Option<Vec<Vec<i16>>> {
        self.has_regions().then(|| self.foreground().iter().map(|region| region.members.to_vec()).collect())
    }

    /// Returns the number of output channels of a network: one per region, or one per class including the background.
    pub fn num_segmentation_heads(&self) -> usize {
        if self.has_regions() { self.foreground().len() } else { self.classes().len() }
    }

    /// Returns the problems of channels and labels, one line each (the rules of nnU-Net v2's `LabelManager` and
    /// `verify_dataset_integrity`).
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if (0..self.num_channels()).any(|channel| !self.channel_names.contains_key(&channel.to_string())) {
            problems.push("channel_names must be numbered \"0\", \"1\", ... without gaps".to_owned());
        }
        if self.num_channels() == 0 {
            problems.push("channel_names is empty".to_owned());
        }
        if self.labels.get("background") != Some(&LabelValue::Class(0)) {
            problems.push("labels must contain \"background\": 0".to_owned());
        }
        let classes = self.classes();
        if classes.iter().zip(0..).any(|(&class, expected)| class != expected) {
            problems.push(format!("labels must be numbered 0, 1, 2, ... without gaps, got {classes:?}"));
        }
        for (name, _) in self.named_targets().filter(|(_, value)| value.members().is_empty()) {
            problems.push(format!("the label {name} has no class"));
        }
        if self.foreground().is_empty() {
            problems.push("labels contain only the background".to_owned());
        }
        problems.extend(self.ignore_label_problem(&classes));
        match self.region_problem() {
            None => problems.extend(self.order_problem()),
            problem => problems.extend(problem),
        }
        problems.extend(check_writable(&self.file_ending).err().map(|defect| format!("file_ending: {defect}")));
        problems
    }

    /// Describes a `regions_class_order` that cannot work; `None` if it works or the targets are classes.
    pub(super) fn order_problem(&self) -> Option<String> {
        self.regions()?;
        let foreground = self.foreground();
        let regions = foreground.iter().map(|region| Region {
            name: region.name,
            members: region.members.iter().copied().collect(),
            output: region.output,
        });
        order_problem(&regions.collect::<Vec<_>>())
    }

    fn ignore_label_problem(&self, classes: &[i16]) -> Option<String> {
        let highest = classes.last().copied().unwrap_or(0);
        match self.labels.get(IGNORE)? {
            LabelValue::Class(label) if i32::from(*label) == i32::from(highest) + 1 => None,
            _ => Some(format!("the ignore label must be one above the highest label: {}", i32::from(highest) + 1)),
        }
    }

    /// Returns the problem with the regions, if any.
    pub fn region_problem(&self) -> Option<String> {
        let regions = self.regions()?.len();
        match &self.regions_class_order {
            None => Some("labels contain regions, but regions_class_order is missing".to_owned()),
            Some(order) if order.len() != regions => {
                Some(format!("{regions} regions, but regions_class_order has {} entries", order.len()))
            }
            Some(order) => {
                let ignored = self.ignore_label().filter(|label| order.contains(label))?;
                Some(format!("regions_class_order contains {ignored}, the ignore label, which is never predicted"))
            }
        }
    }

    /// Iterates over all labels except the ignore label.
    fn named_targets(&self) -> impl Iterator<Item = (&str, &LabelValue)> {
        self.labels.iter().map(|(name, value)| (name.as_str(), value)).filter(|(name, _)| *name != IGNORE)
    }
}

impl LabelValue {
    /// Returns the member labels.
    pub fn members(&self) -> &[i16] {
        match self {
            Self::Class(label) => std::slice::from_ref(label),
            Self::Region(labels) => labels,
        }
    }
}

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
        let fields = user_file::read_json(path).map_err(DatasetError::user_file(path))?;
        Self::parse(fields).map_err(|defect| DatasetError::invalid(path, defect))
    }

    fn parse(mut fields: Map<String, Value>) -> Result<Self, String> {
        let cases = if fields.contains_key("modality") && !fields.contains_key("channel_names") {
            convert_decathlon(&mut fields)?
        } else {
            if let Some(slip) = find_slip(&fields) {
                return Err(slip);
            }
            fields.get("dataset").map(listed_by_id).transpose()?
        };
        cases
            .iter()
            .flatten()
            .try_for_each(|case| check_name_part(&case.id))
            .map_err(|defect| format!("case {defect}"))?;
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

    fn dataset(labels: &str) -> DatasetJson {
        let fixed = r#""channel_names": {"0": "MR"}, "numTraining": 1, "file_ending": ".nii""#;
        serde_json::from_str(&format!(r#"{{{fixed}, "labels": {labels}}}"#)).unwrap()
    }

    #[test]
    fn each_class_has_a_channel_including_the_background() {
        let json = dataset(r#"{"background": 0, "tumour": [2], "liver": 1, "ignore": 3}"#);
        assert!(!json.has_regions());
        assert_eq!(json.ignore_label(), Some(3));
        assert_eq!((json.classes(), json.num_segmentation_heads()), (vec![0, 1, 2], 3));
        let names: Vec<_> = json.foreground().iter().map(|class| (class.name, class.output)).collect();
        assert_eq!(names, [("liver", 1), ("tumour", 2)]);
        assert_eq!(json.problems(), [""; 0]);
    }

    #[test]
    fn regions_keep_their_order_and_have_no_background_channel() {
        let labels = r#"{"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
            "regions_class_order": [1, 2, 3]"#;
        let json = dataset(labels);
        assert_eq!(json.regions(), Some(vec![vec![1, 2, 3], vec![2, 3], vec![3]]));
        assert_eq!((json.classes(), json.num_segmentation_heads()), (vec![0, 1, 2, 3], 3));
        assert_eq!(json.foreground_classes(), [1, 2, 3]);
        assert_eq!(json.foreground()[1], Foreground { name: "core", members: &[2, 3], output: 2 });
        assert_eq!(json.problems(), [""; 0]);
    }

    #[test]
    fn names_the_defect_of_invalid_labels() {
        for (labels, defect) in [
            (r#"{"organ": 1}"#, "background"),
            (r#"{"background": 0}"#, "only the background"),
            (r#"{"background": 0, "organ": 2}"#, "without gaps"),
            (r#"{"background": 0, "organ": 1, "ignore": 1}"#, "above the highest label: 2"),
            (r#"{"background": 0, "whole": [1, 2], "core": 2}"#, "regions_class_order is missing"),
            (r#"{"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1]"#, "has 1 entries"),
            (r#"{"background": 0, "organ": 1, "nothing": []}"#, "nothing has no class"),
            (r#"{"background": 0, "whole": [1, 2], "ignore": 3}, "regions_class_order": [3]"#, "never predicted"),
        ] {
            let problems = dataset(labels).problems();
            assert!(problems.iter().any(|problem| problem.contains(defect)), "{labels}: {problems:?}");
        }
    }

    fn parse(text: &str) -> Result<Description, String> {
        Description::parse(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn converts_the_decathlon_schema() {
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
