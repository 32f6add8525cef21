//! A raw dataset: a folder with dataset.json, images and label maps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Axis;
use rayon::prelude::*;

use super::description::{Description, ListedCase};
use super::images::{group_by_case, stems, with_channel};
use super::{DatasetError, DatasetJson};
use crate::image::{self, LabelMap, Volume};

/// A raw dataset in nnU-Net v2's layout or in that of the Medical Segmentation Decathlon.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Its folder.
    pub root: PathBuf,
    /// The folder's name, such as `Dataset004_Hippocampus`.
    pub name: String,
    /// Its dataset.json, in nnU-Net v2's schema whatever the layout.
    pub json: DatasetJson,
    /// The training cases, sorted by [`CaseFiles::id`].
    pub cases: Vec<CaseFiles>,
}

/// The files of a case. They need not exist: [`super::validate`] finds those that do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseFiles {
    /// Name of the case, unique within its dataset.
    pub id: String,
    /// The image files, in the order of their channels; a file may hold several channels.
    pub images: Vec<PathBuf>,
    /// The label map, where the case is one to learn from.
    pub label: Option<PathBuf>,
}

/// A case in memory.
#[derive(Clone, Debug)]
pub struct Case {
    /// [`CaseFiles::id`].
    pub id: String,
    /// All channels, with the geometry of the first.
    pub image: Volume,
    /// The label map, where there is one.
    pub label: Option<LabelMap>,
}

impl Dataset {
    /// Reads dataset.json and finds the training cases, without opening their images.
    ///
    /// The cases are those that dataset.json lists: below `dataset` (nnU-Net v2) or, in the Decathlon's form, below
    /// `training`. Where it lists none they are what imagesTr and labelsTr hold, by nnU-Net's naming
    /// ([`super::find_images`]); a case with only an image or only a label map is one too, for [`super::validate`] to
    /// complain of.
    ///
    /// # Errors
    /// dataset.json or a folder cannot be read, or there is no case.
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
            return Err(DatasetError::invalid(root, "holds no training case"));
        }
        Ok(Self { root: root.to_owned(), name: folder_name(root)?, json, cases })
    }
}

impl CaseFiles {
    /// Size of the image files, to which the time that a case takes is about proportional. A file that cannot be looked at
    /// counts nothing: it fails when it is read.
    pub fn bytes(&self) -> u64 {
        self.images.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|file| file.len()).sum()
    }

    /// Reads the images, which must have `channels` channels together, and the label map.
    ///
    /// # Errors
    /// A file cannot be read, or the images do not fit together. Whether the label map fits is not checked.
    pub fn load(&self, channels: usize) -> Result<Case, DatasetError> {
        let (image, label) =
            rayon::join(|| self.load_image(channels), || self.label.as_deref().map(image::read_labels).transpose());
        Ok(Case { id: self.id.clone(), image: image?, label: label? })
    }

    /// Reads all images at once, as files of their own take their own time to decompress.
    fn load_image(&self, channels: usize) -> Result<Volume, DatasetError> {
        let volumes = self.images.par_iter().map(|path| image::read_volume(path)).collect::<Result<Vec<_>, _>>()?;
        let mut files = self.images.iter().zip(volumes);
        let Some((first, mut image)) = files.next() else {
            return Err(DatasetError::invalid(Path::new(&self.id), "a case without images"));
        };
        for (path, next) in files {
            let (shape, next_shape) = (image.data.shape()[1..].to_vec(), next.data.shape()[1..].to_vec());
            image.data.append(Axis(0), next.data.view()).map_err(|_| {
                let defect = format!("shape {next_shape:?} differs from {shape:?} of {}", first.display());
                DatasetError::invalid(path, defect)
            })?;
        }
        let found = image.data.len_of(Axis(0));
        if found != channels {
            return Err(DatasetError::invalid(first, self.channel_mismatch(found, channels)));
        }
        Ok(image)
    }

    pub(super) fn channel_mismatch(&self, found: usize, expected: usize) -> String {
        match self.images.len() {
            1 => format!("has {found} channels, expected {expected} here or in files that end in _0000, _0001, ..."),
            files => format!(
                "has {found} channels together with the {} other files of its case, expected {expected}",
                files - 1
            ),
        }
    }
}

/// Makes the listed paths absolute, and finds the files that nnU-Net v1 lists without their channel number.
fn resolve(root: &Path, json: &DatasetJson, case: ListedCase) -> CaseFiles {
    // `./imagesTr/x` would read badly in messages.
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

/// Also of `.` and of folders behind links, which go by the name the user sees.
pub(super) fn folder_name(root: &Path) -> Result<String, DatasetError> {
    let absolute = match root.file_name() {
        Some(_) => root.to_owned(),
        None => root.canonicalize().map_err(DatasetError::io(root))?,
    };
    Ok(absolute.file_name().map_or_else(|| "dataset".to_owned(), |name| name.to_string_lossy().into_owned()))
}
