//! `nnunet-dist bench infer`

use std::path::PathBuf;

use clap::Args;

use crate::bench::{InferFolder, InferStub, Report};
use crate::cli::precision::PrecisionFlags;
use nnunet_infer::{AccumulatorDtype, CheckpointName, MemoryOptions, PredictOptions, WindowOptions, find_checkpoints};
use nnunet_nn::Device;

/// Measure sliding-window inference: reading, network, accumulation, resampling with argmax, writing.
///
/// With --run and --images, a trained network segments a folder. Without them, a stub network with zero cost segments
/// an empty image: this measures the overhead and the memory of inference around the network for any number of voxels
/// and classes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench infer -r hippocampus/runs/3d_fullres/fold_0 -i imagesTs --rounds 3
  nnunet-dist bench infer --extent 1000,512,512 --classes 105 --patch 128,128,128 --accumulator-dtype f16 --rounds 1")]
pub struct Infer {
    /// Run directory of `train`, or a checkpoint.
    #[arg(short, long, value_name = "DIR", requires = "images")]
    run: Option<PathBuf>,

    /// Folder of images, one file per case and channel.
    #[arg(short, long, value_name = "DIR", requires = "run")]
    images: Option<PathBuf>,

    /// For the second stage of a cascade: folder with the first stage's label maps of the images.
    #[arg(long, value_name = "DIR", requires = "run")]
    prev_stage_predictions: Option<PathBuf>,

    /// Disable test-time mirroring.
    #[arg(long)]
    no_tta: bool,

    /// Overlap of neighboring windows as a fraction of the window size, 0 to below 1.
    #[arg(long, value_name = "PART", default_value_t = 0.5, value_parser = super::super::infer_flags::overlap)]
    overlap: f64,

    /// Windows, mirrored ones included, per forward call of the network [default: automatic].
    #[arg(long, value_name = "N", requires = "run", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,

    #[command(flatten)]
    precision: PrecisionFlags,

    /// Compute device.
    #[arg(long, value_enum, default_value_t = Device::Cpu, requires = "run")]
    device: Device,

    /// Data type in which the logits of overlapping windows are accumulated.
    #[arg(long, value_enum, default_value = "f32")]
    accumulator_dtype: AccumulatorDtype,

    /// Shape of the generated image in voxels.
    #[arg(long, value_name = "Z,Y,X", conflicts_with = "run", value_parser = extent)]
    extent: Option<[usize; 3]>,

    /// Shape of the generated image after resampling to the network's spacing [default: that of the image].
    #[arg(long, value_name = "Z,Y,X", requires = "extent", value_parser = extent)]
    resampled: Option<[usize; 3]>,

    /// Number of classes of the stub network.
    #[arg(long, value_name = "N", conflicts_with = "run", value_parser = clap::value_parser!(u16).range(1..=i16::MAX as i64))]
    classes: Option<u16>,

    /// Window size of the stub network in voxels.
    #[arg(long, value_name = "Z,Y,X", conflicts_with = "run", value_parser = extent)]
    patch: Option<[usize; 3]>,
}

/// Parses three sizes above 0, such as `128,96,96`.
fn extent(text: &str) -> Result<[usize; 3], String> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    match numbers.map(<[usize; 3]>::try_from) {
        Ok(Ok(extent)) if !extent.contains(&0) => Ok(extent),
        _ => Err("must be three numbers above 0, such as 128,96,96".into()),
    }
}

impl Infer {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let rows = match (&self.run, &self.images) {
            (Some(run), Some(images)) => self.folder(run.clone(), images.clone())?.measure(rounds)?,
            _ => self.stub().measure(rounds.max(1)),
        };
        Ok(Report::new("infer", rows))
    }

    fn folder(&self, run: PathBuf, images: PathBuf) -> anyhow::Result<InferFolder> {
        let batch_size = self.batch_size.map(usize::from);
        let options = PredictOptions {
            checkpoints: find_checkpoints(&[run], &[], CheckpointName::Latest)?,
            windows: WindowOptions { mirror: !self.no_tta, overlap: self.overlap, ..WindowOptions::default() },
            memory: MemoryOptions {
                batch_size,
                accumulator_dtype: self.accumulator_dtype,
                ..MemoryOptions::on(self.device)
            },
            precision: self.precision.resolve(self.device)?,
            device: self.device,
        };
        Ok(InferFolder { images, options, previous_stage: self.prev_stage_predictions.clone() })
    }

    fn stub(&self) -> InferStub {
        let default = InferStub::default();
        InferStub {
            extent: self.extent.unwrap_or(default.extent),
            resampled: self.resampled.or(self.extent).unwrap_or(default.resampled),
            classes: self.classes.map_or(default.classes, usize::from),
            patch: self.patch.unwrap_or(default.patch),
            overlap: self.overlap,
            mirror: !self.no_tta,
            accumulator_dtype: self.accumulator_dtype,
        }
    }
}
