//! `nnunet-dist postprocess`

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use nnunet_eval::postprocess::{DetermineOptions, Postprocessing, apply_to_folder, determine_folder};

/// Keep the largest connected component of predictions, where it was found to help; or find out where it does.
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

    /// Folder for the postprocessed label maps, with --pp; created where missing [default: none].
    #[arg(short, long, value_name = "DIR", required_if_eq("determine", "false"), conflicts_with = "determine")]
    output: Option<PathBuf>,

    /// What to do: a postprocessing.json, also of nnU-Net [default: none; either this or --determine].
    #[arg(long, value_name = "FILE", requires = "output")]
    pp: Option<PathBuf>,

    /// Find out what helps, and leave postprocessing.json and the folder postprocessed in the input folder.
    #[arg(long, requires = "ground_truth")]
    determine: bool,

    /// Folder of true label maps with the same file names, with --determine [default: none].
    #[arg(short, long, value_name = "DIR", conflicts_with = "pp")]
    ground_truth: Option<PathBuf>,

    /// Description of the dataset, with --determine [default: dataset.json in the input folder, else in or beside the folder
    /// of true label maps].
    #[arg(long, value_name = "FILE", conflicts_with = "pp")]
    dataset_json: Option<PathBuf>,

    /// Keep only postprocessing.json, with --determine.
    #[arg(long, conflicts_with = "pp")]
    remove_postprocessed: bool,
}

impl Postprocess {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let (Some(file), Some(output)) = (&self.pp, &self.output) {
            let cases = apply_to_folder(&Postprocessing::load(file)?, &self.input, output)?;
            println!("{cases} cases in {}", output.display());
        } else if let Some(truth) = &self.ground_truth {
            let options = DetermineOptions { discard_postprocessed: self.remove_postprocessed };
            let determined = determine_folder(&self.input, truth, self.dataset_json.as_deref(), options)?;
            print!("{}", determined.table());
        }
        Ok(())
    }
}
