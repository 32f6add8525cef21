//! A case: its files, and what is in them.

use std::path::{Path, PathBuf};

use ndarray::Axis;
use rayon::prelude::*;

use super::DatasetError;
use nnunet_image::{self as image, LabelMap, Volume};

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
