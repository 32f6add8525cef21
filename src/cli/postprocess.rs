//! `nnunet-dist postprocess`

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::LOCK;
use super::output::{out, outln};
use nnunet_core::lock::FolderLock;
use nnunet_core::protect::Inputs;
use nnunet_eval::postprocess::{DetermineOptions, Postprocessing, apply_to_folder, determine_folder};

/// Keep only the largest connected component of predicted classes, or determine for which classes this helps.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["pp", "determine"])))]
#[command(after_help = "\
Examples:
  nnunet-dist postprocess --determine -i held_out_predictions -g labels
  nnunet-dist postprocess -i predictions -o postprocessed --pp held_out_predictions/postprocessing.json")]
pub struct Postprocess {
    /// Folder of predicted label maps.
    #[arg(short, long, value_name = "DIR")]
    input: PathBuf,

    /// Folder for the postprocessed label maps, with --pp; created if missing [default: none].
    #[arg(short, long, value_name = "DIR", required_if_eq("determine", "false"), conflicts_with = "determine")]
    output: Option<PathBuf>,

    /// postprocessing.json to apply, of this program or of nnU-Net [default: none; this or --determine is required].
    #[arg(long, value_name = "FILE", requires = "output")]
    pp: Option<PathBuf>,

    /// Determine the postprocessing; write postprocessing.json and the folder postprocessed into the input folder.
    #[arg(long, requires = "ground_truth")]
    determine: bool,

    /// Folder of reference label maps with the same file names, with --determine [default: none].
    #[arg(short, long, value_name = "DIR", conflicts_with = "pp")]
    ground_truth: Option<PathBuf>,

    /// dataset.json of the dataset, with --determine [default: dataset.json in the input folder, else in or beside the
    /// folder of reference label maps].
    #[arg(long, value_name = "FILE", conflicts_with = "pp")]
    dataset_json: Option<PathBuf>,

    /// Write only postprocessing.json, not the postprocessed label maps, with --determine.
    #[arg(long, conflicts_with = "pp")]
    remove_postprocessed: bool,
}

impl Postprocess {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let (Some(file), Some(output)) = (&self.pp, &self.output) {
            Inputs::new([file]).with_folder(&self.input).check_same_names(output)?;
            let _lock = FolderLock::acquire(output, LOCK)?;
            let cases = apply_to_folder(&Postprocessing::load(file)?, &self.input, output)?;
            outln!("{cases} cases in {}", output.display());
        } else if let Some(truth) = &self.ground_truth {
            let options = DetermineOptions { discard_postprocessed: self.remove_postprocessed };
            let determined = determine_folder(&self.input, truth, self.dataset_json.as_deref(), options)?;
            out!("{}", determined.table());
        }
        Ok(())
    }
}
