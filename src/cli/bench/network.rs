//! Flags for the network, batch and device of a benchmark.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::bench::{StepBench, plain_network};
use crate::cli::plans::{self, PlansFlag};
use crate::cli::precision::PrecisionFlags;
use nnunet_data::dataset::DatasetJson;
use nnunet_data::work::WorkDir;
use nnunet_nn::Device;
use nnunet_nn::model::UNetSpec;

/// Network from plans or from its parts; the default is the one that nnU-Net plans for MSD Hippocampus.
#[derive(Debug, Args)]
pub struct NetworkFlags {
    /// Work folder with the plans that define network, patch size and batch size.
    #[arg(short, long, value_name = "DIR", requires = "configuration")]
    work: Option<PathBuf>,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configuration of the plans in the work folder.
    #[arg(short, long, value_name = "NAME", requires = "work")]
    configuration: Option<String>,

    /// Patch size z,y,x; two numbers for a 2D network [default: 40,56,40 or the plans'].
    #[arg(long, value_name = "N,N,N", value_parser = extents)]
    patch: Option<[usize; 3]>,

    /// Samples per batch [default: 9 or the plans'].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,

    /// Input channels.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "work")]
    channels: usize,

    /// Number of classes, including background.
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "work")]
    classes: usize,

    /// Feature maps per stage.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "32,64,128,256", conflicts_with = "work")]
    features: Vec<usize>,

    #[command(flatten)]
    precision: PrecisionFlags,

    /// Recompute activations in the backward pass instead of keeping them.
    #[arg(long)]
    gradient_checkpointing: bool,

    /// Compute device.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(super) device: Device,
}

impl NetworkFlags {
    /// Builds the benchmark from the flags.
    ///
    /// # Errors
    /// Returns an error if the plans cannot be read or the device does not support the precision.
    pub(super) fn bench(&self) -> anyhow::Result<StepBench> {
        let precision = self.precision.on(self.device)?;
        let gradient_checkpointing = self.gradient_checkpointing;
        let batch_size = self.batch_size.map(|number| number as usize);
        if let (Some(work), Some(name)) = (&self.work, &self.configuration) {
            let work = self.plans.on(WorkDir::new(work));
            let configuration = plans::load(&work)?.configuration(name)?;
            let dataset = DatasetJson::load(&work.dataset_json())?;
            let shape = configuration.network_shape().with_context(|| format!("{}", work.plans().display()))?;
            let (channels, classes) = (configuration.num_input_channels(&dataset), dataset.num_segmentation_heads());
            return Ok(StepBench {
                network: UNetSpec { channels, classes, shape },
                patch: self.patch.unwrap_or(configuration.patch_size3()),
                batch_size: batch_size.unwrap_or(configuration.batch_size),
                precision,
                gradient_checkpointing,
            });
        }
        let patch = self.patch.unwrap_or([40, 56, 40]);
        let network = plain_network(patch, self.channels, self.classes, &self.features);
        let batch_size = batch_size.unwrap_or(9);
        Ok(StepBench { network, patch, batch_size, precision, gradient_checkpointing })
    }
}

/// Parses `z,y,x` or `y,x`; the latter has a z extent of 1.
fn extents(text: &str) -> Result<[usize; 3], String> {
    let extents: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    match extents.as_deref() {
        Ok(&[y, x]) if y > 0 && x > 0 => Ok([1, y, x]),
        Ok(&[z, y, x]) if z > 0 && y > 0 && x > 0 => Ok([z, y, x]),
        _ => Err("must be two or three numbers above 0, separated by commas".into()),
    }
}
