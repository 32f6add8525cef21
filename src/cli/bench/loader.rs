//! `nnunet-dist bench loader`

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;

use crate::augment::Pipeline;
use crate::bench::{GeneratedStore, LoaderBench, Report};
use crate::config::{AugmentationPreset, WorkDir};
use crate::plan::Plans;
use crate::store::{CaseStore, NativeStore};

/// Cases that are generated where no work folder is named.
const CASES: usize = 20;

/// Each transform, all of them, and the whole loader, in samples per second of one core.
///
/// Reads generated cases, a little smaller than the patch as those of Hippocampus are, or the preprocessed ones of a work
/// folder. A transform's row is that of a sample to which it is applied; the factor behind its name says how often that
/// is. `augment` is a sample as nnU-Net's loader makes it once it is read; `loader` reads, augments and fills batches.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench loader
  nnunet-dist bench loader --patch 128,128,128 --channels 4 --batch-size 2
  nnunet-dist bench loader -w hippocampus -c 3d_fullres --batch-size 9 --json")]
pub struct Loader {
    /// Work folder whose preprocessed cases are read [default: generated cases].
    #[arg(short, long, value_name = "DIR", requires = "configuration")]
    work: Option<PathBuf>,

    /// Configuration of the plans in the work folder.
    #[arg(short, long, value_name = "NAME", requires = "work")]
    configuration: Option<String>,

    /// Samples of a batch.
    #[arg(short, long, value_name = "N", default_value_t = 9)]
    batch_size: usize,

    /// Extent of the patch [default: 40,56,40 or the configuration's].
    #[arg(long, value_name = "Z,Y,X", value_delimiter = ',')]
    patch: Option<Vec<usize>>,

    /// Channels of generated cases.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "work")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..))]
    channels: u8,

    /// Which transforms.
    #[arg(long, value_enum, value_name = "PRESET", default_value = "nnunet")]
    augmentation: AugmentationPreset,
}

impl Loader {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let patch = match self.patch.as_deref() {
            None => None,
            Some(&[z, y, x]) if z * y * x > 0 => Some([z, y, x]),
            Some(other) => bail!("--patch: {other:?} is not the extent of a patch; give three numbers, as in 40,56,40"),
        };
        match (&self.work, &self.configuration) {
            (Some(work), Some(configuration)) => {
                let work = WorkDir::new(work);
                let configuration = Plans::load(&work.plans())?.configuration(configuration)?;
                let store = NativeStore::open(&work.preprocessed(&configuration.data_identifier))?;
                let patch = patch.unwrap_or(configuration.patch_size3());
                self.bench(Arc::new(store), patch, &configuration.use_mask_for_norm, rounds)
            }
            _ => {
                let (channels, patch) = (usize::from(self.channels), patch.unwrap_or([40, 56, 40]));
                let generated = GeneratedStore::new(CASES, channels, patch.map(|extent| (extent * 9).div_ceil(10)))?;
                self.bench(generated.store.clone(), patch, &vec![false; channels], rounds)
            }
        }
    }

    fn bench(
        &self,
        store: Arc<dyn CaseStore>,
        patch: [usize; 3],
        masked: &[bool],
        rounds: usize,
    ) -> anyhow::Result<Report> {
        let mirror_axes: &[usize] = if patch[0] == 1 { &[1, 2] } else { &[0, 1, 2] };
        let pipeline = Pipeline::preset(self.augmentation, patch, mirror_axes, masked);
        let bench = LoaderBench::new(store, pipeline, self.batch_size).context("bench loader")?;
        Ok(bench.run(rounds)?)
    }
}
