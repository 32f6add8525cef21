//! `nnunet-dist import`

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::output::outln;
use nnunet_data::work::WorkDir;
use nnunet_interop::{self as interop, Destination, PreprocessedSource};

/// Import trained models or preprocessed data of nnU-Net v2.
///
/// Converts a model's checkpoints to checkpoints for `predict -r` and `train --pretrained-weights`. Pickles are parsed,
/// not executed, so untrusted files cannot run code.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["input", "preprocessed"])))]
#[command(group(ArgGroup::new("destination").required(true).args(["output", "work"])))]
#[command(after_help = "\
Examples:
  nnunet-dist import -i nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres -o imported
  nnunet-dist predict -r imported/fold_0 -i images -o predictions
  nnunet-dist import -i checkpoint_final.pth -o imported
  nnunet-dist import --preprocessed nnUNet_preprocessed/Dataset004_Hippocampus -w hippocampus")]
pub struct Import {
    /// Model folder TRAINER__PLANS__CONFIGURATION with all its folds, or one checkpoint (.pth) [default: none; this or
    /// --preprocessed is required].
    #[arg(short, long, value_name = "DIR|FILE")]
    input: Option<PathBuf>,

    /// Folder for the model: one run directory fold_X per fold, or one run directory for a single checkpoint [default:
    /// runs/CONFIGURATION of the work folder].
    #[arg(short, long, value_name = "DIR", conflicts_with = "preprocessed")]
    output: Option<PathBuf>,

    /// Folder nnUNet_preprocessed/DatasetXXX_Name to import into a work folder for `train` [default: none].
    #[arg(long, value_name = "DIR", requires = "work")]
    preprocessed: Option<PathBuf>,

    /// Work folder for the model's runs, or to create from preprocessed data [default: none; not needed for a model
    /// with --output].
    #[arg(short, long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// Name of the plans of the preprocessed data.
    #[arg(short, long, value_name = "NAME", default_value = "nnUNetPlans", requires = "preprocessed")]
    plans: String,

    /// Raw dataset of the preprocessed data [default: none; held-out cases are compared with the data's
    /// gt_segmentations].
    #[arg(short, long, value_name = "DIR", requires = "preprocessed")]
    dataset: Option<PathBuf>,
}

impl Import {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let work = self.work.as_ref().map(WorkDir::new);
        match (&self.input, &self.preprocessed, work) {
            (Some(input), _, work) => {
                let destination = match (&self.output, work) {
                    (Some(output), _) => Destination::Folder(output.clone()),
                    (None, Some(work)) => Destination::Work(work),
                    (None, None) => unreachable!("clap asks for one of them"),
                };
                for run in interop::import(input, &destination)? {
                    outln!("{}", run.root().display());
                }
                Ok(())
            }
            (None, Some(folder), Some(work)) => self.preprocessed(folder, &work),
            _ => unreachable!("clap asks for one of them"),
        }
    }

    fn preprocessed(&self, folder: &std::path::Path, work: &WorkDir) -> anyhow::Result<()> {
        let source = PreprocessedSource { folder, plans: &self.plans, raw: self.dataset.as_deref() };
        let imported = interop::import_preprocessed(&source, work, &|case| tracing::debug!("{case}"))?;
        for data in &imported {
            outln!(
                "{}: {} cases, {}",
                data.data_identifier,
                data.cases,
                work.preprocessed(&data.data_identifier).display()
            );
        }
        let left_behind: Vec<&str> =
            imported.iter().filter(|data| data.blosc2 > 0).map(|data| data.data_identifier.as_str()).collect();
        if !left_behind.is_empty() {
            tracing::warn!(
                "cases of {} are Blosc2 files, which are not supported; create them from the raw \
                 dataset with `nnunet-dist preprocess -w {}`{}",
                left_behind.join(", "),
                work.root().display(),
                if self.dataset.is_some() { "" } else { "; pass the raw dataset to this command with -d" }
            );
        }
        Ok(())
    }
}
