//! Both stages of a cascade, one after the other.

use std::path::{Path, PathBuf};

use super::InferError;
use super::folder::{PredictOptions, predict_folder};
use crate::dist::Communicator;
use crate::model::SavedModel;

/// Where the first stage's label maps are left, within the folder of the second's.
const FIRST_STAGE: &str = "previous_stage";

/// As [`predict_folder`] with the second stage of a cascade, after the network of `first`, a checkpoint, has segmented all
/// images alike, into the folder `previous_stage` within `output`.
///
/// # Errors
/// As [`predict_folder`], of either stage; the second does not begin where a case of the first has failed. `first` is not
/// the stage that the second was trained behind.
pub fn predict_both_stages(
    images: &Path,
    output: &Path,
    first: PathBuf,
    second: &PredictOptions,
    comm: &dyn Communicator,
) -> Result<usize, InferError> {
    check_order(&first, &second.checkpoint)?;
    let between = output.join(FIRST_STAGE);
    let first = PredictOptions { checkpoint: first, save_probabilities: false, previous_stage: None, ..second.clone() };
    if comm.rank() == 0 {
        tracing::info!("first stage, into {}", between.display());
    }
    predict_folder(images, &between, &first, comm)?;
    let second = PredictOptions { previous_stage: Some(between), ..second.clone() };
    predict_folder(images, output, &second, comm)
}

/// Whether the second network was trained behind the first, before either takes its time.
fn check_order(first: &Path, second: &Path) -> Result<(), InferError> {
    let [earlier, later] = [SavedModel::read(first)?.description, SavedModel::read(second)?.description];
    let later = later.plans.configuration(&later.configuration)?;
    let Some(wanted) = later.previous_stage_name() else {
        return Err(InferError::NotCascaded { path: second.to_owned() });
    };
    match earlier.configuration == wanted {
        true => Ok(()),
        false => Err(InferError::OtherStage {
            path: first.to_owned(),
            found: earlier.configuration,
            wanted: wanted.to_owned(),
        }),
    }
}
