//! Creation of the dataset.json of a folder that has none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use nnunet_core::fsio;
use nnunet_image::{check_writable, holds_dicom, image_ending};

use super::case::{group_by_case, stems};
use super::{DatasetError, DatasetJson, LabelValue};

/// Name of the label whose voxels are ignored; it has the highest number.
const IGNORE: &str = "ignore";

/// Writes the dataset.json of the dataset in `root`, with these channels and labels. File ending and number of cases
/// are those of imagesTr. Labels are numbered from 1 in this order. Returns the path of the file.
///
/// # Errors
/// Returns an error if there is a dataset.json, if imagesTr has no images or images of several formats, or if the names
/// cannot be used.
pub fn write_description(root: &Path, channels: &[String], labels: &[String]) -> Result<PathBuf, DatasetError> {
    let path = root.join("dataset.json");
    if path.exists() {
        return Err(DatasetError::invalid(&path, "exists already; omit --init to plan with it"));
    }
    let images = root.join("imagesTr");
    let file_ending = ending_of_images(&images)?;
    let json = DatasetJson {
        channel_names: channels.iter().enumerate().map(|(n, name)| (n.to_string(), name.trim().to_owned())).collect(),
        labels: numbered(labels).map_err(|defect| DatasetError::invalid(&path, defect))?,
        num_training: group_by_case(&images, &file_ending, channels.len())?.len(),
        file_ending,
        regions_class_order: None,
        other: IndexMap::new(),
    };
    if let Some(problem) = json.problems().into_iter().next() {
        return Err(DatasetError::invalid(&path, format_args!("not written: {problem}")));
    }
    let labels = root.join("labelsTr");
    if stems(&labels, &json.file_ending)?.is_empty() {
        return Err(DatasetError::invalid(&labels, format_args!("contains no *{} label maps", json.file_ending)));
    }
    fsio::write_json(&path, &json).map_err(DatasetError::io(&path))?;
    Ok(path)
}

/// Numbers labels from 1, the ignore label last.
fn numbered(names: &[String]) -> Result<IndexMap<String, LabelValue>, String> {
    let names = names.iter().map(|name| name.trim()).filter(|name| *name != "background");
    let (ignore, mut names): (Vec<&str>, Vec<&str>) = names.partition(|name| *name == IGNORE);
    names.extend(ignore);
    let mut labels = IndexMap::from([("background".to_owned(), LabelValue::Class(0))]);
    for (name, label) in names.into_iter().zip(1..) {
        if name.is_empty() || labels.insert(name.to_owned(), LabelValue::Class(label)).is_some() {
            return Err(format!("not written: label {label} is named {name:?}; names must be distinct and not empty"));
        }
    }
    Ok(labels)
}

/// Returns the ending that all images of a folder have.
fn ending_of_images(folder: &Path) -> Result<String, DatasetError> {
    let failed = DatasetError::io(folder);
    let mut endings: BTreeMap<String, usize> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        if let Some(ending) = image_ending(name).filter(|ending| check_writable(ending).is_ok()) {
            *endings.entry(ending.to_owned()).or_default() += 1;
        } else if holds_dicom(&entry.path()) {
            let defect = "holds DICOM files; convert each series with `nnunet-dist convert SERIES_FOLDER \
                          imagesTr/CASE_0000.nii.gz`";
            return Err(DatasetError::invalid(&entry.path(), defect));
        }
    }
    let found: Vec<String> = endings.keys().cloned().collect();
    match found.as_slice() {
        [ending] => Ok(ending.clone()),
        [] => Err(DatasetError::invalid(folder, "contains no images")),
        _ => Err(DatasetError::invalid(
            folder,
            format_args!("contains images of several formats, {}; a dataset has one", found.join(", ")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn the_description_follows_from_names_and_files() {
        let files = ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/notes.txt", "labelsTr/a.nii.gz"];
        let root = dataset(&files);
        let labels = names(&["background", "ignore", "liver", "tumour"]);
        let path = write_description(root.path(), &names(&["CT", "PET"]), &labels).unwrap();
        let json = DatasetJson::load(&path).unwrap();
        assert_eq!((json.num_channels(), json.num_training, json.file_ending.as_str()), (2, 1, ".nii.gz"));
        assert_eq!((json.classes(), json.ignore_label()), (vec![0, 1, 2], Some(3)));
        let error = write_description(root.path(), &names(&["CT"]), &labels).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
    }

    #[test]
    fn a_folder_without_images_of_one_format_is_refused() {
        for (files, labels, defect) in [
            (vec!["imagesTr/a.txt", "labelsTr/a.txt"], "liver", "contains no images"),
            (vec!["imagesTr/a.nii", "imagesTr/b.mha", "labelsTr/a.nii"], "liver", ".mha, .nii"),
            (vec!["imagesTr/a.nii", "labelsTr/a.mha"], "liver", "contains no *.nii label maps"),
            (vec!["imagesTr/a.nii", "labelsTr/a.nii"], "", "names must be distinct"),
        ] {
            let root = dataset(&files);
            let error = write_description(root.path(), &names(&["CT"]), &names(&[labels])).unwrap_err().to_string();
            assert!(error.contains(defect), "{error}");
            assert!(!root.path().join("dataset.json").exists());
        }
    }
}
