//! Dumps of steps whose loss or gradient is NaN or infinite, for `nnunet-dist replay`.

use std::path::{Path, PathBuf};

use ndarray::{Array4, Array5};
use serde::{Deserialize, Serialize};

use nnunet_data::loader::{Batch, SampleId};
use nnunet_data::work::RunDir;
use nnunet_nn::checkpoint::Checkpoint;
use nnunet_nn::model::{ParameterSpec, TensorFileError, TensorState, read_tensors, write_tensors};

/// File name prefix of the batches; the rank follows.
const BATCHES: &str = "batches_rank_";
const STEP: &str = "step.json";

/// A step whose loss or gradient is NaN or infinite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NanDump {
    /// Epoch, from 0; `iteration` is the step within it, from 0.
    pub epoch: usize,
    pub iteration: usize,
    /// Values of the step; null if NaN or infinite.
    pub loss: Option<f64>,
    pub gradient_norm: Option<f64>,
    pub lr: f64,
    /// Number of steps made after this one; the dumped weights include their updates.
    pub later_steps: usize,
    /// Cases of all ranks.
    pub cases: Vec<String>,
}

/// Batches of a step on one rank, as passed to the network.
#[derive(Clone, Debug, PartialEq)]
pub struct RankBatches {
    pub rank: usize,
    /// Batches of the step, one unless gradients are accumulated.
    pub batches: Vec<Batch>,
}

pub(super) fn write_step(folder: &Path, dump: &NanDump, checkpoint: &Checkpoint) -> Result<(), TensorFileError> {
    checkpoint.write(folder)?;
    let path = folder.join(STEP);
    nnunet_core::fsio::write_json(&path, dump).map_err(|error| TensorFileError::new(&path, error))
}

impl NanDump {
    /// Reads the dump in `folder`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged.
    pub fn read(folder: &Path) -> Result<(Self, Vec<RankBatches>), TensorFileError> {
        let dump = Self::read_step(folder)?;
        let entries = std::fs::read_dir(folder).map_err(|error| TensorFileError::new(folder, error))?;
        let rank = |name: String| name.strip_prefix(BATCHES)?.strip_suffix(".safetensors")?.parse().ok();
        let mut ranks: Vec<usize> =
            entries.filter_map(|entry| rank(entry.ok()?.file_name().into_string().ok()?)).collect();
        ranks.sort_unstable();
        if ranks.is_empty() {
            return Err(TensorFileError::new(folder, "contains no batches"));
        }
        let batches = ranks.into_iter().map(|rank| RankBatches::read(folder, rank)).collect::<Result<_, _>>()?;
        Ok((dump, batches))
    }

    fn read_step(folder: &Path) -> Result<Self, TensorFileError> {
        let path = folder.join(STEP);
        let fail = |error: &dyn std::fmt::Display| TensorFileError::new(&path, error);
        let text = std::fs::read(&path).map_err(|error| fail(&error))?;
        serde_json::from_slice(&text).map_err(|error| fail(&error))
    }
}

/// Lists the dumps of a run by folder, without reading weights and batches.
///
/// # Errors
/// Returns an error if a dump is damaged.
pub fn list_nan_dumps(run: &RunDir) -> Result<Vec<(PathBuf, NanDump)>, TensorFileError> {
    let parents = [run.nan_dumps(), run.former_nan_dumps()];
    let entries = parents.iter().flat_map(|parent| std::fs::read_dir(parent).into_iter().flatten().flatten());
    // An incomplete dump does not have this file yet.
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|folder| folder.join(STEP).is_file()).collect();
    folders.sort();
    folders.into_iter().map(|folder| NanDump::read_step(&folder).map(|dump| (folder, dump))).collect()
}

impl RankBatches {
    fn path(folder: &Path, rank: usize) -> PathBuf {
        folder.join(format!("{BATCHES}{rank}.safetensors"))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), TensorFileError> {
        let samples: Vec<&[SampleId]> = self.batches.iter().map(|batch| batch.samples.as_slice()).collect();
        let tensors = self.batches.iter().enumerate().flat_map(|(number, batch)| {
            let tensor = |name: &str, shape: &[usize], values| TensorState {
                spec: ParameterSpec { name: format!("{number}.{name}"), shape: shape.to_vec() },
                values,
            };
            let labels = batch.labels.iter().map(|&label| f32::from(label)).collect();
            [
                tensor("images", batch.images.shape(), batch.images.iter().copied().collect()),
                tensor("labels", batch.labels.shape(), labels),
            ]
        });
        write_tensors(&Self::path(folder, self.rank), &samples, &tensors.collect::<Vec<_>>())
    }

    fn read(folder: &Path, rank: usize) -> Result<Self, TensorFileError> {
        let path = Self::path(folder, rank);
        let (samples, tensors): (Vec<Vec<SampleId>>, Vec<TensorState>) = read_tensors(&path)?;
        let batches = samples.into_iter().enumerate().map(|(number, samples)| {
            let find = |name: &str| {
                let name = format!("{number}.{name}");
                let found = tensors.iter().find(|tensor| tensor.spec.name == name);
                found.ok_or_else(|| TensorFileError::new(&path, format!("has no tensor {name}")))
            };
            let (images, labels) = (find("images")?, find("labels")?);
            let misfit = |error: ndarray::ShapeError| TensorFileError::new(&path, error);
            let shape = |tensor: &TensorState, axes: usize| match tensor.spec.shape.len() == axes {
                true => Ok(tensor.spec.shape.clone()),
                false => Err(TensorFileError::new(&path, format!("{} does not have {axes} axes", tensor.spec.name))),
            };
            let [n, c, z, y, x] = shape(images, 5)?[..] else { unreachable!("five axes") };
            let images = Array5::from_shape_vec((n, c, z, y, x), images.values.clone()).map_err(misfit)?;
            let [n, z, y, x] = shape(labels, 4)?[..] else { unreachable!("four axes") };
            let labels = labels.values.iter().map(|&label| label as i16).collect();
            let labels = Array4::from_shape_vec((n, z, y, x), labels).map_err(misfit)?;
            if images.dim().0 != samples.len() || labels.dim().0 != samples.len() {
                return Err(TensorFileError::new(&path, "does not have one patch per sample"));
            }
            Ok(Batch { images, labels, samples })
        });
        Ok(Self { rank, batches: batches.collect::<Result<_, _>>()? })
    }
}
