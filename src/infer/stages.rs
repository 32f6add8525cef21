//! Both stages of a cascade, one after the other.

use std::path::{Path, PathBuf};

use super::InferError;
use super::folder::{FolderOptions, Predicted, predict_folder};
use super::options::PredictOptions;
use nnunet_comm::distributed::Communicator;
use nnunet_nn::checkpoint::SavedModel;
use nnunet_nn::model::ModelDescription;

/// Where the first stage's label maps are left, within the folder of the second's.
const FIRST_STAGE: &str = "previous_stage";

/// As [`predict_folder`] with the second stage of a cascade, after the networks of `first`, checkpoints, have segmented all
/// images alike, into the folder `previous_stage` within `output`.
///
/// # Errors
/// As [`predict_folder`], of either stage; the second does not begin where a case of the first has failed. `first` is not
/// the stage that the second was trained behind.
pub fn predict_both_stages(
    inputs: &[PathBuf],
    output: &Path,
    first: Vec<PathBuf>,
    second: &PredictOptions,
    folder: &FolderOptions,
    comm: &dyn Communicator,
) -> Result<Predicted, InferError> {
    if let (Some(first), Some(second)) = (first.first(), second.checkpoints.first()) {
        check_order(first, &SavedModel::read(first)?.description, &SavedModel::read(second)?.description)?;
    }
    let between = output.join(FIRST_STAGE);
    if comm.rank() == 0 {
        tracing::info!("first stage, into {}", between.display());
    }
    let options = PredictOptions { checkpoints: first, ..second.clone() };
    predict_folder(inputs, &between, &options, &FolderOptions { save_probabilities: false, ..folder.clone() }, comm)?;
    let folder = FolderOptions { previous_stage: Some(between), ..folder.clone() };
    predict_folder(inputs, output, second, &folder, comm)
}

/// Whether the `later` network was trained behind the `earlier` one, that of the checkpoint at `path`; before either takes its
/// time.
pub(super) fn check_order(path: &Path, earlier: &ModelDescription, later: &ModelDescription) -> Result<(), InferError> {
    let configuration = later.plans.configuration(&later.configuration)?;
    let Some(wanted) = configuration.previous_stage_name() else {
        return Err(InferError::NotCascaded { configuration: later.configuration.clone() });
    };
    match earlier.configuration == wanted {
        true => Ok(()),
        false => Err(InferError::OtherStage {
            path: path.to_owned(),
            found: earlier.configuration.clone(),
            wanted: wanted.to_owned(),
        }),
    }
}
