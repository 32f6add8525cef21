//! `nnunet-dist train`

use std::path::PathBuf;

use clap::Args;

use super::exit;
use super::ranks::{join_gpus, or_abort};
use super::run_flags::RunFlags;
use nnunet_comm::distributed::{self, Communicator};
use nnunet_data::work::{ConfigError, WorkDir};
use nnunet_train::config::RunConfig;
use nnunet_train::{self as train, HeldOutOptions, Outcome, Resume, RunOptions};

/// Train a network on one fold; under mpirun, on as many processes as it starts.
///
/// The configuration is resolved from defaults, the plans, the file given with --config and the flags, each overriding
/// the one before; it is printed and saved as config.toml in the run directory.
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

    /// Weights to begin with: a checkpoint of a run or of nnU-Net (.pth), or a .safetensors file. Heads for another number
    /// of classes begin anew [default: none; random ones].
    #[arg(long, value_name = "FILE")]
    pretrained_weights: Option<PathBuf>,

    /// Go on from the run's latest checkpoint; with `--resume=auto`, begin where there is none.
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    #[arg(default_value = "never", hide_default_value = true)]
    resume: Resume,

    /// Write class probabilities of the held-out cases too (CASE.npz): what ensembles of configurations are found from.
    #[arg(long)]
    npz: bool,

    /// Only predict and evaluate the held-out cases of a run that is over.
    #[arg(long, conflicts_with = "resume")]
    val: bool,

    /// Predict the held-out cases with the best checkpoint, not the last; into the same folder.
    #[arg(long)]
    val_best: bool,

    /// Write a timeline of N steps, the second and those after it, to RUN/trace.json: what each thread of each process does
    /// [default: 0].
    #[arg(long, value_name = "N", conflicts_with = "val", default_value_t, hide_default_value = true)]
    profile: usize,
}

impl Train {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if self.resume == Resume::Always && self.pretrained_weights.is_some() {
            let defect = "--pretrained-weights begins a run, --resume goes on with one; leave one of them out";
            return Err(ConfigError::new("command line", defect).into());
        }
        let host = distributed::init()?;
        let work = WorkDir::new(self.run.work());
        let mut config = or_abort(self.run.resolve(&work), &*host)?;
        if let Some(path) = &self.pretrained_weights {
            config.training.pretrained_weights.clone_from(path);
        }
        let communicator = join_gpus(host, &config);
        match or_abort(self.train(&config, &work, &*communicator), &*communicator)? {
            Outcome::Finished(_) => Ok(()),
            Outcome::Stopped => Err(exit::Stopped.into()),
        }
    }

    fn train(&self, config: &RunConfig, work: &WorkDir, communicator: &dyn Communicator) -> anyhow::Result<Outcome> {
        let is_first = communicator.rank() == 0;
        if is_first {
            print!("{}", config.to_toml());
        }
        let held_out = HeldOutOptions { probabilities: self.npz, with_best: self.val_best };
        let outcome = match self.val {
            true => Outcome::Finished(train::validate(config, work, communicator, held_out)?.map(Box::new)),
            false => {
                let options = RunOptions { resume: self.resume, held_out, profile: self.profile };
                train::run(config, work, communicator, options)?
            }
        };
        if let Outcome::Finished(Some(summary)) = &outcome {
            print!("{}", summary.table());
            println!("mean Dice {:.4}", summary.mean_dice());
        }
        if is_first {
            println!("run directory: {}", config.run_dir.display());
        }
        Ok(outcome)
    }
}
