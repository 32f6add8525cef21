//! `nnunet-dist scale`

use std::env;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{out, outln};
use super::ranks::{abort_on_error, connect_gpus};
use super::run_flags::RunFlags;
use crate::scaling::{Experiment, Measurement, ScalingError, ScalingMode, csv, measure, plot, table};
use nnunet_comm::distributed;
use nnunet_core::fsio;
use nnunet_data::work::WorkDir;

/// Measure how training scales with the number of processes, and predict larger jobs.
///
/// Starts one training job per number of processes with nnunet-launch, and separates the time for computation, exposed
/// communication, waiting for data and waiting for the slowest process. Writes scaling.csv and scaling.png, and fits a
/// model of the all-reduce that predicts the efficiency at 8 to 1024 GPUs.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "\
Examples:
  nnunet-dist scale -w hippocampus -c 3d_fullres -f 0 --np 1,2,4,8
  nnunet-dist scale -w hippocampus -c 3d_fullres -f 0 --np 8,16 --device cuda --launch=-H --launch=node1:8,node2:8"
)]
pub struct Scale {
    /// Numbers of processes; the first is the baseline.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2")]
    np: Vec<usize>,

    /// Quantity to keep constant: the batch size per process (weak), or the global batch size, then given by
    /// --batch-size (strong).
    #[arg(long, value_enum, value_name = "MODE", default_value = "weak")]
    mode: ScalingMode,

    /// Measured training steps.
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,

    /// Warm-up training steps before the measured ones.
    #[arg(long, value_name = "N", default_value_t = 3)]
    warm_up: usize,

    /// CPU threads per process; 0: an equal share of the cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Folder for the results.
    #[arg(short, long, value_name = "DIR", default_value = "scaling")]
    output: PathBuf,

    /// Additional argument for nnunet-launch; may be repeated [default: none].
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    launch: Vec<String>,

    /// Run as one rank of a measured job.
    #[arg(long, hide = true)]
    as_rank: bool,

    #[command(flatten)]
    run: RunFlags,
}

impl Scale {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if self.as_rank { self.measure() } else { self.experiment() }
    }

    fn experiment(&self) -> anyhow::Result<()> {
        let config = self.run.resolve(&WorkDir::new(self.run.work()))?;
        let experiment = Experiment {
            mode: self.mode,
            ranks: self.np.clone(),
            batch_size: config.training.batch_size,
            threads: self.threads,
            arguments: own_arguments(),
            launcher_arguments: self.launch.clone(),
        };
        experiment.check()?;
        let program = env::current_exe()?;
        let launcher = program.with_file_name("nnunet-launch");
        let mut measurements: Vec<Measurement> = Vec::new();
        for &ranks in &self.np {
            tracing::info!("measuring {ranks} process(es)");
            measurements.push(experiment.run(&launcher, &program, ranks)?);
        }
        out!("{}", table(self.mode, &measurements));
        let picture = plot(&measurements)?;
        self.write("scaling.csv", csv(&measurements).as_bytes())?;
        self.write("scaling.png", &picture)?;
        outln!("results: {}", self.output.display());
        Ok(())
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<(), ScalingError> {
        let path: PathBuf = Path::new(&self.output).join(name);
        fsio::write_bytes(&path, contents).map_err(|source| ScalingError::Write { path, source })
    }

    /// Measures as one rank of a job.
    fn measure(&self) -> anyhow::Result<()> {
        let host = distributed::init()?;
        let work = WorkDir::new(self.run.work());
        let config = abort_on_error(self.run.resolve(&work), &*host)?;
        let comm = connect_gpus(host, &config);
        let measured = measure(&config, &work, &*comm, self.warm_up, self.steps.max(1));
        let measured = abort_on_error(measured.map_err(anyhow::Error::from), &*comm)?;
        if comm.rank() == 0 {
            outln!("{}", measured.to_line());
        }
        Ok(())
    }
}

/// Returns the arguments of this command for its ranks; later arguments override earlier ones.
fn own_arguments() -> Vec<String> {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let position = arguments.iter().position(|argument| argument == "scale").map_or(0, |index| index + 1);
    arguments.insert(position, "--as-rank".into());
    arguments
}
