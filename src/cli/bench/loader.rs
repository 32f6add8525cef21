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

/// Reading, each transform and the whole loader, in samples per second of one core.
///
/// Reads generated cases, a little smaller than the patch as those of Hippocampus are, or the preprocessed ones of a work
/// folder. A transform's row is that of a sample to which it is applied; the factor behind its name says how often that
/// is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench loader
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
                let patch = patch.unwrap_or([40, 56, 40]);
                let generated = GeneratedStore::new(CASES, patch.map(|extent| (extent * 9).div_ceil(10)))?;
                self.bench(generated.store.clone(), patch, &[false], rounds)
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
        let pipeline = match self.augmentation {
            AugmentationPreset::Nnunet => Pipeline::nnunet(patch, mirror_axes, masked),
            AugmentationPreset::Basic => Pipeline::nnunet_basic(patch, mirror_axes, masked),
            AugmentationPreset::None => Pipeline::none(patch),
        };
        let bench = LoaderBench::new(store, pipeline, self.batch_size).context("bench loader")?;
        Ok(bench.run(rounds)?)
    }
}
