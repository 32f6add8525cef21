//! Data of a run that every rank reads before training starts: plans, split, preprocessed cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::TrainError;
use super::previous_stage::find_previous_stage;
use crate::config::RunConfig;
use nnunet_comm::distributed::{Communicator, check_consistency};
use nnunet_core::rng::Purpose;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::augment::Pipeline;
use nnunet_data::augment::cascade::PreviousStage;
use nnunet_data::dataset::{DatasetJson, Splits};
use nnunet_data::loader::{Loader, LoaderOptions, Sampler, SamplerOptions, Shard};
use nnunet_data::plan::{Configuration, Plans};
use nnunet_data::preprocess::Manifest;
use nnunet_data::store::{
    ANNOTATED, CachedStore, CaseStore, NativeStore, StoreError, copy_label_maps_to_local_cache, copy_to_local_cache,
    read_case_properties,
};
use nnunet_data::work::{FoldId, Source, WorkDir};
use nnunet_infer::NextStage;
use nnunet_nn::checkpoint::Progress;
use nnunet_nn::model::ModelDescription;

/// Number of batches prepared ahead of the current one.
const PREFETCH: usize = 3;

/// Data that every rank reads before training starts.
pub struct TrainingContext<'a> {
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

impl<'a> TrainingContext<'a> {
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
        if comm.rank() == 0 {
            check_manifest(&folder, &store, &plans, config, work, &dataset)?;
        }
        let (train_cases, validation_cases) = match config.fold {
            FoldId::All => (store.case_ids().to_vec(), store.case_ids().to_vec()),
            FoldId::Number(fold) => {
                let splits = Splits::load(&work.splits())?;
                let (train, validation) = splits.fold(fold)?;
                (train.to_vec(), validation.to_vec())
            }
        };
        let cases = sorted_union([&train_cases, &validation_cases]);
        let previous = match configuration.previous_stage_name() {
            Some(stage) => find_previous_stage(work, config, stage, &cases)?,
            None => BTreeMap::new(),
        };
        let next_stages = next_stages(config, &plans, &configuration)?;
        let listing = format!("{previous:?}");
        let (folder, store) = match config.data.local_cache_dir.as_os_str().is_empty() {
            true => (folder, store.with_previous_stage(&previous)?),
            false => cases_in_local_cache(&folder, &cases, &previous, config, comm)?,
        };
        let store: Arc<dyn CaseStore> = Arc::new(store);
        let mirror_axes = if configuration.is_2d() { vec![1, 2] } else { vec![0, 1, 2] };
        let model = ModelDescription { plans, dataset, configuration: config.configuration.clone(), mirror_axes };
        let context =
            Self { config, model, configuration, folder, store, train_cases, validation_cases, next_stages, comm };
        let fingerprint = context.fingerprint() + &listing;
        check_consistency(comm, "configuration, plans or cases", fingerprint.as_bytes())?;
        Ok(context)
    }

    /// Returns everything that must be the same on all ranks.
    fn fingerprint(&self) -> String {
        let Self { config, model, train_cases, validation_cases, .. } = self;
        format!("{}\n{model:?}\n{train_cases:?}\n{validation_cases:?}", config.to_toml())
    }

    /// Creates this rank's loader at the current position of the run: augmented training samples, or validation samples
    /// without augmentation.
    pub(super) fn loader(&self, purpose: Purpose, progress: &Progress) -> Result<Loader, TrainError> {
        let Self { config, comm, .. } = self;
        let is_training = purpose == Purpose::TrainSample;
        let accumulate = if is_training { config.training.gradient_accumulation_steps } else { 1 };
        let cases = if is_training { &self.train_cases } else { &self.validation_cases };
        let pipeline = self.pipeline(is_training);
        let sampler = SamplerOptions {
            seed: if is_training { seed_of_samples(config.seed, progress.rollbacks) } else { config.seed },
            purpose,
            patch_size: pipeline.read_patch_size(),
            final_patch_size: self.configuration.patch_size3(),
            global_batch_size: config.training.batch_size * comm.world_size() * accumulate,
            oversample_foreground: config.data.oversample_foreground,
            oversampling: config.data.oversampling,
            shard: if is_training { config.data.shard } else { Shard::Random },
        };
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
        let store = self.sampled_store(is_training);
        let sampler = Sampler::new(store.clone(), cases.clone(), sampler)?;
        Ok(Loader::start(store, sampler, Arc::new(pipeline), options)?)
    }

    /// Returns the transforms of a sample.
    fn pipeline(&self, is_training: bool) -> Pipeline {
        let preset = if is_training { self.config.data.augmentation } else { AugmentationPreset::None };
        let (mirror_axes, masked) = (&self.model.mirror_axes, &self.configuration.use_mask_for_norm);
        let pipeline = Pipeline::preset(preset, self.configuration.patch_size3(), mirror_axes, masked);
        let classes = || self.model.dataset.foreground_classes();
        match (self.configuration.previous_stage_name(), preset) {
            (None, _) => pipeline,
            (Some(_), AugmentationPreset::None) => pipeline.with_previous_stage(PreviousStage::new(classes())),
            (Some(_), _) => pipeline.with_previous_stage(PreviousStage::nnunet(classes())),
        }
    }

    /// Returns the store from which samples are read. Validation samples are not cached, since any of their cases may be
    /// needed at any time.
    fn sampled_store(&self, is_training: bool) -> Arc<dyn CaseStore> {
        match (self.config.data.cache_gb * 1e9) as usize {
            limit if limit > 0 && is_training => Arc::new(CachedStore::new(self.store.clone(), limit)),
            _ => self.store.clone(),
        }
    }
}

/// Returns the seed of the samples, which changes with each rollback. The increment is that of SplitMix64.
fn seed_of_samples(seed: u64, rollbacks: u64) -> u64 {
    seed.wrapping_add(rollbacks.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Returns the sorted union of the cases of a fold.
fn sorted_union(parts: [&Vec<String>; 2]) -> Vec<String> {
    let mut cases: Vec<String> = parts.into_iter().flatten().cloned().collect();
    cases.sort();
    cases.dedup();
    cases
}

/// Opens the local copies of cases on this host and of the previous stage's segmentations; missing copies are created.
fn cases_in_local_cache(
    folder: &Path,
    cases: &[String],
    previous: &BTreeMap<String, PathBuf>,
    config: &RunConfig,
    comm: &dyn Communicator,
) -> Result<(PathBuf, NativeStore), TrainError> {
    let folder = copy_to_local_cache(folder, cases, &config.data.local_cache_dir, comm)?;
    let previous = copy_label_maps_to_local_cache(previous, &config.data.local_cache_dir, comm)?;
    let store = NativeStore::open(&folder)?.with_previous_stage(&previous)?;
    Ok((folder, store))
}

/// Returns the stages after this one, which must be in the plans before training starts.
fn next_stages(config: &RunConfig, plans: &Plans, configuration: &Configuration) -> Result<Vec<NextStage>, TrainError> {
    let stage = |name: &str| {
        let folder = config.run_dir().predicted_next_stage(name);
        Ok(NextStage { folder, spacing: plans.configuration(name)?.spacing3() })
    };
    configuration.next_stage_names().into_iter().map(stage).collect()
}

/// Checks that plans, dataset and raw files are those of the preprocessing.
fn check_manifest(
    folder: &Path,
    store: &dyn CaseStore,
    plans: &Plans,
    config: &RunConfig,
    work: &WorkDir,
    dataset: &DatasetJson,
) -> Result<(), StoreError> {
    // A dataset that was moved is reported where its label maps are looked for.
    let raw = Source::load(work).ok().map(|source| source.dataset);
    match Manifest::load(folder)? {
        Some(manifest) => {
            manifest.check(folder, plans, &config.configuration, dataset, raw.as_deref(), store.case_ids())
        }
        None => {
            let folder = folder.display();
            tracing::warn!("{folder}: has no manifest, so changes of plans and images since then are not noticed");
            Ok(())
        }
    }
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
