//! Benchmarks of the data path: `nnunet-dist bench loader`, `preprocess` and `resample`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;
use ndarray::{Array3, Axis, concatenate};
use nnunet_data::augment::cascade::PreviousStage;
use nnunet_data::augment::{AugmentationPreset, Pipeline};
use nnunet_data::dataset::{Dataset, DatasetJson};
use nnunet_data::phantom::PhantomOptions;
use nnunet_data::plan::PlannerOptions;
use nnunet_data::preprocess::ResourceLimits;
use nnunet_data::store::{CaseStore, NativeStore, StoreError, label_map};
use nnunet_data::work::WorkDir;
use nnunet_data::{dataset, plan};
use nnunet_image::{self as image, Volume};

use crate::bench::{self, GeneratedStore, LoaderBench, Report};
use crate::cli::plans::{self, PlansFlag};
use crate::cli::preprocess::bytes;

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
                let work = self.plans.in_work(WorkDir::new(work));
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

/// Number of generated cases if no dataset is given: enough to keep all cores busy.
const PHANTOMS: usize = 24;
const PHANTOM: [usize; 3] = [96, 112, 96];

/// Measure preprocessing of a dataset's training cases: the whole, and each step on the first 16 cases.
///
/// The dataset is planned first; this is not measured. Output goes to a temporary folder; TMPDIR selects its disk.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench preprocess
  nnunet-dist bench preprocess -d Task04_Hippocampus -c 3d_fullres --rounds 3")]
pub struct Preprocess {
    /// Raw dataset [default: 24 generated cases of about 96 x 112 x 96 voxels].
    #[arg(short, long, value_name = "DIR")]
    dataset: Option<PathBuf>,

    /// Configuration to preprocess.
    #[arg(short, long, value_name = "NAME", default_value = "3d_fullres")]
    configuration: String,

    /// Memory for the cases in flight, as in `nnunet-dist preprocess`.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    max_memory: Option<u64>,
}

impl Preprocess {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let folder = tempfile::tempdir()?;
        let raw = folder.path().join("Dataset999_Phantom");
        if self.dataset.is_none() {
            PhantomOptions { train_cases: PHANTOMS, test_cases: 0, shape: PHANTOM, seed: 1 }.generate(&raw)?;
        }
        let dataset = Dataset::open(self.dataset.as_deref().unwrap_or(&raw))?;
        let fingerprint = dataset::extract_fingerprint(&dataset)?;
        let configurations = vec![self.configuration.clone()];
        let options = PlannerOptions { configurations, ..PlannerOptions::default() };
        let plans = plan::plan(&dataset.name, &dataset.json, &fingerprint, &options)?;
        let limits = ResourceLimits { memory: self.max_memory, ..ResourceLimits::default() };
        let out = folder.path().join("preprocessed");
        let rows = bench::preprocess(&dataset, &plans, &self.configuration, &out, limits, rounds)?;
        Ok(Report::new("preprocess", rows))
    }
}

/// Shape of the generated case, that of the BraTS challenge's images, in voxels (z, y, x).
const RESAMPLED_PHANTOM: [usize; 3] = [155, 240, 240];

/// Measure resampling of one case as nnU-Net v2 does by default: image with cubic splines, labels linearly.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench resample
  nnunet-dist bench resample --image case_0000.nii.gz case_0001.nii.gz --labels case.nii.gz --spacing-to 0.7")]
pub struct Resample {
    /// Image, one file per channel [default: a generated one of 240 x 240 x 155 voxels].
    #[arg(long, value_name = "FILES", num_args = 1..)]
    image: Vec<PathBuf>,

    /// Label map of the image.
    #[arg(long, value_name = "FILE", requires = "image")]
    labels: Option<PathBuf>,

    /// Voxel size in mm: one number, or three along z,y,x [default: the image's own].
    #[arg(long, value_name = "MM", value_delimiter = ',', value_parser = crate::cli::positive)]
    spacing_from: Vec<f64>,

    /// Voxel size in mm to resample to.
    #[arg(long, value_name = "MM", value_delimiter = ',', default_value = "0.7", value_parser = crate::cli::positive)]
    spacing_to: Vec<f64>,
}

impl Resample {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let (image, labels) = if self.image.is_empty() { phantom()? } else { self.read()? };
        let from = match self.spacing_from.as_slice() {
            [] => image.geometry.spacing,
            given => per_axis(given, "--spacing-from")?,
        };
        let to = per_axis(&self.spacing_to, "--spacing-to")?;
        Ok(Report::new("resample", bench::resample(&image, labels.as_ref(), from, to, rounds)))
    }

    fn read(&self) -> anyhow::Result<(Volume, Option<Array3<i16>>)> {
        let volumes = self.image.iter().map(|path| image::read_volume(path)).collect::<Result<Vec<_>, _>>()?;
        let channels: Vec<_> = volumes.iter().map(|volume| volume.data.view()).collect();
        let data = concatenate(Axis(0), &channels).context("the files of --image differ in shape")?;
        let labels = self.labels.as_deref().map(image::read_labels).transpose()?.map(|labels| labels.data);
        ensure!(
            labels.iter().all(|labels| labels.shape() == &data.shape()[1..]),
            "--labels and --image differ in shape"
        );
        Ok((Volume { data, geometry: volumes[0].geometry.clone() }, labels))
    }
}

/// Expands one number to all axes, or takes one per axis.
fn per_axis(values: &[f64], flag: &str) -> anyhow::Result<[f64; 3]> {
    match *values {
        [all] => Ok([all; 3]),
        [z, y, x] => Ok([z, y, x]),
        _ => anyhow::bail!("{flag} takes one number or three, not {}", values.len()),
    }
}

fn phantom() -> anyhow::Result<(Volume, Option<Array3<i16>>)> {
    let folder = tempfile::tempdir()?;
    let options =
        PhantomOptions { train_cases: 1, test_cases: 0, shape: RESAMPLED_PHANTOM, ..PhantomOptions::default() };
    options.generate(folder.path())?;
    let dataset = Dataset::open(folder.path())?;
    let case = dataset.cases[0].load(dataset.json.channel_names.len())?;
    Ok((case.image, case.label.map(|label| label.data)))
}
