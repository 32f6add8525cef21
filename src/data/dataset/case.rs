//! A case: its files and their contents.

use std::path::{Path, PathBuf};

use ndarray::Axis;
use rayon::prelude::*;

use super::DatasetError;
use nnunet_image::{self as image, LabelMap, Volume};

/// The files of a case. They may be missing; [`super::validate`] reports missing files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseFiles {
    /// Name of the case, unique within its dataset.
    pub id: String,
    /// Image files in channel order; one file may hold several channels.
    pub images: Vec<PathBuf>,
    /// Label map; `None` for an unlabeled case.
    pub label: Option<PathBuf>,
}

/// A case in memory.
#[derive(Clone, Debug)]
pub struct Case {
    /// [`CaseFiles::id`].
    pub id: String,
    /// All channels, with the geometry of the first.
    pub image: Volume,
    /// Label map, if the case has one.
    pub label: Option<LabelMap>,
}

impl CaseFiles {
    /// Returns the total size of the image files in bytes, a proxy for the processing time of the case. Inaccessible
    /// files count as 0; reading them fails later.
    pub fn bytes(&self) -> u64 {
        self.images.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|file| file.len()).sum()
    }

    /// Reads the images, which must have `channels` channels in total, and the label map.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or the images differ in shape. The shape of the label map is not
    /// checked.
    pub fn load(&self, channels: usize) -> Result<Case, DatasetError> {
        let (image, label) =
            rayon::join(|| self.load_image(channels), || self.label.as_deref().map(image::read_labels).transpose());
        Ok(Case { id: self.id.clone(), image: image?, label: label? })
    }

    /// Reads all image files in parallel, as decompression dominates.
    fn load_image(&self, channels: usize) -> Result<Volume, DatasetError> {
        let volumes = self.images.par_iter().map(|path| image::read_volume(path)).collect::<Result<Vec<_>, _>>()?;
        let mut files = self.images.iter().zip(volumes);
        let Some((first, mut image)) = files.next() else {
            return Err(DatasetError::invalid(Path::new(&self.id), "the case has no images"));
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
