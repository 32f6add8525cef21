//! Postprocessing of a folder of predictions.

use std::fs;
use std::path::Path;

use rayon::prelude::*;

use super::Postprocessing;
use crate::{EvalError, label_maps};
use nnunet_core::fsio;
use nnunet_image::{read_labels, write_labels};

/// Writes every label map of `input`, postprocessed, to `output` under the same name, and a copy of `dataset.json` if
/// there is one. Returns the number of label maps.
///
/// # Errors
/// Returns an error if a file cannot be read or written, or if both folders are the same.
pub fn apply_to_folder(postprocessing: &Postprocessing, input: &Path, output: &Path) -> Result<usize, EvalError> {
    let maps = label_maps(input)?;
    fs::create_dir_all(output).map_err(EvalError::io(output))?;
    let is_same = fs::canonicalize(input).ok() == fs::canonicalize(output).ok();
    if is_same {
        return Err(EvalError::invalid(output, "is the input folder, which would be overwritten"));
    }
    let paths: Vec<_> = maps.values().collect();
    let written: Vec<_> = paths
        .par_iter()
        .map(|path| {
            let mut labels = read_labels(path)?;
            postprocessing.apply(&mut labels.data);
            let path = output.join(path.file_name().unwrap_or_default());
            write_labels(&path, &labels).map_err(EvalError::from)
        })
        .collect();
    written.into_iter().collect::<Result<(), _>>()?;
    let dataset = input.join("dataset.json");
    if dataset.is_file() {
        let target = output.join("dataset.json");
        fsio::copy(&dataset, &target).map_err(EvalError::io(&target))?;
    }
    Ok(maps.len())
}
