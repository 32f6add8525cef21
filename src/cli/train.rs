//! `nnunet-dist train`

use std::path::PathBuf;

use clap::Args;

use super::output::{out, outln};
use super::ranks::{abort_on_error, connect_gpus};
use super::run_flags::RunFlags;
use super::{exit, output};
use nnunet_comm::distributed::{self, Communicator};
use nnunet_data::work::{ConfigError, WorkDir};
use nnunet_train::config::RunConfig;
use nnunet_train::{self as train, FinalValidationOptions, Outcome, Resume, RunOptions};

/// Train a network on one fold; under mpirun, with all its processes.
///
/// The configuration is resolved from defaults, plans, the file given with --config, and flags; later sources override
/// earlier ones. It is printed and saved as config.toml in the run directory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist train -w hippocampus -c 3d_fullres -f 0
  mpirun -np 8 nnunet-dist train -w hippocampus -c 3d_fullres -f all --device cuda
  nnunet-dist train -w hippocampus -c 3d_fullres -f 0 --resume
  nnunet-dist train -w hippocampus -c 3d_fullres -f 0 --val --npz
  nnunet-dist train -w hippocampus -c 3d_fullres -f 0 --pretrained-weights checkpoint_final.pth --lr 1e-3")]
pub struct Train {
    #[command(flatten)]
    run: RunFlags,

    /// Initial weights: a checkpoint of a run or of nnU-Net (.pth), or a .safetensors file. Heads with a different
    /// number of classes are reinitialized [default: none; random weights].
    #[arg(long, value_name = "FILE")]
    pretrained_weights: Option<PathBuf>,

    /// Resume from the run's latest checkpoint; with `--resume=auto`, start a new run if there is none.
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    #[arg(default_value = "never", hide_default_value = true)]
    resume: Resume,

    /// Start again although the run directory holds a run, which is moved to RUN.1, RUN.2, ….
    #[arg(long, conflicts_with_all = ["resume", "val"])]
    overwrite: bool,

    /// Also write class probabilities of the held-out cases (CASE.npz), needed to evaluate ensembles of configurations.
    #[arg(long)]
    npz: bool,

    /// Only predict and evaluate the held-out cases of a finished run.
    #[arg(long, conflicts_with = "resume")]
    val: bool,

    /// Predict the held-out cases with the best instead of the last checkpoint, into the same folder.
    #[arg(long, requires = "val")]
    val_best: bool,

    /// Write a timeline of N steps, starting with the second, to RUN/trace.json, with the activity of each thread of
    /// each process [default: 0].
    #[arg(long, value_name = "N", conflicts_with = "val", default_value_t, hide_default_value = true)]
    profile: usize,
}

impl Train {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if self.resume == Resume::Always && self.pretrained_weights.is_some() {
            let defect = "--pretrained-weights starts a new run and --resume continues one; use only one of them";
            return Err(ConfigError::new("command line", defect).into());
        }
        let host = distributed::init()?;
        let work = WorkDir::new(self.run.work());
        let mut config = abort_on_error(self.run.resolve(&work), &*host)?;
        if let Some(path) = &self.pretrained_weights {
            config.training.pretrained_weights.clone_from(path);
        }
        let communicator = connect_gpus(host, &config);
        match abort_on_error(self.train(&config, &work, &*communicator), &*communicator)? {
            Outcome::Finished(_) => Ok(()),
            Outcome::Stopped => Err(exit::Stopped.into()),
        }
    }

    fn train(&self, config: &RunConfig, work: &WorkDir, communicator: &dyn Communicator) -> anyhow::Result<Outcome> {
        let is_first = communicator.rank() == 0;
        let held_out = FinalValidationOptions { probabilities: self.npz, with_best: self.val_best };
        let outcome = match self.val {
            true => Outcome::Finished(train::validate(config, work, communicator, held_out)?.map(Box::new)),
            false => {
                let options = RunOptions {
                    resume: self.resume,
                    overwrite: self.overwrite,
                    held_out,
                    profile: self.profile,
                    announce: |config| out!("{}", config.to_toml()),
                };
                train::run(config, work, communicator, options)?
            }
        };
        if let Outcome::Finished(Some(summary)) = &outcome {
            out!("{}", summary.table());
            outln!("mean Dice {:.4}", summary.mean_dice());
        }
        if is_first {
            outln!("run directory: {}", config.run_dir.display());
        }
        // The results are in the run directory, too.
        if let Err(error) = output::finish() {
            tracing::warn!("{error}");
        }
        Ok(outcome)
    }
}
