//! Prediction of the images of a folder, case by case.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::InferError;
use super::cases::{JobPart, find_cases};
use super::error::FailedCase;
use super::export::Segmentation;
use super::options::PredictOptions;
use super::output::OutputFolder;
use super::predictor::{Predictor, count_non_finite};
use nnunet_comm::distributed::{Communicator, check_consistency, own_partition};
use nnunet_core::lock::FolderLock;
use nnunet_data::dataset::{Case, CaseFiles, DatasetError, left_out};
use nnunet_data::store::{CaseProperties, PreprocessedCase};
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};
use nnunet_nn::ops::NnOps;

/// Options for the prediction of several cases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderOptions {
    /// Write the class probabilities of each case as `CASE.npz`.
    pub save_probabilities: bool,
    /// Skip cases with complete existing results.
    pub skip_existing: bool,
    /// Part of all cases to predict.
    pub part: JobPart,
    /// For the second stage of a cascade: folder of the first stage's label maps, in the raw images' voxel grid.
    pub previous_stage: Option<PathBuf>,
    /// Cases that the first stage could not segment: the second stage leaves them out.
    pub failed_before: Vec<String>,
}

/// Numbers of predicted cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredictionCounts {
    /// Cases with results, including skipped ones.
    pub cases: usize,
    /// Skipped cases with results from an earlier run.
    pub skipped: usize,
}

/// Segments all cases that `inputs` name (see [`find_cases`]) and writes one label map per case to `output`.
///
/// The cases are divided over the ranks by file size. While the network processes a case, the next one is read and
/// preprocessed and the previous one is written: at most three cases are in memory, one of them as labels only.
///
/// # Errors
/// Returns an error if the networks or the images cannot be read. A failing case does not stop the others; all failed
/// cases are listed in an error at the end, on all ranks.
pub fn predict_folder(
    inputs: &[PathBuf],
    output: &Path,
    options: &PredictOptions,
    folder: &FolderOptions,
    comm: &dyn Communicator,
) -> Result<PredictionCounts, InferError> {
    on_device(options.device, options.precision, comm, PredictFolder { inputs, output, options, folder, comm })?
}

struct PredictFolder<'a> {
    inputs: &'a [PathBuf],
    output: &'a Path,
    options: &'a PredictOptions,
    folder: &'a FolderOptions,
    comm: &'a dyn Communicator,
}

impl OnDevice for PredictFolder<'_> {
    type Output = Result<PredictionCounts, InferError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        self.predict::<B::InnerBackend>(device)
    }
}

impl PredictFolder<'_> {
    fn predict<B: NnOps>(self, device: B::Device) -> Result<PredictionCounts, InferError> {
        let Self { inputs, output, options, folder, comm } = self;
        let predictor = Predictor::<B>::with_options(options, device)?;
        let mut cases = folder.part.select(find_cases(inputs, predictor.dataset())?);
        cases.retain(|case| !folder.failed_before.iter().any(|failed| *failed == *case.id));
        if let ([input], 0) = (inputs, comm.rank())
            && folder.previous_stage.is_none()
            && let Some(files) = left_out(input, &predictor.dataset().file_ending)
        {
            tracing::warn!("{}: left out {files}", input.display());
        }
        predictor.add_previous_stage(&mut cases, folder.previous_stage.as_deref())?;
        let listing: Vec<_> = cases.iter().map(|case| (&case.id, case.bytes())).collect();
        check_consistency(comm, "images to predict", format!("{listing:?}").as_bytes())?;
        OutputFolder::check(output, predictor.model(), &cases, folder.skip_existing)?;
        comm.barrier("check of the output folder")?;
        let _lock = match comm.rank() {
            0 => Some(FolderLock::acquire(output, &folder.part.lock_name())?),
            _ => None,
        };
        let output = OutputFolder::create(output, predictor.model(), folder.save_probabilities)?;
        let total = cases.len();
        let cases = if folder.skip_existing { unfinished(cases, &output, comm)? } else { cases };
        let predicted = PredictionCounts { cases: total, skipped: total - cases.len() };
        let cases = own_cases(&cases, comm);

        // Capacity 0: a stage waits with its finished case until the next stage takes it.
        let (read, preprocessed) = bounded(0);
        let (done, to_write) = bounded(0);
        let failed = std::thread::scope(|scope| {
            let (predictor, output) = (&predictor, &output);
            scope.spawn(move || read_all(cases, predictor, &read));
            let writer = scope.spawn(move || write_all(&to_write, output));
            let mut failed = predict_all(&preprocessed, predictor, &done, folder.save_probabilities, comm);
            drop(done);
            failed.extend(writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            failed
        });
        let mut failed = gather(&failed, "cases that failed", comm)?;
        if failed.is_empty() {
            return Ok(predicted);
        }
        failed.sort();
        Err(InferError::Cases { failed, total })
    }
}

/// Returns this rank's share of the cases.
fn own_cases<'c>(cases: &'c [CaseFiles], comm: &dyn Communicator) -> Vec<&'c CaseFiles> {
    let costs: Vec<_> = cases.iter().map(CaseFiles::bytes).collect();
    own_partition(comm, &costs).into_iter().map(|number| &cases[number]).collect()
}

/// Returns the cases with missing or incomplete results; each rank checks its share.
fn unfinished(
    mut cases: Vec<CaseFiles>,
    output: &OutputFolder,
    comm: &dyn Communicator,
) -> Result<Vec<CaseFiles>, InferError> {
    let complete =
        own_cases(&cases, comm).into_iter().filter(|case| output.is_complete(case)).map(|case| case.id.clone());
    let complete = gather(&complete.collect::<Vec<_>>(), "cases that are there", comm)?;
    cases.retain(|case| !complete.contains(&case.id));
    Ok(cases)
}

/// Gathers the values of all ranks.
fn gather<T: Serialize + DeserializeOwned>(
    values: &[T],
    what: &str,
    comm: &dyn Communicator,
) -> Result<Vec<T>, InferError> {
    let message = serde_json::to_vec(values).expect("strings can be written as JSON");
    let messages = comm.all_gather_bytes(&message, what)?;
    // The messages are from the same program, so they are valid JSON.
    Ok(messages.iter().flat_map(|message| serde_json::from_slice::<Vec<T>>(message).unwrap_or_default()).collect())
}

/// Case ID, with the preprocessed case or the error that prevents its prediction.
type Preprocessed<'c> = (&'c str, Result<PreprocessedCase, InferError>);
type Segmented<'c> = (&'c str, Segmentation, CaseProperties, Instant);

fn read_all<'c, B: NnOps>(cases: Vec<&'c CaseFiles>, predictor: &Predictor<B>, to: &Sender<Preprocessed<'c>>) {
    for files in cases {
        let result = guarded(|| {
            let case = read_finite_case(files, predictor.dataset().num_channels())?;
            predictor.preprocess(&case)
        });
        // The receiver is dropped only if it panicked.
        if to.send((&files.id, result)).is_err() {
            return;
        }
    }
}

/// Runs a step for one case. A panic is an error of this case only.
fn guarded<T>(work: impl FnOnce() -> Result<T, InferError>) -> Result<T, InferError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(InferError::Panic))
}

/// Reads a case and rejects non-finite intensities: a single NaN would turn the whole image into background.
///
/// # Errors
/// Returns an error if a file cannot be read, if the files do not match, or if an intensity is not finite.
pub fn read_finite_case(files: &CaseFiles, channels: usize) -> Result<Case, InferError> {
    let case = files.load(channels)?;
    match count_non_finite(case.image.data.view()) {
        None => Ok(case),
        Some(count) => {
            Err(DatasetError::invalid(&files.images[0], format_args!("NaN or infinite in {count} voxels")).into())
        }
    }
}

fn predict_all<'c, B: NnOps>(
    from: &Receiver<Preprocessed<'c>>,
    predictor: &Predictor<B>,
    to: &Sender<Segmented<'c>>,
    save_probabilities: bool,
    comm: &dyn Communicator,
) -> Vec<FailedCase> {
    let mut failed = Vec::new();
    for (id, result) in from {
        let began = Instant::now();
        let segmented = result.and_then(|PreprocessedCase { data, properties, .. }| {
            comm.enter_unbounded(&format!("prediction of {id}"));
            let segmentation = guarded(|| predictor.segment(data.view(), &properties, save_probabilities))?;
            Ok((segmentation, properties))
        });
        match segmented {
            Ok((segmentation, properties)) => {
                if to.send((id, segmentation, properties, began)).is_err() {
                    break;
                }
            }
            Err(error) => failed.push(FailedCase::new(id, &error)),
        }
    }
    failed
}

fn write_all(from: &Receiver<Segmented>, output: &OutputFolder) -> Vec<FailedCase> {
    let mut failed = Vec::new();
    for (id, segmentation, properties, began) in from {
        match guarded(|| output.write(id, &segmentation, &properties)) {
            Ok(()) => tracing::info!("{id}: {:.1} s", began.elapsed().as_secs_f64()),
            Err(error) => failed.push(FailedCase::new(id, &error)),
        }
    }
    failed
}
