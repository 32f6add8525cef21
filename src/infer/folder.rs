//! A folder of images to a folder of label maps.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use ndarray::Array4;
use ndarray_npy::NpzWriter;

use super::InferError;
use super::export::Segmentation;
use super::options::{MemoryOptions, WindowOptions};
use super::predictor::Predictor;
use crate::backend::{ComputeBackend, OnDevice, on_device};
use crate::config::{Device, RunDir};
use crate::dataset::{Case, CaseFiles, DatasetError, find_images};
use crate::dist::{Communicator, check_agreement, share_of};
use crate::fsio;
use crate::image::write_labels;
use crate::ops::{NnOps, Precision};
use crate::store::PreprocessedCase;

/// How a folder is predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictOptions {
    /// The network.
    pub checkpoint: PathBuf,
    pub windows: WindowOptions,
    pub memory: MemoryOptions,
    /// Of the network's activations.
    pub precision: Precision,
    /// Write the class probabilities beside each label map, as `CASE.npz`.
    pub save_probabilities: bool,
    pub device: Device,
    /// For the second stage of a cascade: the folder of the first one's label maps, with the raw images' voxels.
    pub previous_stage: Option<PathBuf>,
}

impl PredictOptions {
    /// Finds the network: `model` is a run directory, whose `checkpoint` is taken, or a checkpoint itself.
    pub fn checkpoint_of(model: &Path, checkpoint: impl FnOnce(&RunDir) -> PathBuf) -> PathBuf {
        if model.is_file() { model.to_owned() } else { checkpoint(&RunDir::new(model)) }
    }
}

/// Segments every case of `images` into `output`, one label map per case; gives their number.
///
/// The ranks divide the cases by the size of their files. While the network works on a case, the next is read and
/// preprocessed, and the last one is written: three cases are in memory at most, one of them as labels only.
///
/// # Errors
/// The network or the images cannot be read. A case that fails does not stop the others; all such are named at the end,
/// on all ranks alike.
pub fn predict_folder(
    images: &Path,
    output: &Path,
    options: &PredictOptions,
    comm: &dyn Communicator,
) -> Result<usize, InferError> {
    on_device(options.device, options.precision, comm, PredictFolder { images, output, options, comm })?
}

struct PredictFolder<'a> {
    images: &'a Path,
    output: &'a Path,
    options: &'a PredictOptions,
    comm: &'a dyn Communicator,
}

impl OnDevice for PredictFolder<'_> {
    type Output = Result<usize, InferError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let Self { images, output, options, comm } = self;
        predict_on::<B::InnerBackend>(images, output, options, comm, device)
    }
}

fn predict_on<B: NnOps>(
    images: &Path,
    output: &Path,
    options: &PredictOptions,
    comm: &dyn Communicator,
    device: B::Device,
) -> Result<usize, InferError> {
    let predictor = Predictor::<B>::open(&options.checkpoint, options.windows, device)?
        .with_memory(options.memory)
        .with_precision(options.precision);
    let dataset = predictor.dataset();
    let mut cases = find_cases(images, options, &predictor)?;
    let total = cases.len();
    let listing: Vec<_> = cases.iter().map(|case| (&case.id, case.bytes())).collect();
    check_agreement(comm, "images to predict", format!("{listing:?}").as_bytes())?;
    let own = share_of(comm, &cases.iter().map(CaseFiles::bytes).collect::<Vec<_>>());
    let mut number = 0..total;
    cases.retain(|_| number.next().is_some_and(|number| own.binary_search(&number).is_ok()));
    fs::create_dir_all(output).map_err(|error| write_error(output, error))?;

    // Whoever is done waits with its case in hand for the next one to take it.
    let (read, preprocessed) = bounded(0);
    let (predicted, to_write) = bounded(0);
    let mut failed = std::thread::scope(|scope| {
        let (cases, predictor) = (&cases, &predictor);
        scope.spawn(move || read_all(cases, predictor, &read));
        let writer = scope.spawn(move || write_all(&to_write, output, &dataset.file_ending));
        let mut failed = predict_all(&preprocessed, predictor, &predicted, options.save_probabilities, comm);
        drop(predicted);
        failed.extend(writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        failed
    });
    failed = gather(&failed, comm)?;
    if failed.is_empty() {
        return Ok(total);
    }
    failed.sort();
    Err(InferError::Cases { failed, total })
}

/// The cases of a folder of images; in the second stage of a cascade with the first one's label maps.
///
/// # Errors
/// The images cannot be found, or the network needs label maps that are not there, or takes none.
pub(crate) fn find_cases<B: NnOps>(
    images: &Path,
    options: &PredictOptions,
    predictor: &Predictor<B>,
) -> Result<Vec<CaseFiles>, InferError> {
    let dataset = predictor.dataset();
    let mut cases = find_images(images, &dataset.file_ending, dataset.num_channels())?;
    match &options.previous_stage {
        Some(_) if !predictor.is_cascaded() => {
            return Err(InferError::NotCascaded { path: options.checkpoint.clone() });
        }
        Some(folder) => add_previous_stage(&mut cases, folder, &dataset.file_ending)?,
        None => predictor.check_previous_stage()?,
    }
    Ok(cases)
}

/// Gives each case the label map that the previous stage of a cascade has made of it.
fn add_previous_stage(cases: &mut [CaseFiles], folder: &Path, file_ending: &str) -> Result<(), InferError> {
    for case in cases.iter_mut() {
        case.label = Some(folder.join(format!("{}{file_ending}", case.id))).filter(|path| path.is_file());
    }
    let missing: Vec<_> = cases.iter().filter(|case| case.label.is_none()).collect();
    match missing.first() {
        None => Ok(()),
        Some(first) => Err(InferError::PreviousMissing {
            folder: folder.to_owned(),
            number: missing.len(),
            first: first.id.clone(),
        }),
    }
}

/// The failures of all ranks.
fn gather(failed: &[String], comm: &dyn Communicator) -> Result<Vec<String>, InferError> {
    let message = serde_json::to_vec(failed).expect("strings can be written as JSON");
    let messages = comm.all_gather_bytes(&message, "cases that failed")?;
    // They come from the same program.
    Ok(messages.iter().flat_map(|message| serde_json::from_slice::<Vec<String>>(message).unwrap_or_default()).collect())
}

/// A case on its way, or why it goes no further.
type Outcome<T> = (String, Result<T, InferError>);
type Preprocessed = Outcome<PreprocessedCase>;
type Segmented = (String, Segmentation, Instant);

fn read_all<B: NnOps>(cases: &[CaseFiles], predictor: &Predictor<B>, to: &Sender<Preprocessed>) {
    for files in cases {
        let case = load(files, predictor.dataset().num_channels());
        let result = case.and_then(|case| predictor.preprocess(&case));
        // The receiver is gone only if it panicked.
        if to.send((files.id.clone(), result)).is_err() {
            return;
        }
    }
}

/// Reads a case, of which one NaN would make background of the whole image.
fn load(files: &CaseFiles, channels: usize) -> Result<Case, InferError> {
    let case = files.load(channels)?;
    match case.image.data.iter().filter(|intensity| !intensity.is_finite()).count() {
        0 => Ok(case),
        count => Err(DatasetError::invalid(&files.images[0], format_args!("NaN or infinite in {count} voxels")).into()),
    }
}

fn predict_all<B: NnOps>(
    from: &Receiver<Preprocessed>,
    predictor: &Predictor<B>,
    to: &Sender<Segmented>,
    save_probabilities: bool,
    comm: &dyn Communicator,
) -> Vec<String> {
    let mut failed = Vec::new();
    for (id, result) in from {
        let began = Instant::now();
        let segmented = result.and_then(|PreprocessedCase { data, properties, .. }| {
            comm.enter_long(&format!("prediction of {id}"));
            predictor.segment(data.view(), &properties, save_probabilities)
        });
        match segmented {
            Ok(segmentation) => {
                if to.send((id, segmentation, began)).is_err() {
                    break;
                }
            }
            Err(error) => failed.push(format!("{id}: {error}")),
        }
    }
    failed
}

fn write_all(from: &Receiver<Segmented>, output: &Path, file_ending: &str) -> Vec<String> {
    let mut failed = Vec::new();
    for (id, segmentation, began) in from {
        let path = output.join(format!("{id}{file_ending}"));
        let labels = write_labels(&path, &segmentation.labels).map_err(InferError::from);
        let written = labels.and_then(|()| match &segmentation.probabilities {
            Some(probabilities) => write_probabilities(&output.join(format!("{id}.npz")), probabilities),
            None => Ok(()),
        });
        match written {
            Ok(()) => tracing::info!("{id}: {:.1} s", began.elapsed().as_secs_f64()),
            Err(error) => failed.push(format!("{id}: {error}")),
        }
    }
    failed
}

/// Writes `probabilities`, `(class, z, y, x)`, under nnU-Net's key.
fn write_probabilities(path: &Path, probabilities: &Array4<f32>) -> Result<(), InferError> {
    let write = |file: &mut std::io::BufWriter<&mut fs::File>| {
        let mut npz = NpzWriter::new_compressed(file);
        npz.add_array("probabilities", probabilities).map_err(std::io::Error::other)?;
        npz.finish().map(|_| ()).map_err(std::io::Error::other)
    };
    fsio::write_atomically(path, write).map_err(|error| write_error(path, error))
}

fn write_error(path: &Path, source: std::io::Error) -> InferError {
    InferError::Write { path: path.to_owned(), source }
}
