//! `nnunet-dist convert`

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::output::outln;
use super::same_folder;
use nnunet_core::protect::Inputs;
use nnunet_data::dataset::{RawLayout, convert_dataset};
use nnunet_data::work::ConfigError;
use nnunet_image::{ConvertOptions, convert};

/// Convert an image to another format, a DICOM folder to an image, or a raw dataset to another layout.
///
/// File extensions select the format: .nii, .nii.gz, .mha, .mhd, .nrrd, .nhdr, .png, .bmp, .tif, .tiff. DICOM is
/// read-only.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").args(["input", "msd", "to_msd"]).required(true),
    after_help = "\
Examples:
  nnunet-dist convert ct.nrrd ct.nii.gz
  nnunet-dist convert dicom/patient_1 patient_1.nii.gz
  nnunet-dist convert --msd Task05_Prostate -o Dataset005_Prostate
  nnunet-dist convert --to-msd Dataset005_Prostate -o msd/Task05_Prostate"
)]
pub struct Convert {
    /// Image, or folder with the DICOM files of a series [default: none, if a dataset is converted].
    #[arg(value_name = "IN", requires = "target")]
    input: Option<PathBuf>,

    /// Image to write [default: none, if a dataset is converted].
    #[arg(value_name = "OUT", conflicts_with_all = ["msd", "to_msd"])]
    target: Option<PathBuf>,

    /// Treat the image as a label map (integer classes).
    #[arg(long, requires = "input")]
    labels: bool,

    /// SeriesInstanceUID of the series to read, if a folder contains several [default: the only one].
    #[arg(long, value_name = "UID", requires = "input", conflicts_with = "labels")]
    series: Option<String>,

    /// Dataset of the Medical Segmentation Decathlon or of nnU-Net v1 to convert to nnU-Net v2's layout [default:
    /// none].
    #[arg(long, value_name = "DIR", requires = "output")]
    msd: Option<PathBuf>,

    /// Dataset in nnU-Net v2's layout to convert to the Decathlon's layout [default: none].
    #[arg(long, value_name = "DIR", requires = "output")]
    to_msd: Option<PathBuf>,

    /// Folder of the converted dataset [default: none, if an image is converted].
    #[arg(short, long, value_name = "DIR", conflicts_with = "input")]
    output: Option<PathBuf>,

    /// Overwrite existing files.
    #[arg(long)]
    overwrite: bool,
}

impl Convert {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let (Some(input), Some(output)) = (&self.input, &self.target) {
            let options = ConvertOptions { labels: self.labels, series: self.series, overwrite: self.overwrite };
            Inputs::new([input]).check(output)?;
            convert(input, output, &options)?;
            outln!("{}", output.display());
        }
        let datasets = [(&self.msd, RawLayout::NnUnet), (&self.to_msd, RawLayout::Decathlon)];
        for (source, layout) in datasets {
            if let (Some(source), Some(output)) = (source, &self.output) {
                if same_folder(source, output) {
                    let defect = "is the dataset to convert; choose another output";
                    return Err(ConfigError::new(output.display(), defect).into());
                }
                let [train, test] = convert_dataset(source, output, layout, self.overwrite)?;
                outln!("{train} training and {test} test cases: {}", output.display());
            }
        }
        Ok(())
    }
}
