//! Checksums of the arrays of a store: CRC-32C of the elements of each file, written when all cases are complete.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use bytemuck::Pod;
use ndarray::ArrayView;

use super::{PreprocessedCase, StoreError};
use nnunet_core::fsio;

/// Name of the file in the folder of a store. It has no ending, since `CASE.json` describes a case.
pub(super) const CHECKSUMS: &str = "checksums";

/// Checksums of data and labels of each case.
pub type Checksums = BTreeMap<String, [u32; 2]>;

/// Computes the checksums of a case.
pub fn checksums_of(case: &PreprocessedCase) -> [u32; 2] {
    [sum(case.data.view()), case.labels.as_ref().map_or(0, |labels| sum(labels.view()))]
}

fn sum<T: Pod, D: ndarray::Dimension>(array: ArrayView<T, D>) -> u32 {
    let array = array.as_standard_layout();
    checksum(array.as_slice().expect("as_standard_layout gives C order"))
}

/// Computes the checksum of elements in C order.
pub(super) fn checksum<T: Pod>(elements: &[T]) -> u32 {
    crc32c::crc32c(bytemuck::cast_slice(elements))
}

/// Writes the checksums of all cases into the folder of a store.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn save_checksums(folder: &Path, checksums: &Checksums) -> Result<(), StoreError> {
    let path = folder.join(CHECKSUMS);
    fsio::write_json(&path, checksums).map_err(|error| StoreError::new(path, format!("cannot write: {error}")))
}

/// Reads the checksums of a store; empty if it has none, because it was imported or made by an earlier version.
///
/// # Errors
/// Returns an error if the file is damaged.
pub(super) fn load_checksums(folder: &Path) -> Result<Checksums, StoreError> {
    let path = folder.join(CHECKSUMS);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Checksums::new()),
        read => {
            let parsed = read.map_err(|error| error.to_string());
            let parsed = parsed.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
            parsed.map_err(|defect| StoreError::new(path, defect + "; preprocess again"))
        }
    }
}
