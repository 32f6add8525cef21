//! Conversion between the raw dataset layouts of the Medical Segmentation Decathlon and nnU-Net v2.

use std::fs;
use std::io;
use std::path::{Component, Path};

use ndarray::{Axis, s};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::case::{stems, with_channel};
use super::{CaseFiles, Dataset, DatasetError, DatasetJson, LabelValue, find_images};
use nnunet_core::fsio;
use nnunet_image::{self as image, Volume};

/// Layout of a raw dataset: file naming and description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawLayout {
    /// nnU-Net v2: one file per channel, `CASE_0000`.
    NnUnet,
    /// Medical Segmentation Decathlon: one `.nii.gz` file with all channels.
    Decathlon,
}

/// Endings of self-contained files, which can be copied without decoding.
const SELF_CONTAINED: [&str; 6] = [".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".bmp"];
/// File ending of the Decathlon.
const DECATHLON_ENDING: &str = ".nii.gz";

/// Converts the raw dataset at `source`, in either layout or that of nnU-Net v1, into another layout in the folder
/// `output`; returns the numbers of training and test cases.
///
/// Images and labels, including those of the test cases, are copied byte by byte unless channels must be split or
/// joined. The folder appears only when complete. An existing folder is replaced only if `overwrite` is set and it
/// contains a dataset.json.
///
/// # Errors
/// Returns an error if the dataset cannot be read, the folder cannot be written, or the layout cannot represent the
/// dataset: the Decathlon layout has no regions.
pub fn convert_dataset(
    source: &Path,
    output: &Path,
    layout: RawLayout,
    overwrite: bool,
) -> Result<[usize; 2], DatasetError> {
    check_output(output, overwrite)?;
    let dataset = Dataset::open(source)?;
    let tests = test_cases(&dataset)?;
    let conversion = Conversion { json: &dataset.json, layout };
    let description = conversion.description(&dataset.cases, &tests, source)?;

    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(DatasetError::io(parent))?;
    let folder = tempfile::Builder::new().prefix(".partial-").tempdir_in(parent).map_err(DatasetError::io(parent))?;
    let cases = dataset.cases.iter().map(|case| (case, "Tr")).chain(tests.iter().map(|case| (case, "Ts")));
    let cases: Vec<_> = cases.collect();
    cases.par_iter().try_for_each(|(case, part)| conversion.write_case(case, folder.path(), part))?;
    let path = folder.path().join("dataset.json");
    fsio::write_json(&path, &description).map_err(DatasetError::io(&path))?;
    replace(folder, output)?;
    Ok([dataset.cases.len(), tests.len()])
}

/// Ensures that only a dataset is ever replaced.
fn check_output(output: &Path, overwrite: bool) -> Result<(), DatasetError> {
    match (output.exists(), overwrite) {
        (false, _) => Ok(()),
        (true, false) => Err(DatasetError::invalid(output, "exists already; use --overwrite to replace it")),
        (true, true) if output.join("dataset.json").is_file() => Ok(()),
        (true, true) => Err(DatasetError::invalid(output, "is not a dataset (no dataset.json); not replaced")),
    }
}

/// Moves a finished folder to its final path.
fn replace(folder: tempfile::TempDir, output: &Path) -> Result<(), DatasetError> {
    let failed = DatasetError::io(output);
    set_default_permissions(folder.path()).map_err(&failed)?;
    let old = output.with_file_name(format!(
        ".replaced-{}",
        folder.path().file_name().unwrap_or_default().to_string_lossy().trim_start_matches(".partial-")
    ));
    let replaces = output.exists();
    if replaces {
        fs::rename(output, &old).map_err(&failed)?;
    }
    fs::rename(folder.keep(), output).map_err(&failed)?;
    if replaces {
        fs::remove_dir_all(&old).map_err(DatasetError::io(&old))?;
    }
    Ok(())
}

/// Sets permissions: temporary folders are private to their owner, but datasets should be shared like other folders.
#[cfg(unix)]
fn set_default_permissions(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn set_default_permissions(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Returns the cases of imagesTs, with their labels if labelsTs has them.
fn test_cases(dataset: &Dataset) -> Result<Vec<CaseFiles>, DatasetError> {
    let [images, labels] = ["imagesTs", "labelsTs"].map(|folder| dataset.root.join(folder));
    let ending = &dataset.json.file_ending;
    if !images.is_dir() || stems(&images, ending)?.is_empty() {
        return Ok(Vec::new());
    }
    let mut cases = find_images(&images, ending, dataset.json.num_channels())?;
    for case in &mut cases {
        case.label = Some(labels.join(format!("{}{ending}", case.id))).filter(|path| path.is_file());
    }
    Ok(cases)
}

struct Conversion<'a> {
    /// Description of the source dataset.
    json: &'a DatasetJson,
    layout: RawLayout,
}

impl Conversion<'_> {
    fn ending(&self) -> &str {
        match self.layout {
            RawLayout::NnUnet => &self.json.file_ending,
            RawLayout::Decathlon => DECATHLON_ENDING,
        }
    }

    fn write_case(&self, case: &CaseFiles, folder: &Path, part: &str) -> Result<(), DatasetError> {
        // Case names come from a file and become paths.
        let mut parts = Path::new(&case.id).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(DatasetError::invalid(folder, format_args!("{:?} is not a valid case name", case.id)));
        }
        let (images, labels) = (folder.join(format!("images{part}")), folder.join(format!("labels{part}")));
        fs::create_dir_all(&images).map_err(DatasetError::io(&images))?;
        match self.layout {
            RawLayout::NnUnet => self.split(case, &images)?,
            RawLayout::Decathlon => self.join(case, &images)?,
        }
        let Some(label) = &case.label else { return Ok(()) };
        let target = labels.join(format!("{}{}", case.id, self.ending()));
        match self.is_copy() {
            true => copy(label, &target),
            false => Ok(image::write_labels(&target, &image::read_labels(label)?)?),
        }
    }

    /// Writes one file per channel.
    fn split(&self, case: &CaseFiles, folder: &Path) -> Result<(), DatasetError> {
        let channels = self.json.num_channels();
        let target = |channel| folder.join(with_channel(&case.id, channel) + self.ending());
        if case.images.len() == channels && self.is_copy() {
            return case.images.iter().enumerate().try_for_each(|(channel, image)| copy(image, &target(channel)));
        }
        let Volume { data, geometry } = case.without_label().load(channels)?.image;
        (0..channels).try_for_each(|channel| {
            let data = data.slice(s![channel..channel + 1, .., .., ..]).to_owned();
            Ok(image::write_volume(&target(channel), &Volume { data, geometry: geometry.clone() })?)
        })
    }

    /// Writes one file with all channels.
    fn join(&self, case: &CaseFiles, folder: &Path) -> Result<(), DatasetError> {
        let target = folder.join(format!("{}{}", case.id, self.ending()));
        match case.images.as_slice() {
            [image] if self.is_copy() => copy(image, &target),
            _ => {
                let volume = case.without_label().load(self.json.num_channels())?.image;
                debug_assert_eq!(volume.data.len_of(Axis(0)), self.json.num_channels());
                Ok(image::write_volume(&target, &volume)?)
            }
        }
    }

    /// Returns true if files can be copied unchanged.
    fn is_copy(&self) -> bool {
        self.ending() == self.json.file_ending && SELF_CONTAINED.contains(&self.ending())
    }

    /// Returns the new dataset.json.
    fn description(&self, cases: &[CaseFiles], tests: &[CaseFiles], source: &Path) -> Result<Value, DatasetError> {
        let invalid = |defect: String| DatasetError::invalid(&source.join("dataset.json"), defect);
        let mut json = self.json.clone();
        json.num_training = cases.len();
        // File list of the old layout.
        json.other.shift_remove("dataset");
        if self.layout == RawLayout::NnUnet {
            return serde_json::to_value(&json).map_err(|error| invalid(error.to_string()));
        }
        let mut labels = Vec::new();
        for (name, value) in &json.labels {
            match value {
                LabelValue::Class(label) => labels.push((*label, name.clone())),
                LabelValue::Region(_) => {
                    return Err(invalid(format!("labels: {name} is a region, unsupported by the Decathlon layout")));
                }
            }
        }
        labels.sort();
        let labels: Map<_, _> = labels.into_iter().map(|(label, name)| (label.to_string(), name.into())).collect();
        let path = |folder: &str, case: &CaseFiles| format!("./{folder}/{}{}", case.id, self.ending());
        let pair = |case: &CaseFiles| json!({"image": path("imagesTr", case), "label": path("labelsTr", case)});
        let mut fields: Map<String, Value> = json.other.clone().into_iter().collect();
        fields.insert("tensorImageSize".into(), if json.num_channels() > 1 { "4D" } else { "3D" }.into());
        fields.insert("modality".into(), json!(json.channel_names));
        fields.insert("labels".into(), labels.into());
        fields.insert("numTraining".into(), cases.len().into());
        fields.insert("numTest".into(), tests.len().into());
        fields.insert("training".into(), cases.iter().map(pair).collect());
        fields.insert("test".into(), tests.iter().map(|case| path("imagesTs", case)).collect());
        Ok(fields.into())
    }
}

impl CaseFiles {
    fn without_label(&self) -> Self {
        Self { label: None, ..self.clone() }
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), DatasetError> {
    let mut source = fs::File::open(from).map_err(DatasetError::io(from))?;
    fsio::write_unsynced(to, |file| io::copy(&mut source, file).map(drop)).map_err(DatasetError::io(to))
}
