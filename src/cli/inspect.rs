//! `nnunet-dist inspect`

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;

use super::output::{out, outln};
use nnunet_core::fsio;
use nnunet_core::protect::Inputs;
use nnunet_data::dataset::Dataset;
use nnunet_data::work::ConfigError;
use nnunet_viz::inspect::{InspectCase, montage};

/// Show the contents of a case: header, intensities and label volumes, optionally as a picture.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist inspect ct.nii.gz
  nnunet-dist inspect image.nii.gz --label prediction.nii.gz --montage overlay.png
  nnunet-dist inspect -d Task04_Hippocampus hippocampus_001 hippocampus_003 --montage cases.png")]
pub struct Inspect {
    /// Images or folders of DICOM files; with --dataset, the names of its training cases.
    #[arg(value_name = "CASE", required = true)]
    cases: Vec<PathBuf>,

    /// Raw dataset of the cases, with their labels and class names [default: none].
    #[arg(short, long, value_name = "DIR", conflicts_with = "label")]
    dataset: Option<PathBuf>,

    /// Label map of the image; requires exactly one image [default: none].
    #[arg(short, long, value_name = "FILE")]
    label: Option<PathBuf>,

    /// Write a picture: axial, coronal and sagittal slices through the largest labeled area, labels in color [default:
    /// none].
    #[arg(long, value_name = "FILE.png")]
    montage: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (mut reports, mut views) = (Vec::new(), Vec::new());
        let cases = self.inspect_cases()?;
        if let Some(path) = &self.montage {
            Inputs::new(cases.iter().flat_map(|case| case.images.iter().chain(&case.label))).check(path)?;
        }
        for case in cases {
            let (report, view) = case.inspect()?;
            if !self.json {
                out!("{report}");
            }
            reports.push(report);
            if self.montage.is_some() {
                views.push(view);
            }
        }
        if self.json {
            outln!("{}", serde_json::to_string_pretty(&reports)?);
        }
        if let Some(path) = &self.montage {
            let png = montage(&views).map_err(|error| anyhow!("{}: {error}", path.display()))?;
            fsio::write_bytes(path, &png).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn inspect_cases(&self) -> anyhow::Result<Vec<InspectCase>> {
        let Some(dataset) = &self.dataset else {
            if self.label.is_some() && self.cases.len() > 1 {
                return Err(ConfigError::new("--label", "takes one image only; use --dataset for more").into());
            }
            let label: Option<&Path> = self.label.as_deref();
            return Ok(self.cases.iter().map(|image| InspectCase::from_file(image, label)).collect());
        };
        let dataset = Dataset::open(dataset)?;
        let case = |id: &PathBuf| Ok(InspectCase::from_dataset(&dataset, &id.to_string_lossy())?);
        self.cases.iter().map(case).collect()
    }
}
