//! Final validation: all ranks predict and evaluate the fold's held-out cases, rank 0 aggregates the results.

use super::TrainError;
use super::context::TrainingContext;
use super::truth::find_truth;
use nnunet_comm::distributed::{CommError, Communicator, Fault};
use nnunet_data::work::WorkDir;
use nnunet_eval::{CaseResult, Classes, Measures, Pair, Summary, evaluate_cases};
use nnunet_infer::{MemoryOptions, Predictor, WindowOptions, validate_fold};
use nnunet_nn::model::UNet;
use nnunet_nn::ops::NnOps;

/// Options for the final validation, beyond label maps and `summary.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FinalValidationOptions {
    /// Also write class probabilities, which ensembles of configurations need (nnU-Net's `--npz`).
    pub probabilities: bool,
    /// Predict with `checkpoint_best` instead of the final weights (nnU-Net's `--val_best`).
    pub with_best: bool,
}

/// Predicts and evaluates the held-out cases. Writes label maps and `summary.json` to the run's `validation` folder,
/// and the input of the next stage of a cascade to `predicted_next_stage`. Returns the summary on rank 0, or `None`
/// without held-out cases or raw labels.
///
/// # Errors
/// Returns an error if a case cannot be read or written, or a rank is lost.
pub fn evaluate_held_out<B: NnOps>(
    context: &TrainingContext,
    work: &WorkDir,
    network: UNet<B>,
    device: B::Device,
    options: FinalValidationOptions,
) -> Result<Option<Summary>, TrainError> {
    if context.validation_cases.is_empty() {
        return Ok(None);
    }
    let output = context.config.run_dir().validation();
    let predictor = Predictor::new(network, &context.model, WindowOptions::default(), device)?
        .with_memory(MemoryOptions::on(context.config.device))
        .with_next_stages(context.next_stages.clone());
    let (store, cases) = (&*context.store, &context.validation_cases);
    let own = validate_fold(&predictor, store, &context.folder, cases, &output, options.probabilities, context.comm)?;
    drop(predictor);

    let truth = find_truth(work, &context.model.dataset, cases)?;
    let ending = &context.model.dataset.file_ending;
    let pair = |&number: &usize| {
        let case = &context.validation_cases[number];
        let prediction = output.join(format!("{case}{ending}"));
        truth.get(case).map(|reference| (number, Pair { prediction, reference: reference.clone() }))
    };
    // Each rank evaluates the cases that it has predicted.
    let (numbers, pairs): (Vec<usize>, Vec<Pair>) = own.iter().filter_map(pair).unzip();
    let results = evaluate_cases(&pairs, &Classes::from_dataset(&context.model.dataset), &Measures::default())?;
    let cases = gather(numbers, results, context.comm)?;
    if context.comm.rank() > 0 {
        return Ok(None);
    }
    if cases.is_empty() {
        tracing::warn!("the raw dataset contains none of the held-out labels; summary.json is not written");
        return Ok(None);
    }
    let summary = Summary::new(cases);
    summary.save(&output.join("summary.json"))?;
    Ok(Some(summary))
}

/// Gathers the results of all ranks, sorted by case number.
fn gather(
    numbers: Vec<usize>,
    results: Vec<CaseResult>,
    comm: &dyn Communicator,
) -> Result<Vec<CaseResult>, TrainError> {
    const WHAT: &str = "results of the held-out cases";
    let own: Vec<_> = numbers.into_iter().zip(results).collect();
    let message = serde_json::to_vec(&own).expect("names and numbers can be written as JSON");
    let mut all = Vec::new();
    for message in comm.all_gather_bytes(&message, WHAT)? {
        let results: Vec<(usize, CaseResult)> = serde_json::from_slice(&message).map_err(|error| CommError {
            rank: comm.rank(),
            operation: WHAT.into(),
            elapsed_s: 0.0,
            fault: Fault::Disagreement,
            reason: format!("another rank runs a different version of the program: {error}"),
        })?;
        all.extend(results);
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}
