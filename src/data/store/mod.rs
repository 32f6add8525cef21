//! The preprocessed data on disk, and random-access patches from it.
//!
//! Training sees only [`CaseStore`]; [`NativeStore`] implements it over the folder that preprocessing fills with
//! [`write_case`]. A case is listed only when it is whole, and every file is checked before the first patch is read.

mod cached;
mod case;
mod crop;
mod native;
pub mod npy;
mod region;
mod stage;

use std::path::PathBuf;

use ndarray::{Array3, Array4};
use sha2::{Digest, Sha256};

pub use cached::CachedStore;
pub use case::{ANNOTATED, CaseProperties, PreprocessedCase};
pub use native::{NativeStore, clear, label_map, read_case_properties, write_case, write_label_map};
pub use region::{OUTSIDE_INTENSITY, OUTSIDE_LABEL, Region};
pub use stage::{StageError, stage, stage_label_maps};

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct StoreError {
    /// The file in question.
    pub path: PathBuf,
    /// What is wrong with it and what to do.
    pub defect: String,
}

impl StoreError {
    pub fn new(path: impl Into<PathBuf>, defect: impl Into<String>) -> Self {
        Self { path: path.into(), defect: defect.into() }
    }
}

/// Preprocessed cases of one configuration.
///
/// Implementations are cheap to share between threads; reads take `&self`.
pub trait CaseStore: Send + Sync {
    /// All cases, sorted by identifier.
    fn case_ids(&self) -> &[String];

    /// What is known of a case without reading its voxels.
    fn info(&self, case: &str) -> Result<&CaseInfo, StoreError>;

    /// A checksum of the names of the cases, their extents, and how much there is where of each class.
    ///
    /// # Errors
    /// A case is not known.
    fn fingerprint(&self) -> Result<String, StoreError> {
        let mut sum = Sha256::new();
        for id in self.case_ids() {
            let info = self.info(id)?;
            sum.update(format!("{id} {} {:?}\n", info.channels, info.shape));
            for (class, voxels) in &info.class_locations {
                sum.update(format!("{class} {} {:?} {:?}\n", voxels.len(), voxels.first(), voxels.last()));
            }
        }
        Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Copies the box `lo .. lo + image.len()` of a case into `patch` (`(channel, z, y, x)` data and `(z, y, x)` labels).
    ///
    /// The box may reach beyond the image: there, data becomes 0 and labels become -1 (as nnU-Net pads). Where the patch has
    /// room for them and the case has them, the previous stage's labels are copied too.
    fn read_patch(&self, case: &str, lo: [isize; 3], patch: &mut Patch) -> Result<(), StoreError>;

    /// Lends the box `lo .. lo + size` of a case to `visit`, which is called once.
    ///
    /// A store that has its cases in memory lends them as they lie there; others read the box into `scratch`, which keeps
    /// its memory from one call to the next.
    fn with_region(
        &self,
        case: &str,
        lo: [isize; 3],
        size: [usize; 3],
        scratch: &mut Patch,
        visit: &mut dyn FnMut(Region),
    ) -> Result<(), StoreError> {
        let (info, [z, y, x]) = (self.info(case)?, size);
        if scratch.data.dim() != (info.channels, z, y, x) || scratch.previous.is_some() != info.has_previous {
            *scratch = info.blank_patch(size);
        }
        self.read_patch(case, lo, scratch)?;
        visit((&*scratch).into());
        Ok(())
    }
}

/// Data and labels of one box of a case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// Normalised intensities, `(channel, z, y, x)`.
    pub data: Array4<f32>,
    /// Labels, `(z, y, x)`; -1 outside the image or outside the nonzero mask.
    pub labels: Array3<i16>,
    /// In a cascade, the labels that the previous stage has found, `(z, y, x)`; -1 outside the image.
    pub previous: Option<Array3<i16>>,
}

/// What is known of a preprocessed case without reading its voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseInfo {
    /// Number of channels.
    pub channels: usize,
    /// Extent after preprocessing, `(z, y, x)`.
    pub shape: [usize; 3],
    /// For each foreground class (or region, by its output class) present: a bounded random sample of its voxels, `(z, y, x)`;
    /// with an ignore label also of all other voxels, as [`ANNOTATED`].
    pub class_locations: std::collections::BTreeMap<i16, Vec<[u32; 3]>>,
    /// Whether there is a segmentation of the cascade's previous stage.
    pub has_previous: bool,
}

impl CaseInfo {
    /// A patch of zeros that has room for a box of the case, of this extent `(z, y, x)`.
    pub fn blank_patch(&self, [z, y, x]: [usize; 3]) -> Patch {
        Patch {
            data: Array4::zeros((self.channels, z, y, x)),
            labels: Array3::zeros((z, y, x)),
            previous: self.has_previous.then(|| Array3::zeros((z, y, x))),
        }
    }

    /// Bytes of the case in memory.
    fn bytes(&self) -> usize {
        let label_maps = 1 + usize::from(self.has_previous);
        self.shape.iter().product::<usize>() * (self.channels * size_of::<f32>() + label_maps * size_of::<i16>())
    }
}
