//! The cases a training run has held out, shared out to the ranks.

use std::path::Path;

use ndarray::{Array3, Array4};

use super::InferError;
use super::predictor::Predictor;
use crate::dist::Communicator;
use crate::image::write_labels;
use crate::ops::NnOps;
use crate::store::{CaseStore, NativeStore, Patch, read_case_properties};

/// Predicts `cases` from the preprocessed store at `folder` into label maps of their raw geometry in `output`.
///
/// Rank `r` of `n` predicts cases `r, r + n, …`; when this returns, all ranks are done.
///
/// # Errors
/// A case cannot be read or written, or a rank is gone.
pub fn validate_fold<B: NnOps>(
    predictor: &Predictor<B>,
    store: &NativeStore,
    folder: &Path,
    cases: &[String],
    output: &Path,
    comm: &dyn Communicator,
) -> Result<(), InferError> {
    for case in cases.iter().skip(comm.rank()).step_by(comm.world_size()) {
        comm.enter_long(&format!("validation of {case}"));
        let info = store.info(case)?;
        let [z, y, x] = info.shape;
        let (data, labels) = (Array4::zeros((info.channels, z, y, x)), Array3::zeros((z, y, x)));
        let mut whole = Patch { data, labels };
        store.read_patch(case, [0; 3], &mut whole)?;
        let logits = predictor.logits(whole.data.view());
        let segmentation = predictor.export(logits.view(), &read_case_properties(folder, case)?, false);
        let path = output.join(format!("{case}{}", predictor.dataset().file_ending));
        write_labels(&path, &segmentation.labels)?;
        tracing::debug!("validated {case}");
    }
    Ok(comm.barrier("validation of cases")?)
}
