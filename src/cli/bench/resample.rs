//! `nnunet-dist bench resample`

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use ndarray::{Array3, Axis, concatenate};

use crate::bench::{self, Report};
use nnunet_data::dataset::Dataset;
use nnunet_data::phantom::PhantomOptions;
use nnunet_image::{self as image, Volume};

/// Shape of the generated case, that of the BraTS challenge's images, in voxels (z, y, x).
const PHANTOM: [usize; 3] = [155, 240, 240];

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
    let options = PhantomOptions { train_cases: 1, test_cases: 0, shape: PHANTOM, ..PhantomOptions::default() };
    options.generate(folder.path())?;
    let dataset = Dataset::open(folder.path())?;
    let case = dataset.cases[0].load(dataset.json.channel_names.len())?;
    Ok((case.image, case.label.map(|label| label.data)))
}
