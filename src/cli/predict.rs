//! `nnunet-dist predict`

use std::path::PathBuf;

use clap::Args;

use super::infer_flags::InferFlags;
use super::output::outln;
use super::ranks::abort_on_error;
use nnunet_comm::distributed;
use nnunet_data::work::ConfigError;
use nnunet_infer::{self as infer, FolderOptions, InferError, JobPart};

/// Segment images with trained networks, in each image's own geometry.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist predict -w hippocampus -c 3d_fullres -i imagesTs -o predictions    # mean of the networks of folds 0 to 4
  nnunet-dist predict -r hippocampus/runs/3d_fullres/fold_0 -i imagesTs -o predictions
  mpirun -np 8 nnunet-dist predict -w hippocampus -c 3d_fullres -f all -i imagesTs -o predictions --device cuda
  nnunet-dist predict -w WORK -c 3d_cascade_fullres --prev-stage WORK/runs/3d_lowres -i imagesTs -o predictions")]
pub struct Predict {
    #[command(flatten)]
    infer: InferFlags,

    /// Folder of images, one file per case and channel (CASE_0000.nii.gz, CASE_0001.nii.gz); or such files; or a list
    /// of cases, .json or .txt.
    #[arg(short, long, value_name = "PATH", num_args = 1.., required = true)]
    images: Vec<PathBuf>,

    /// Folder for the label maps; created if missing.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// For the second stage of a cascade: folder with the first stage's label maps of the same images [default: none].
    #[arg(long, alias = "prev_stage_predictions", value_name = "DIR", conflicts_with = "prev_stage")]
    prev_stage_predictions: Option<PathBuf>,

    /// For the second stage of a cascade: runs of the first stage, given as for --run; they segment the images first,
    /// into OUTPUT/previous_stage [default: none].
    #[arg(long, value_name = "DIR", num_args = 1..)]
    prev_stage: Vec<PathBuf>,

    /// Also write the class probabilities of each case.
    #[arg(long, alias = "save_probabilities")]
    save_probabilities: bool,

    /// Skip cases with complete existing results.
    #[arg(long = "continue", aliases = ["continue-prediction", "continue_prediction"])]
    skip_existing: bool,

    /// Predict only one part of the cases, `0/4` to `3/4`, to split the work over independent jobs [default: 0/1].
    #[arg(long, value_name = "I/N", conflicts_with_all = ["num_parts", "part_id"])]
    part: Option<JobPart>,

    /// N of --part, as in nnU-Net [default: 1].
    #[arg(long, alias = "num_parts", value_name = "N", requires = "part_id", hide = true)]
    num_parts: Option<usize>,

    /// I of --part, as in nnU-Net [default: 0].
    #[arg(long, alias = "part_id", value_name = "I", requires = "num_parts", hide = true)]
    part_id: Option<usize>,
}

impl Predict {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let comm = distributed::init()?;
        let options = abort_on_error(self.infer.options(), &*comm)?;
        let first = abort_on_error(self.infer.previous_stage_checkpoints(&self.prev_stage), &*comm)?;
        let part = abort_on_error(self.part().map_err(anyhow::Error::from), &*comm)?;
        let folder = FolderOptions {
            save_probabilities: self.save_probabilities,
            skip_existing: self.skip_existing,
            part,
            previous_stage: self.prev_stage_predictions.clone(),
            ..FolderOptions::default()
        };
        let predicted = match first.is_empty() {
            true => infer::predict_folder(&self.images, &self.output, &options, &folder, &*comm),
            false => infer::predict_cascade_folder(&self.images, &self.output, first, &options, &folder, &*comm),
        };
        match predicted {
            // All ranks have the same failed cases; only rank 0 reports them.
            Err(InferError::Cases { .. }) if comm.rank() > 0 => Ok(()),
            predicted => {
                let predicted = abort_on_error(predicted.map_err(anyhow::Error::from), &*comm)?;
                if comm.rank() == 0 {
                    let skipped = match predicted.skipped {
                        0 => String::new(),
                        skipped => format!(", {skipped} of them kept from an earlier run"),
                    };
                    outln!("{} cases in {}{skipped}", predicted.cases, self.output.display());
                }
                Ok(())
            }
        }
    }

    fn part(&self) -> Result<JobPart, ConfigError> {
        match (self.part_id, self.num_parts) {
            (Some(index), Some(count)) => JobPart::new(index, count)
                .map_err(|defect| ConfigError::new("command line", format!("--part-id: {defect}"))),
            _ => Ok(self.part.unwrap_or_default()),
        }
    }
}
