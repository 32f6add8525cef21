//! Synthetic datasets for the demo and for tests.
//!
//! A phantom is an organ (class 1) with a core (class 2) in a body. Blobs and tubes around it are as bright as the
//! organ, and the core is as bright as the body, so that brightness alone identifies neither: they differ in texture,
//! shape and surroundings. Shapes are smoothly deformed ellipsoids; noise, a bias field and a brightness scale that
//! varies between cases imitate a magnetic resonance scanner. A small network learns the task in about 200 iterations.

mod anatomy;

use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use rayon::prelude::*;

use crate::dataset::{DatasetJson, LabelValue};
use nnunet_core::fsio::write_json;
use nnunet_core::rng::{Purpose, stream};
use nnunet_image::{ImageError, write_labels, write_volume};

/// Settings of a generated dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhantomOptions {
    /// Number of cases in `imagesTr` and `labelsTr`.
    pub train_cases: usize,
    /// Number of cases in `imagesTs` and `labelsTs`.
    pub test_cases: usize,
    /// Voxels along `(z, y, x)`, varied by up to a twelfth per case; at least 8. The anatomy scales with it.
    pub shape: [usize; 3],
    /// Random seed; equal seeds give identical files.
    pub seed: u64,
}

/// An error while writing a dataset.
#[derive(Debug, thiserror::Error)]
pub enum PhantomError {
    /// An image or label map cannot be written.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// A folder or `dataset.json` cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the folder or file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

/// File name ending of images and label maps.
const ENDING: &str = ".nii.gz";

/// Writes a dataset of phantoms of about 40 x 48 x 40 voxels into `dir`, in nnU-Net v2's raw format.
///
/// # Errors
/// Returns an error if a file cannot be written.
pub fn generate(dir: &Path, train_cases: usize, test_cases: usize, seed: u64) -> Result<(), PhantomError> {
    PhantomOptions { train_cases, test_cases, seed, ..PhantomOptions::default() }.generate(dir)
}

impl Default for PhantomOptions {
    fn default() -> Self {
        Self { train_cases: 12, test_cases: 4, shape: [40, 48, 40], seed: 1 }
    }
}

impl PhantomOptions {
    /// Writes the dataset into `dir`, in nnU-Net v2's raw format: `dataset.json`, `imagesTr`, `labelsTr`, `imagesTs`
    /// and `labelsTs`.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
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
        let phantom = anatomy::render(self.shape.map(|extent| extent.max(8)), &mut rng);
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
