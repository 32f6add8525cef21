//! Replay of a step whose loss or gradient was NaN or infinite, sample by sample.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use ndarray::{ArrayView4, ArrayView5, Axis, concatenate};

use super::TrainError;
use super::loss_and_optimizer::{build_loss, build_optimizer};
use super::nan_dump::{NanDump, RankBatches};
use super::step::TrainStep;
use super::validation::Validation;
use crate::config::RunConfig;
use nnunet_comm::distributed::Single;
use nnunet_data::loader::SampleId;
use nnunet_data::work::ConfigError;
use nnunet_nn::Device;
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};
use nnunet_nn::checkpoint::Checkpoint;
use nnunet_nn::loss::head_weights;
use nnunet_nn::model::UNet;
use nnunet_nn::ops::host;

/// Result of a replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    pub dump: NanDump,
    pub samples: Vec<ReplayedSample>,
    /// Names of parameters with a weight (`weights`) or a gradient of the whole step (`gradients`) that is NaN or
    /// infinite.
    pub weights: Vec<String>,
    pub gradients: Vec<String>,
}

/// Result for a single sample.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayedSample {
    pub rank: usize,
    pub sample: SampleId,
    /// Minimum and maximum of the finite intensities.
    pub range: [f32; 2],
    /// Number of intensities that are NaN or infinite.
    pub not_finite: usize,
    /// Labels that occur.
    pub labels: Vec<i16>,
    /// Loss of a batch with only this sample.
    pub loss: f64,
}

impl ReplayedSample {
    /// Returns whether this sample alone explains a loss that is NaN or infinite.
    pub fn is_culprit(&self) -> bool {
        self.not_finite > 0 || !self.loss.is_finite()
    }
}

/// Replays the step dumped in `folder`, on one device.
///
/// # Errors
/// Returns an error if a file is missing or damaged, or the device cannot be used.
pub fn replay(folder: &Path, device: Option<Device>) -> Result<Replayed, TrainError> {
    let (dump, ranks) = NanDump::read(folder)?;
    let checkpoint = Checkpoint::read(folder, &Single)?;
    let config: RunConfig = toml::from_str(&checkpoint.training.config)
        .map_err(|error| ConfigError::new(folder.display(), format!("written by a different version: {error}")))?;
    let device = device.unwrap_or(config.device);
    let folder = folder.to_owned();
    on_device(device, config.precision, &Single, Replay { config, checkpoint, dump, ranks, folder })?
}

struct Replay {
    config: RunConfig,
    checkpoint: Checkpoint,
    dump: NanDump,
    ranks: Vec<RankBatches>,
    folder: PathBuf,
}

impl OnDevice for Replay {
    type Output = Result<Replayed, TrainError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let Self { config, checkpoint, dump, ranks, folder } = self;
        let misfit = |error: &dyn Display| TrainError::Checkpoint { path: folder.clone(), defect: error.to_string() };
        let spec = checkpoint.model.network_spec()?;
        let network = UNet::<B>::with_state(spec, &checkpoint.weights, &device).map_err(|error| misfit(&error))?;
        let head_weights = head_weights(network.heads(), config.deep_supervision);
        let loss = build_loss(&config.loss, &checkpoint.model.dataset)?;
        let network = network.with_precision(config.precision);
        let optimizer = build_optimizer(&config.optimizer);
        let mut step = TrainStep::new(network, optimizer, loss, head_weights, device)
            .with_checkpointing(config.training.gradient_checkpointing);

        let is_bad = |values: &Vec<f32>| values.iter().any(|value| !value.is_finite());
        let weights = checkpoint.weights.iter().filter(|tensor| is_bad(&tensor.values));
        let weights = weights.map(|tensor| tensor.spec.name.clone()).collect();
        let samples = samples(&step, &ranks)?;
        let names: Vec<String> = step.network.parameters().iter().map(|p| p.spec.name.clone()).collect();
        let mut gradients = Vec::new();
        for number in 0..ranks[0].batches.len() {
            // Use the global batch, since Dice is computed over all its samples.
            let parts: Vec<_> = ranks.iter().filter_map(|rank| rank.batches.get(number)).collect();
            let images: Vec<ArrayView5<f32>> = parts.iter().map(|batch| batch.images.view()).collect();
            let labels: Vec<ArrayView4<i16>> = parts.iter().map(|batch| batch.labels.view()).collect();
            let joined = concatenate(Axis(0), &images).and_then(|images| Ok((images, concatenate(Axis(0), &labels)?)));
            let (images, labels) = joined.map_err(|error| misfit(&error))?;
            step.add(step.uploader().batch(images.view(), labels.view()), &Single)?;
            for (name, gradient) in names.iter().zip(step.gradients()?) {
                let values = gradient.map(host::<B::InnerBackend>);
                if values.is_some_and(|values| is_bad(&values)) && !gradients.contains(name) {
                    gradients.push(name.clone());
                }
            }
        }
        Ok(Replayed { dump, samples, weights, gradients })
    }
}

fn samples<B: ComputeBackend>(step: &TrainStep<B>, ranks: &[RankBatches]) -> Result<Vec<ReplayedSample>, TrainError> {
    let network = step.network.valid();
    let mut samples = Vec::new();
    for RankBatches { rank, batches } in ranks {
        for batch in batches {
            for (number, sample) in batch.samples.iter().enumerate() {
                let at = number..number + 1;
                let images = batch.images.slice_axis(Axis(0), at.clone().into());
                let labels = batch.labels.slice_axis(Axis(0), at.into());
                let mut alone = Validation::new(&network, &step.loss, &step.head_weights, &step.device);
                alone.add(step.uploader().batch(images, labels), &Single)?;
                let mut present: Vec<i16> = labels.iter().copied().collect();
                present.sort_unstable();
                present.dedup();
                let finite = images.iter().copied().filter(|value| value.is_finite());
                samples.push(ReplayedSample {
                    rank: *rank,
                    sample: sample.clone(),
                    range: finite.fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], value| {
                        [low.min(value), high.max(value)]
                    }),
                    not_finite: images.iter().filter(|value| !value.is_finite()).count(),
                    labels: present,
                    loss: alone.finish(&Single)?.loss,
                });
            }
        }
    }
    Ok(samples)
}
