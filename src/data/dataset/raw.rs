//! A raw dataset: a folder with dataset.json, images and label maps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::case::{folder_name, group_by_case, stems, with_channel};
use super::dataset_json::{Description, ListedCase};
use super::{CaseFiles, DatasetError, DatasetJson};

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
        let Description { json, cases } = Description::load(&description_path)?;
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

fn cases_in_folders(root: &Path, json: &DatasetJson) -> Result<Vec<CaseFiles>, DatasetError> {
    let (images, labels) = (root.join("imagesTr"), root.join("labelsTr"));
    let mut by_id: BTreeMap<String, Vec<PathBuf>> = group_by_case(&images, &json.file_ending, json.num_channels())?;
    let first_channel = |id: &str| images.join(with_channel(id, 0) + &json.file_ending);
    for id in stems(&labels, &json.file_ending)? {
        by_id.entry(id).or_insert_with_key(|id| vec![first_channel(id)]);
    }
    let case = |(id, images): (String, Vec<PathBuf>)| {
        let label = Some(labels.join(format!("{id}{}", json.file_ending)));
        CaseFiles { id, images, label }
    };
    Ok(by_id.into_iter().map(case).collect())
}
