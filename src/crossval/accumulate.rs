//! Collects the results of all folds in one folder.

use std::path::Path;

use rayon::prelude::*;

use super::{CrossvalError, HeldOutResults};
use nnunet_core::fsio;
use nnunet_eval::{Classes, Measures, Summary, evaluate_files};

/// Copies the label maps of all held-out cases of a configuration to `folder`, with `dataset.json` and `plans.json`,
/// and writes their `summary.json`.
///
/// # Errors
/// Returns an error if a fold has not been validated, a case is in two folds, or a file cannot be read or written.
pub fn accumulate(held_out: &HeldOutResults, configuration: &str, folder: &Path) -> Result<Summary, CrossvalError> {
    let files = held_out.files(configuration, &held_out.dataset.file_ending)?;
    let copied: Vec<_> = files
        .par_iter()
        .map(|(_, from)| {
            let to = folder.join(from.file_name().unwrap_or_default());
            fsio::copy(from, &to).map_err(CrossvalError::io(&to))
        })
        .collect();
    copied.into_iter().collect::<Result<(), _>>()?;
    held_out.copy_description(folder)?;
    let classes = Classes::from_dataset(&held_out.dataset);
    let summary = evaluate_files(&held_out.pairs(folder)?, &classes, &Measures::default())?;
    summary.save(&folder.join("summary.json"))?;
    Ok(summary)
}
