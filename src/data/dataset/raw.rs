//! A raw dataset: a folder with dataset.json, images and label maps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::case::{folder_name, group_by_case, stems, with_channel};
use super::dataset_json::{Description, ListedCase};
use super::{CaseFiles, DatasetError, DatasetJson};
use nnunet_image::{check_writable, holds_dicom, image_ending};

/// A raw dataset in the layout of nnU-Net v2 or the Medical Segmentation Decathlon.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Path of the dataset folder.
    pub root: PathBuf,
    /// Name of the folder, such as `Dataset004_Hippocampus`.
    pub name: String,
    /// Contents of dataset.json, in nnU-Net v2's schema for either layout.
    pub json: DatasetJson,
    /// Training cases, sorted by [`CaseFiles::id`].
    pub cases: Vec<CaseFiles>,
}

impl Dataset {
    /// Reads dataset.json and finds the training cases, without opening their images.
    ///
    /// The cases are those listed in dataset.json: under `dataset` (nnU-Net v2) or `training` (Decathlon). If it lists
    /// none, they are found in imagesTr and labelsTr by nnU-Net's naming ([`super::find_images`]); a case with only an
    /// image or only a label map is included, and [`super::validate`] reports it.
    ///
    /// # Errors
    /// Returns an error if dataset.json or a folder cannot be read, or there are no cases.
    pub fn open(root: &Path) -> Result<Self, DatasetError> {
        let description_path = root.join("dataset.json");
        check_root(root, &description_path)?;
        let Description { json, cases } = Description::load(&description_path)?;
        if let (None, Err(defect)) = (image_ending(&json.file_ending), check_writable(&json.file_ending)) {
            return Err(DatasetError::invalid(&description_path, format_args!("file_ending: {defect}")));
        }
        let mut cases = match cases {
            Some(listed) => listed.into_iter().map(|case| resolve(root, &json, case)).collect(),
            None => cases_in_folders(root, &json)?,
        };
        cases.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(pair) = cases.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(DatasetError::invalid(&description_path, format_args!("two cases named {}", pair[0].id)));
        }
        if cases.is_empty() {
            return Err(DatasetError::invalid(root, "contains no training cases"));
        }
        Ok(Self { root: root.to_owned(), name: folder_name(root)?, json, cases })
    }
}

/// Makes the listed paths absolute, and finds files that nnU-Net v1 lists without their channel number.
fn resolve(root: &Path, json: &DatasetJson, case: ListedCase) -> CaseFiles {
    // Strip `./`, as paths like `./imagesTr/x` look odd in messages.
    let absolute = |path: &Path| root.join(path.strip_prefix(".").unwrap_or(path));
    let mut images: Vec<PathBuf> = case.images.iter().map(|path| absolute(path)).collect();
    if let [image] = images.as_slice()
        && !image.exists()
    {
        let channel = |index| image.with_file_name(with_channel(&case.id, index) + &json.file_ending);
        if channel(0).exists() {
            images = (0..json.num_channels()).map(channel).collect();
        }
    }
    CaseFiles { images, label: Some(absolute(&case.label)), id: case.id }
}

/// Checks that the folder is a dataset, and names the way on if it is not.
fn check_root(root: &Path, description: &Path) -> Result<(), DatasetError> {
    let name = root.to_string_lossy();
    if !root.exists() && name.bytes().all(|digit| digit.is_ascii_digit()) && !name.is_empty() {
        return Err(DatasetError::invalid(
            root,
            "no such folder; give the path of the dataset's folder, not nnU-Net's number of the dataset",
        ));
    }
    if !root.is_dir() || description.exists() {
        return Ok(());
    }
    if holds_dicom(root) {
        return Err(DatasetError::invalid(
            root,
            "holds DICOM files and no dataset.json; convert each series with `nnunet-dist convert SERIES_FOLDER \
             imagesTr/CASE_0000.nii.gz`",
        ));
    }
    let defect = format!(
        "No such file or directory; write one with `nnunet-dist plan -d {} --init --channels CT --labels liver,tumour`",
        root.display()
    );
    Err(DatasetError::invalid(description, defect))
}

/// Names the reason if label maps have other names than the images: `CASE.seg.nrrd` as 3D Slicer saves segmentations, a
/// channel number, or anything else.
fn check_label_names(
    labels: &Path,
    ending: &str,
    images: &BTreeMap<String, Vec<PathBuf>>,
    label_stems: &[String],
) -> Result<(), DatasetError> {
    if label_stems.is_empty() || label_stems.iter().any(|stem| images.contains_key(stem)) {
        return Ok(());
    }
    let Some(case) = images.keys().next() else { return Ok(()) };
    let stem = label_stems.iter().find(|stem| stem.starts_with(case.as_str())).unwrap_or(&label_stems[0]);
    let hint = match stem.strip_suffix(".seg") {
        Some(_) => {
            " (3D Slicer's segmentations are no label maps: save them with `Export to files` or as a labelmap volume)"
        }
        None => "",
    };
    let defect = format!(
        "no label map has the name of an image: the label map of {case} must be {case}{ending}, but there is \
         {stem}{ending}{hint}"
    );
    Err(DatasetError::invalid(labels, defect))
}

fn cases_in_folders(root: &Path, json: &DatasetJson) -> Result<Vec<CaseFiles>, DatasetError> {
    let (images, labels) = (root.join("imagesTr"), root.join("labelsTr"));
    if let Some(series) = dicom_series_in(&images, &json.file_ending) {
        let defect = format!(
            "contains DICOM series; convert each with `nnunet-dist convert {} {}`",
            series.display(),
            images.join(with_channel("CASE", 0) + ".nii.gz").display()
        );
        return Err(DatasetError::invalid(&images, defect));
    }
    let mut by_id: BTreeMap<String, Vec<PathBuf>> = group_by_case(&images, &json.file_ending, json.num_channels())?;
    let first_channel = |id: &str| images.join(with_channel(id, 0) + &json.file_ending);
    let label_stems = stems(&labels, &json.file_ending)?;
    check_label_names(&labels, &json.file_ending, &by_id, &label_stems)?;
    for id in label_stems {
        by_id.entry(id).or_insert_with_key(|id| vec![first_channel(id)]);
    }
    let case = |(id, images): (String, Vec<PathBuf>)| {
        let label = Some(labels.join(format!("{id}{}", json.file_ending)));
        CaseFiles { id, images, label }
    };
    Ok(by_id.into_iter().map(case).collect())
}

/// Returns a folder of DICOM files that takes the place of images: the folder itself or one in it.
fn dicom_series_in(images: &Path, file_ending: &str) -> Option<PathBuf> {
    if !images.is_dir() || !stems(images, file_ending).ok()?.is_empty() {
        return None;
    }
    if holds_dicom(images) {
        return Some(images.to_owned());
    }
    let folders = std::fs::read_dir(images).ok()?.flatten().map(|entry| entry.path());
    let mut series: Vec<PathBuf> = folders.filter(|path| holds_dicom(path)).collect();
    series.sort();
    series.into_iter().next()
}
