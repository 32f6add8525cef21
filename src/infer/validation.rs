//! Prediction of the held-out cases of a training run, divided over the ranks.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::InferError;
use super::predictor::Predictor;
use super::probabilities::save_probabilities;
use nnunet_comm::distributed::{Communicator, own_partition};
use nnunet_data::store::{CaseStore, StoreError, read_case_properties, write_label_map};
use nnunet_image::write_labels;
use nnunet_nn::ops::NnOps;

/// Predicts `cases` from the preprocessed store at `folder`. Writes label maps in their raw geometry to `output` and,
/// for the predictor's next stages, label maps of their preprocessed cases. If requested, also writes class
/// probabilities to `output` as `CASE.npz`, like nnU-Net's `--npz`; otherwise, probabilities of an earlier run are
/// deleted, because they would not match the label map.
///
/// The cases are divided over the ranks by size. Returns the indices of this rank's cases. All ranks are done when this
/// returns.
///
/// # Errors
/// Returns an error if a case cannot be read or written, or if communication fails.
pub fn validate_fold<B: NnOps>(
    predictor: &Predictor<B>,
    store: &dyn CaseStore,
    folder: &Path,
    cases: &[String],
    output: &Path,
    with_probabilities: bool,
    comm: &dyn Communicator,
) -> Result<Vec<usize>, InferError> {
    let voxels = cases.iter().map(|case| Ok(store.info(case)?.shape.iter().product::<usize>() as u64));
    let own = own_partition(comm, &voxels.collect::<Result<Vec<_>, StoreError>>()?);
    for case in own.iter().map(|&number| &cases[number]) {
        comm.enter_unbounded(&format!("validation of {case}"));
        let info = store.info(case)?;
        let mut whole = info.blank_patch(info.shape);
        store.read_patch(case, [0; 3], &mut whole)?;
        let input = predictor.input(whole.data, whole.previous.as_ref().map(|labels| labels.view()))?;
        let properties = read_case_properties(folder, case)?;
        let segmentation = predictor.segment(input.view(), &properties, with_probabilities)?;
        for (stage, labels) in predictor.next_stages().iter().zip(&segmentation.for_next_stages) {
            write_label_map(&stage.folder.join(format!("{case}.npy")), labels.view())?;
        }
        let path = output.join(format!("{case}{}", predictor.dataset().file_ending));
        write_labels(&path, &segmentation.labels)?;
        let path = output.join(format!("{case}.npz"));
        match &segmentation.probabilities {
            Some(probabilities) => save_probabilities(&path, probabilities)?,
            None => remove_if_exists(path)?,
        }
        tracing::debug!("validated {case}");
    }
    comm.barrier("validation of cases")?;
    Ok(own)
}

/// Deletes a file if it exists.
fn remove_if_exists(path: PathBuf) -> Result<(), InferError> {
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(InferError::Write { path, source }),
        _ => Ok(()),
    }
}
