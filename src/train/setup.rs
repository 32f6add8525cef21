//! Setup of a trainer from a configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::TrainError;
use super::exchange::ExchangeOptions;
use super::feed::Feed;
use super::objective;
use super::previous_stage::find_previous_stage;
use super::profile::Profile;
use super::saver::Saver;
use super::step::TrainStep;
use super::stop::StopRequest;
use super::trainer::Trainer;
use crate::config::{DistConfig, RunConfig};
use crate::telemetry::{MetricsEndpoint, Observers};
use nnunet_comm::distributed::{Communicator, check_consistency};
use nnunet_core::rng::Purpose;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::augment::Pipeline;
use nnunet_data::augment::cascade::PreviousStage;
use nnunet_data::dataset::{DatasetJson, Splits};
use nnunet_data::loader::{Loader, LoaderOptions, Sampler, SamplerOptions, Shard};
use nnunet_data::plan::{Configuration, Plans};
use nnunet_data::store::{
    ANNOTATED, CachedStore, CaseStore, NativeStore, StoreError, copy_label_maps_to_local_cache, copy_to_local_cache,
    read_case_properties,
};
use nnunet_data::work::{FoldId, WorkDir};
use nnunet_infer::NextStage;
use nnunet_interop::{Pretrained, load_pretrained};
use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::checkpoint::{Checkpoint, History, Keep, Progress, ReadError, Training};
use nnunet_nn::loss::weights;
use nnunet_nn::model::{ModelDescription, TensorFileError, TensorState, UNet};
use nnunet_nn::optim::Schedule;

/// Number of batches prepared ahead of the current one.
const PREFETCH: usize = 3;

/// Outputs of a run.
#[derive(Default)]
pub struct Outputs {
    pub observers: Observers,
    pub saver: Option<Saver>,
}

impl Outputs {
    /// Adds the Prometheus observer of this rank.
    pub fn with_metrics(self, endpoint: Option<&MetricsEndpoint>) -> Self {
        match endpoint {
            Some(endpoint) => Self { observers: self.observers.with(endpoint.observer()), ..self },
            None => self,
        }
    }
}

/// Data that every rank reads before training starts.
pub struct Job<'a> {
    pub config: &'a RunConfig,
    pub model: ModelDescription,
    pub configuration: Configuration,
    /// Folder of the store.
    pub folder: PathBuf,
    pub store: Arc<dyn CaseStore>,
    /// Training and validation cases of the fold; identical for [`FoldId::All`].
    pub train_cases: Vec<String>,
    pub validation_cases: Vec<String>,
    /// Later stages of a cascade that need segmentations from this one.
    pub next_stages: Vec<NextStage>,
    pub comm: &'a dyn Communicator,
}

impl<'a> Job<'a> {
    /// Reads plans, dataset description, split and the index of the store.
    ///
    /// # Errors
    /// Returns an error if one of them is missing or invalid or differs between ranks, or if the previous stage of a
    /// cascade has not predicted all cases.
    pub fn open(config: &'a RunConfig, work: &WorkDir, comm: &'a dyn Communicator) -> Result<Self, TrainError> {
        let plans = Plans::load(&work.clone().with_plans(&config.plans).plans())?;
        let dataset = DatasetJson::load(&work.dataset_json())?;
        let configuration = plans.configuration(&config.configuration)?;
        let folder = work.preprocessed(&configuration.data_identifier);
        let store = NativeStore::open(&folder)?;
        check_classes(&folder, &store, &dataset)?;
        check_spacing(&folder, &store, &configuration)?;
        let (train_cases, validation_cases) = match config.fold {
            FoldId::All => (store.case_ids().to_vec(), store.case_ids().to_vec()),
            FoldId::Number(fold) => {
                let splits = Splits::load(&work.splits())?;
                let (train, validation) = splits.fold(fold)?;
                (train.to_vec(), validation.to_vec())
            }
        };
        let cases = all_of([&train_cases, &validation_cases]);
        let previous = match configuration.previous_stage_name() {
            Some(stage) => find_previous_stage(work, config, stage, &cases)?,
            None => BTreeMap::new(),
        };
        let next_stages = next_stages(config, &plans, &configuration)?;
        let listing = format!("{previous:?}");
        let (folder, store) = match config.data.local_cache_dir.as_os_str().is_empty() {
            true => (folder, store.with_previous_stage(&previous)?),
            false => stage_cases(&folder, &cases, &previous, config, comm)?,
        };
        let store: Arc<dyn CaseStore> = Arc::new(store);
        let mirror_axes = if configuration.is_2d() { vec![1, 2] } else { vec![0, 1, 2] };
        let model = ModelDescription { plans, dataset, configuration: config.configuration.clone(), mirror_axes };
        let job =
            Self { config, model, configuration, folder, store, train_cases, validation_cases, next_stages, comm };
        let fingerprint = job.fingerprint() + &listing;
        check_consistency(comm, "configuration, plans or cases", fingerprint.as_bytes())?;
        Ok(job)
    }

    /// Returns everything that must be the same on all ranks.
    fn fingerprint(&self) -> String {
        let Self { config, model, train_cases, validation_cases, .. } = self;
        format!("{}\n{model:?}\n{train_cases:?}\n{validation_cases:?}", config.to_toml())
    }

    /// Builds this rank's trainer, from scratch or from `checkpoint_latest`. With `rollbacks`, the samples are those
    /// after this number of rollbacks, instead of the number in the checkpoint.
    ///
    /// # Errors
    /// Returns an error if the plans are not supported, or the checkpoint does not match them.
    pub fn trainer<B: ComputeBackend>(
        &'a self,
        resume: bool,
        rollbacks: Option<u64>,
        device: B::Device,
        outputs: impl FnOnce(&Training) -> Result<Outputs, TrainError>,
    ) -> Result<Trainer<'a, B>, TrainError> {
        let Self { config, comm, .. } = *self;
        let spec = self.model.network_spec()?;
        let loss = objective::loss(&config.loss, &self.model.dataset)?;
        let mut optimizer = objective::optimizer(&config.optimizer);
        if config.precision.scales_loss() {
            optimizer = optimizer.with_dynamic_scale();
        }
        let (network, training) = if resume {
            let path = config.run_dir().checkpoint_latest();
            let checkpoint = Checkpoint::read(&path, comm)?;
            let misfit = |error| TrainError::Checkpoint { path: path.clone(), defect: format!("{error}") };
            if let Some(what) = self.model.first_difference(&checkpoint.model)? {
                let defect = format!("was trained with a different {what} than in the plans");
                return Err(TrainError::Checkpoint { path, defect });
            }
            self.check_data(&checkpoint);
            let network = UNet::<B>::with_state(spec, &checkpoint.weights, &device).map_err(misfit)?;
            let specs: Vec<_> = network.parameters().iter().map(|parameter| parameter.spec.clone()).collect();
            optimizer.load_state(&specs, &checkpoint.optimizer, &device).map_err(misfit)?;
            (network, checkpoint.training)
        } else {
            let mut state = UNet::<B>::new(spec.clone(), config.seed, &device).state();
            if comm.rank() == 0 {
                self.begin_with_pretrained(&mut state)?;
            }
            broadcast(&mut state, comm)?;
            let network = UNet::with_state(spec, &state, &device).expect("the state of such a network");
            (network, Training::default())
        };
        let heads = network.heads();
        let head_weights = if config.deep_supervision { weights(heads) } else { only_first(heads) };
        let Outputs { observers, saver } = outputs(&training)?;
        let mut progress = training.progress;
        progress.rollbacks = rollbacks.unwrap_or(progress.rollbacks);
        let network = network.with_precision(config.precision);
        let step = TrainStep::new(network, optimizer, loss, head_weights, device)
            .with_checkpointing(config.training.gradient_checkpointing)
            .connect(exchange_options(config), comm)?;
        let feed = |purpose| Ok::<_, TrainError>(Feed::start(self.loader(purpose, &progress)?, step.upload())?);
        let train_batches = feed(Purpose::TrainSample)?;
        let validation_batches = match config.training.validation_iterations {
            0 => None,
            // A split may have no validation cases.
            _ if self.validation_cases.is_empty() => None,
            _ => Some(feed(Purpose::ValSample)?),
        };
        Ok(Trainer {
            job: self,
            config,
            comm,
            step,
            schedule: Schedule::new(
                &config.schedule,
                config.optimizer.lr,
                config.training.epochs,
                config.training.iterations_per_epoch,
            ),
            train_batches,
            validation_batches,
            progress,
            stop_request: StopRequest::listen(),
            profile: Profile::new(0, config.run_dir().trace()),
            data: self.store.fingerprint()?,
            skipped: [0; 2],
            saver,
            observers,
        })
    }

    /// Warns if the cases have been preprocessed again since the checkpoint: the run may continue, but its result
    /// differs.
    fn check_data(&self, checkpoint: &Checkpoint) {
        let is_other = self.store.fingerprint().is_ok_and(|data| data != checkpoint.training.data);
        if self.comm.rank() == 0 && is_other {
            let folder = self.folder.display();
            tracing::warn!(
                "{folder}: the cases differ from those used so far in this run; training continues with these"
            );
        }
    }

    /// Creates the checkpoint writer of the run.
    pub(super) fn saver(&self, resume: bool, training: &Training) -> Result<Saver, TrainError> {
        let Self { config, .. } = self;
        let iterations = config.training.iterations_per_epoch as u64;
        let keep =
            Keep { newest: config.training.keep_checkpoints, every: config.training.keep_every as u64 * iterations };
        let history = History::open(&config.run_dir(), keep, resume)?;
        if resume {
            history.goes_on_from(training.progress.steps(iterations), training.is_best)?;
        }
        Saver::start(history).map_err(|error| TensorFileError::new(&config.run_dir, error).into())
    }

    /// Replaces random weights by those of the pretrained weights file, if the configuration names one.
    fn begin_with_pretrained(&self, state: &mut [TensorState]) -> Result<(), TrainError> {
        let path = &self.config.training.pretrained_weights;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let Pretrained { taken, kept } = load_pretrained(path, state)?;
        tracing::info!("{}: loaded {taken} of {} tensors", path.display(), state.len());
        if !kept.is_empty() {
            tracing::warn!("reinitialized, since the number of classes differs: {}", kept.join(", "));
        }
        Ok(())
    }

    /// Creates this rank's loader at the current position of the run: augmented training samples, or validation samples
    /// without augmentation.
    pub(super) fn loader(&self, purpose: Purpose, progress: &Progress) -> Result<Loader, TrainError> {
        let Self { config, comm, configuration, .. } = self;
        let patch_size = configuration.patch_size3();
        let is_training = purpose == Purpose::TrainSample;
        let preset = if is_training { config.data.augmentation } else { AugmentationPreset::None };
        let (mirror_axes, masked) = (&self.model.mirror_axes, &configuration.use_mask_for_norm);
        let classes = || self.model.dataset.foreground_classes();
        let pipeline = Pipeline::preset(preset, patch_size, mirror_axes, masked);
        let pipeline = Arc::new(match (configuration.previous_stage_name(), preset) {
            (None, _) => pipeline,
            (Some(_), AugmentationPreset::None) => pipeline.with_previous_stage(PreviousStage::new(classes())),
            (Some(_), _) => pipeline.with_previous_stage(PreviousStage::nnunet(classes())),
        });
        let accumulate = if is_training { config.training.gradient_accumulation_steps } else { 1 };
        let cases = if is_training { &self.train_cases } else { &self.validation_cases };
        let sampler = SamplerOptions {
            seed: if is_training { seed_of_samples(config.seed, progress.rollbacks) } else { config.seed },
            purpose,
            patch_size: pipeline.read_patch_size(),
            final_patch_size: patch_size,
            global_batch_size: config.training.batch_size * comm.world_size() * accumulate,
            oversample_foreground: config.data.oversample_foreground,
            oversampling: config.data.oversampling,
            shard: if is_training { config.data.shard } else { Shard::Random },
        };
        let store: Arc<dyn CaseStore> = match (config.data.cache_gb * 1e9) as usize {
            0 => self.store.clone(),
            // Validation samples are not cached, since any of their cases may be needed at any time.
            bound if is_training => Arc::new(CachedStore::new(self.store.clone(), bound)),
            _ => self.store.clone(),
        };
        let sampler = Sampler::new(store.clone(), cases.clone(), sampler)?;
        let options = LoaderOptions {
            rank: comm.rank(),
            world_size: comm.world_size(),
            batch_per_rank: config.training.batch_size,
            workers: if is_training { config.data.workers } else { 1 },
            prefetch: PREFETCH,
            epochs: progress.next_epoch as u64..config.training.epochs as u64,
            first_iteration: if is_training { (progress.next_iteration * accumulate) as u64 } else { 0 },
            iterations_per_epoch: match is_training {
                true => (config.training.iterations_per_epoch * accumulate) as u64,
                false => config.training.validation_iterations as u64,
            },
        };
        Ok(Loader::start(store, sampler, pipeline, options)?)
    }
}

impl From<ReadError> for TrainError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::File(error) => error.into(),
            ReadError::Comm(error) => error.into(),
        }
    }
}

/// Returns the seed of the samples, which changes with each rollback. The increment is that of SplitMix64.
fn seed_of_samples(seed: u64, rollbacks: u64) -> u64 {
    seed.wrapping_add(rollbacks.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Returns the sorted union of the cases of a fold.
fn all_of(parts: [&Vec<String>; 2]) -> Vec<String> {
    let mut cases: Vec<String> = parts.into_iter().flatten().cloned().collect();
    cases.sort();
    cases.dedup();
    cases
}

/// Opens the local copies of cases on this host and of the previous stage's segmentations; missing copies are created.
fn stage_cases(
    folder: &Path,
    cases: &[String],
    previous: &BTreeMap<String, PathBuf>,
    config: &RunConfig,
    comm: &dyn Communicator,
) -> Result<(PathBuf, NativeStore), TrainError> {
    let staged = copy_to_local_cache(folder, cases, &config.data.local_cache_dir, comm)?;
    let previous = copy_label_maps_to_local_cache(previous, &config.data.local_cache_dir, comm)?;
    let store = NativeStore::open(&staged)?.with_previous_stage(&previous)?;
    Ok((staged, store))
}

/// Returns the stages after this one, which must be in the plans before training starts.
fn next_stages(config: &RunConfig, plans: &Plans, configuration: &Configuration) -> Result<Vec<NextStage>, TrainError> {
    let stage = |name: &str| {
        let folder = config.run_dir().predicted_next_stage(name);
        Ok(NextStage { folder, spacing: plans.configuration(name)?.spacing3() })
    };
    configuration.next_stage_names().into_iter().map(stage).collect()
}

/// Checks that the store matches the dataset description. A class that is missing in the description would have no
/// logit, and with an ignore label, sampling needs the locations of the annotated voxels.
fn check_classes(folder: &Path, store: &dyn CaseStore, dataset: &DatasetJson) -> Result<(), StoreError> {
    let ignores = dataset.ignore_label().is_some();
    let known: Vec<i16> = dataset.foreground().iter().map(|class| class.output).chain([ANNOTATED]).collect();
    let is_annotated = |case: &String| Ok(store.info(case)?.class_locations.contains_key(&ANNOTATED));
    let annotated: Vec<bool> = store.case_ids().iter().map(is_annotated).collect::<Result<_, StoreError>>()?;
    if annotated.contains(&true) != ignores {
        let defect = "was preprocessed with a different ignore label than in dataset.json; preprocess again".into();
        return Err(StoreError { path: folder.to_path_buf(), defect });
    }
    for case in store.case_ids() {
        if let Some(class) = store.info(case)?.class_locations.keys().find(|class| !known.contains(class)) {
            let defect = format!("contains voxels of class {class}, which is not in dataset.json; preprocess again");
            return Err(StoreError { path: folder.join(format!("{case}.json")), defect });
        }
    }
    Ok(())
}

/// Checks the spacing, since several plans may name the same data and must agree on its spacing.
fn check_spacing(folder: &Path, store: &dyn CaseStore, configuration: &Configuration) -> Result<(), StoreError> {
    let Some(case) = store.case_ids().first() else { return Ok(()) };
    let found = read_case_properties(folder, case)?.spacing_after_resampling;
    let planned = &configuration.spacing;
    // In 2D, the distance between slices is not resampled.
    let axes = found.iter().rev().zip(planned.iter().rev());
    if axes.into_iter().all(|(found, planned)| (found - planned).abs() <= 1e-6 * planned) {
        return Ok(());
    }
    let defect = format!("was resampled to {found:?} mm, but the plans say {planned:?} mm; preprocess again");
    Err(StoreError { path: folder.join(format!("{case}.json")), defect })
}

pub(super) fn exchange_options(config: &RunConfig) -> ExchangeOptions {
    let DistConfig { bucket_mb, compression, overlap, .. } = config.dist;
    // The bucket size is in f32 values, whatever the transfer format.
    let bucket_len = (bucket_mb * f64::from(1 << 20) / size_of::<f32>() as f64) as usize;
    ExchangeOptions {
        bucket_len,
        comm_dtype: compression,
        overlap,
        accumulate: config.training.gradient_accumulation_steps,
    }
}

/// Returns the head weights of a loss without deep supervision.
fn only_first(heads: usize) -> Vec<f64> {
    (0..heads).map(|head| if head == 0 { 1.0 } else { 0.0 }).collect()
}

/// Broadcasts the weights of rank 0 to all ranks.
fn broadcast(state: &mut [TensorState], comm: &dyn Communicator) -> Result<(), TrainError> {
    for tensor in state {
        comm.broadcast(&mut tensor.values, 0, &tensor.spec.name)?;
    }
    Ok(())
}
