//! The fold's held-out cases: predicted by all ranks, evaluated by rank 0.

use std::collections::HashMap;

use super::TrainError;
use super::setup::Job;
use crate::config::{Source, WorkDir};
use crate::dataset::Dataset;
use crate::eval::{Classes, Pair, Summary, evaluate_files};
use crate::infer::{Predictor, WindowOptions, validate_fold};
use crate::model::UNet;
use crate::ops::NnOps;

/// Writes label maps and `summary.json` of the held-out cases into the run's `validation` folder, and gives rank 0 the
/// summary. Without held-out cases, or without the raw labels, there is none.
///
/// # Errors
/// A case cannot be read or written, or a rank is gone.
pub fn evaluate_held_out<B: NnOps>(
    job: &Job,
    work: &WorkDir,
    network: UNet<B>,
    device: B::Device,
) -> Result<Option<Summary>, TrainError> {
    if job.validation_cases.is_empty() {
        return Ok(None);
    }
    let output = job.config.run_dir().validation();
    let folder = work.preprocessed(&job.configuration.data_identifier);
    let predictor = Predictor::new(network, &job.model, WindowOptions::default(), device)?;
    validate_fold(&predictor, &job.store, &folder, &job.validation_cases, &output, job.comm)?;
    if job.comm.rank() > 0 {
        return Ok(None);
    }

    let raw = Dataset::open(&Source::load(work)?.dataset)?;
    let truth: HashMap<&str, _> =
        raw.cases.iter().filter_map(|case| Some((case.id.as_str(), case.label.as_ref()?))).collect();
    let ending = &job.model.dataset.file_ending;
    let pair = |case: &String| {
        let prediction = output.join(format!("{case}{ending}"));
        truth.get(case.as_str()).map(|reference| Pair { prediction, reference: reference.to_path_buf() })
    };
    let pairs: Vec<Pair> = job.validation_cases.iter().filter_map(pair).collect();
    if pairs.is_empty() {
        tracing::warn!("{}: holds none of the held-out labels any more; no summary.json", raw.root.display());
        return Ok(None);
    }
    let summary = evaluate_files(&pairs, &Classes::of_dataset(&job.model.dataset))?;
    summary.save(&output.join("summary.json"))?;
    Ok(Some(summary))
}
