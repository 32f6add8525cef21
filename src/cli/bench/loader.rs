//! `nnunet-dist bench loader`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;

use crate::bench::{GeneratedStore, LoaderBench, Report};
use crate::cli::plans::{self, PlansFlag};
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::augment::Pipeline;
use nnunet_data::augment::cascade::PreviousStage;
use nnunet_data::dataset::DatasetJson;
use nnunet_data::store::{CaseStore, NativeStore, StoreError, label_map};
use nnunet_data::work::WorkDir;

/// Number of cases to generate if no work folder is given.
const CASES: usize = 20;

/// Measure each transform, all transforms and the whole loader, in samples per second of one core.
///
/// Reads generated cases that are a little smaller than the patch, like those of Hippocampus, or the preprocessed cases
/// of a work folder. The row of a transform measures a sample to which it is applied; the factor after its name is the
/// probability of that. `augment` measures the whole pipeline of nnU-Net for a loaded sample; `loader` reads, augments
/// and assembles batches.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench loader
  nnunet-dist bench loader --patch 128,128,128 --channels 4 --batch-size 2
  nnunet-dist bench loader -w hippocampus -c 3d_fullres --batch-size 9 --json")]
pub struct Loader {
    /// Work folder with the preprocessed cases to read [default: generated cases].
    #[arg(short, long, value_name = "DIR", requires = "configuration")]
    work: Option<PathBuf>,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configuration of the plans in the work folder.
    #[arg(short, long, value_name = "NAME", requires = "work")]
    configuration: Option<String>,

    /// Samples per batch.
    #[arg(short, long, value_name = "N", default_value_t = 9)]
    batch_size: usize,

    /// Patch size [default: 40,56,40 or the configuration's].
    #[arg(long, value_name = "Z,Y,X", value_delimiter = ',')]
    patch: Option<Vec<usize>>,

    /// Channels of the generated cases.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "work")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..))]
    channels: u8,

    /// Load the labels as the first stage's segmentation, as for the second stage of a cascade; always on if the
    /// configuration is one.
    #[arg(long)]
    cascade: bool,

    /// Augmentation preset.
    #[arg(long, value_enum, value_name = "PRESET", default_value = "nnunet")]
    augmentation: AugmentationPreset,
}

impl Loader {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let patch = match self.patch.as_deref() {
            None => None,
            Some(&[z, y, x]) if z * y * x > 0 => Some([z, y, x]),
            Some(other) => bail!("--patch: {other:?} is not a patch size; give three numbers, such as 40,56,40"),
        };
        match (&self.work, &self.configuration) {
            (Some(work), Some(configuration)) => {
                let work = self.plans.on(WorkDir::new(work));
                let configuration = plans::load(&work)?.configuration(configuration)?;
                let dataset = DatasetJson::load(&work.dataset_json())?;
                let is_cascade = self.cascade || configuration.previous_stage_name().is_some();
                let classes = is_cascade.then(|| dataset.foreground_classes());
                let store = open(&work.preprocessed(&configuration.data_identifier), is_cascade)?;
                let patch = patch.unwrap_or(configuration.patch_size3());
                self.bench(store, patch, &configuration.use_mask_for_norm, classes, rounds)
            }
            _ => {
                let (channels, patch) = (usize::from(self.channels), patch.unwrap_or([40, 56, 40]));
                let generated = GeneratedStore::new(CASES, channels, patch.map(|extent| (extent * 9).div_ceil(10)))?;
                let store = open(generated.folder(), self.cascade)?;
                self.bench(store, patch, &vec![false; channels], self.cascade.then(|| vec![1, 2]), rounds)
            }
        }
    }

    fn bench(
        &self,
        store: NativeStore,
        patch: [usize; 3],
        masked: &[bool],
        classes_of_cascade: Option<Vec<i16>>,
        rounds: usize,
    ) -> anyhow::Result<Report> {
        let mirror_axes: &[usize] = if patch[0] == 1 { &[1, 2] } else { &[0, 1, 2] };
        let pipeline = Pipeline::preset(self.augmentation, patch, mirror_axes, masked);
        let pipeline = match classes_of_cascade {
            Some(classes) => pipeline.with_previous_stage(PreviousStage::nnunet(classes)),
            None => pipeline,
        };
        let bench = LoaderBench::new(Arc::new(store), pipeline, self.batch_size).context("bench loader")?;
        Ok(bench.run(rounds)?)
    }
}

/// Opens a store; for a cascade, its own labels serve as the segmentations of the first stage.
fn open(folder: &Path, is_cascade: bool) -> Result<NativeStore, StoreError> {
    let store = NativeStore::open(folder)?;
    if !is_cascade {
        return Ok(store);
    }
    let label_maps = store.case_ids().iter().map(|id| (id.clone(), label_map(folder, id))).collect();
    store.with_previous_stage(&label_maps)
}
