//! The raw label maps with which held-out cases are compared after training, looked for before it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::TrainError;
use super::context::TrainingContext;
use nnunet_data::dataset::{Dataset, DatasetError, DatasetJson};
use nnunet_data::work::{ConfigError, Source, WorkDir};
use nnunet_image::{check_writable, read_header};

/// Maximum number of cases in a message.
const LISTED: usize = 10;

/// Finds the label maps of the held-out `cases`, by case. Cases that the raw dataset no longer has are left out.
///
/// # Errors
/// Returns an error if the raw dataset was moved or cannot be read, if the label map of a case is missing, or if
/// predictions cannot be written in the format of the dataset.
pub fn find_truth(
    work: &WorkDir,
    dataset: &DatasetJson,
    cases: &[String],
) -> Result<BTreeMap<String, PathBuf>, TrainError> {
    if cases.is_empty() {
        return Ok(BTreeMap::new());
    }
    check_writable(&dataset.file_ending)
        .map_err(|defect| ConfigError::new(work.dataset_json().display(), format_args!("file_ending: {defect}")))?;
    let raw = Dataset::open(&Source::load(work)?.dataset)?;
    let is_held_out = |id: &str| cases.iter().any(|case| case == id);
    let labels = raw.cases.into_iter().filter_map(|case| Some((case.id, case.label?)));
    let labels: BTreeMap<String, PathBuf> = labels.filter(|(id, _)| is_held_out(id)).collect();
    match labels.values().find(|label| !label.is_file()) {
        None => Ok(labels),
        Some(missing) => {
            let defect = "missing; the held-out cases are compared with their label maps after training";
            Err(DatasetError::invalid(missing, defect).into())
        }
    }
}

/// Checks before training that its held-out cases can be evaluated after it. Rank 0 warns of cases without a label map.
///
/// # Errors
/// Returns an error as [`find_truth`] does, and if the header of a label map cannot be read.
pub fn check(context: &TrainingContext, work: &WorkDir) -> Result<(), TrainError> {
    let cases = &context.validation_cases;
    let truth = find_truth(work, &context.model.dataset, cases)?;
    for label in truth.values() {
        read_header(label).map_err(DatasetError::from)?;
    }
    let missing: Vec<&str> = cases.iter().filter(|case| !truth.contains_key(*case)).map(String::as_str).collect();
    if context.comm.rank() == 0 && !missing.is_empty() {
        let more = if missing.len() > LISTED { ", …" } else { "" };
        let (count, listed) = (missing.len(), missing[..missing.len().min(LISTED)].join(", "));
        tracing::warn!("{count} held-out cases are not in the raw dataset and will not be evaluated: {listed}{more}");
    }
    Ok(())
}
