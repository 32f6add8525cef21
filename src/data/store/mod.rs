//! Preprocessed data on disk, with random access to patches.
//!
//! Training uses only [`CaseStore`]; [`NativeStore`] implements it over the folder that preprocessing fills with
//! [`write_case`]. Only complete cases are listed, and every file is checked before the first patch is read.

mod cached;
mod case;
mod checksums;
mod local_cache;
mod native;
pub mod npy;
mod region;

use std::path::PathBuf;

use ndarray::{Array3, Array4};
use sha2::{Digest, Sha256};

pub use cached::CachedStore;
pub use case::{ANNOTATED, CaseProperties, PreprocessedCase};
pub use checksums::{Checksums, checksums_of, save_checksums};
pub use local_cache::{LocalCacheError, copy_label_maps_to_local_cache, copy_to_local_cache};
pub(crate) use native::move_other_files;
pub use native::{NativeStore, clear, label_map, read_case_properties, write_case, write_label_map};
pub(crate) use region::{OUTSIDE_INTENSITY, OUTSIDE_LABEL};
pub use region::{Patch, Region};

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct StoreError {
    /// Path of the affected file or folder.
    pub path: PathBuf,
    /// Description of the problem and its remedy.
    pub defect: String,
}

impl StoreError {
    pub fn new(path: impl Into<PathBuf>, defect: impl Into<String>) -> Self {
        Self { path: path.into(), defect: defect.into() }
    }
}

/// The preprocessed cases of one configuration.
///
/// Implementations are shared between threads; reads take `&self`.
pub trait CaseStore: Send + Sync {
    /// Returns the identifiers of all cases, sorted.
    fn case_ids(&self) -> &[String];

    /// Returns the metadata of a case without reading its voxels.
    fn info(&self, case: &str) -> Result<&CaseInfo, StoreError>;

    /// Returns a SHA-256 checksum over case names, extents and the sampled class locations.
    ///
    /// # Errors
    /// Returns an error if a case is unknown.
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

    /// Copies the box `lo .. lo + size` of a case into `patch`, where `size` is the patch extent (`(channel, z, y, x)`
    /// data and `(z, y, x)` labels).
    ///
    /// The box may extend beyond the image: there, data becomes 0 and labels become -1 (as nnU-Net pads). The previous
    /// stage's labels are also copied if the case has them and the patch has an array for them.
    fn read_patch(&self, case: &str, lo: [isize; 3], patch: &mut Patch) -> Result<(), StoreError>;

    /// Calls `visit` once with the box `lo .. lo + size` of a case.
    ///
    /// A store that holds its cases in memory lends them without a copy; others read the box into `scratch`, whose
    /// allocation is reused between calls.
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

/// Metadata of a preprocessed case, available without reading its voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseInfo {
    /// Number of channels.
    pub channels: usize,
    /// Extent after preprocessing, `(z, y, x)`.
    pub shape: [usize; 3],
    /// Per foreground class (or region, keyed by its output class) present: a bounded random sample of its voxels, `(z,
    /// y, x)`; with an ignore label, also a sample of all other voxels under the key [`ANNOTATED`].
    pub class_locations: std::collections::BTreeMap<i16, Vec<[u32; 3]>>,
    /// True if the case has a segmentation from the previous stage of a cascade.
    pub has_previous: bool,
}

impl CaseInfo {
    /// Allocates a zero-filled patch for a box of the case with this extent, `(z, y, x)`.
    pub fn blank_patch(&self, [z, y, x]: [usize; 3]) -> Patch {
        Patch {
            data: Array4::zeros((self.channels, z, y, x)),
            labels: Array3::zeros((z, y, x)),
            previous: self.has_previous.then(|| Array3::zeros((z, y, x))),
        }
    }

    /// Returns the size of the case in memory, in bytes.
    fn bytes(&self) -> usize {
        let label_maps = 1 + usize::from(self.has_previous);
        self.shape.iter().product::<usize>() * (self.channels * size_of::<f32>() + label_maps * size_of::<i16>())
    }
}
