//! Datasets made from nothing, for the demo and for tests.
//!
//! A phantom is an organ (class 1) with a core (class 2) in a body. Blobs and tubes around it are as bright as the organ,
//! and the core is as bright as the body, so that brightness alone finds neither: what tells them apart is texture, shape
//! and what lies around. Shapes are smoothly bent ellipsoids; noise, a bias field and a scale of brightness that differs
//! from case to case are those of a magnetic resonance scanner. A small network learns the task in some 200 iterations.

mod anatomy;
mod noise;
mod render;

use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use rayon::prelude::*;

use crate::dataset::{DatasetJson, LabelValue};
use nnunet_core::fsio::write_json;
use nnunet_core::rng::{Purpose, stream};
use nnunet_image::{ImageError, write_labels, write_volume};

/// What to generate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhantomOptions {
    /// Cases in `imagesTr` and `labelsTr`.
    pub train_cases: usize,
    /// Cases in `imagesTs` and `labelsTs`.
    pub test_cases: usize,
    /// Voxels along `(z, y, x)`, which vary by a twelfth from case to case; at least 8. Anatomy scales with it.
    pub shape: [usize; 3],
    /// The same seed gives the same files.
    pub seed: u64,
}

/// A dataset that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PhantomError {
    /// An image or label map.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// A folder or `dataset.json`.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// File name ending of images and label maps.
const ENDING: &str = ".nii.gz";

/// Writes a dataset of phantoms of about 40 x 48 x 40 voxels into `dir`, in nnU-Net v2's raw format.
///
/// # Errors
/// Where a file cannot be written.
pub fn generate(dir: &Path, train_cases: usize, test_cases: usize, seed: u64) -> Result<(), PhantomError> {
    PhantomOptions { train_cases, test_cases, seed, ..PhantomOptions::default() }.generate(dir)
}

impl Default for PhantomOptions {
    fn default() -> Self {
        Self { train_cases: 12, test_cases: 4, shape: [40, 48, 40], seed: 1 }
    }
}

impl PhantomOptions {
    /// Writes the dataset into `dir`, in nnU-Net v2's raw format: `dataset.json`, `imagesTr`, `labelsTr`, `imagesTs` and
    /// `labelsTs`.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn generate(&self, dir: &Path) -> Result<(), PhantomError> {
        for folder in ["imagesTr", "labelsTr", "imagesTs", "labelsTs"] {
            let path = dir.join(folder);
            std::fs::create_dir_all(&path).map_err(|source| PhantomError::Io { path, source })?;
        }
        let path = dir.join("dataset.json");
        write_json(&path, &self.dataset_json()).map_err(|source| PhantomError::Io { path, source })?;
        let cases = self.train_cases + self.test_cases;
        (0..cases).into_par_iter().try_for_each(|index| self.write_case(dir, index))
    }

    fn write_case(&self, dir: &Path, index: usize) -> Result<(), PhantomError> {
        let mut rng = stream(self.seed, Purpose::Phantom, 0, index as u64);
        let phantom = render::render(self.shape.map(|extent| extent.max(8)), &mut rng);
        let part = if index < self.train_cases { "Tr" } else { "Ts" };
        let case = format!("phantom_{index:03}");
        write_volume(&dir.join(format!("images{part}/{case}_0000{ENDING}")), &phantom.image)?;
        write_labels(&dir.join(format!("labels{part}/{case}{ENDING}")), &phantom.labels)?;
        Ok(())
    }

    fn dataset_json(&self) -> DatasetJson {
        let labels = [("background", 0), ("organ", 1), ("core", 2)];
        DatasetJson {
            channel_names: IndexMap::from([("0".to_owned(), "MR".to_owned())]),
            labels: labels.into_iter().map(|(name, class)| (name.to_owned(), LabelValue::Class(class))).collect(),
            num_training: self.train_cases,
            file_ending: ENDING.to_owned(),
            regions_class_order: None,
            other: IndexMap::new(),
        }
    }
}
