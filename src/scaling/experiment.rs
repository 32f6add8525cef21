//! One job per number of ranks, started by the launcher.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;

use super::Measurement;

/// What stays the same while the number of ranks grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The batch of a rank.
    Weak,
    /// The batch of all ranks together.
    Strong,
}

/// A series of jobs.
#[derive(Clone, Debug)]
pub struct Experiment {
    pub mode: Mode,
    /// Numbers of ranks.
    pub ranks: Vec<usize>,
    /// Samples per rank, or over all ranks, as `mode` says.
    pub batch_size: usize,
    /// Threads of a rank on the CPU, the same in all jobs; 0 leaves the cores to be divided.
    pub threads: usize,
    /// Arguments of `nnunet-dist` for one rank, without its batch size.
    pub arguments: Vec<String>,
    /// More arguments of the launcher: hosts, Slurm.
    pub launcher_arguments: Vec<String>,
}

/// An experiment that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScalingError {
    /// The numbers do not fit together.
    #[error("{0}")]
    Setting(String),
    /// The launcher is missing.
    #[error("{}: {source}; it is built with nnunet-dist and belongs beside it", path.display())]
    Launcher { path: PathBuf, source: io::Error },
    /// A job has failed; its ranks have said why.
    #[error("the job of {ranks} rank(s) ended with {status}")]
    Job { ranks: usize, status: std::process::ExitStatus },
    /// A job has not said what it measured.
    #[error("the job of {ranks} rank(s) printed no measurement")]
    Silent { ranks: usize },
    /// A result cannot be written.
    #[error("{}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// What a job's measurement is printed after.
pub(super) const MARK: &str = "measurement: ";

impl Experiment {
    /// Checks the numbers before the first job.
    ///
    /// # Errors
    /// No number of ranks, or one that does not divide the batch.
    pub fn check(&self) -> Result<(), ScalingError> {
        if self.ranks.is_empty() || self.ranks.contains(&0) {
            return Err(ScalingError::Setting("--np needs numbers of ranks above 0".into()));
        }
        match self.ranks.iter().find(|ranks| !self.batch_size.is_multiple_of(**ranks)) {
            Some(ranks) if self.mode == Mode::Strong => Err(ScalingError::Setting(format!(
                "a global batch of {} cannot be divided over {ranks} ranks; give --batch-size a multiple of every --np",
                self.batch_size
            ))),
            _ => Ok(()),
        }
    }

    /// Runs one job with `launcher` and gives what it has measured. What the job says goes to standard error.
    ///
    /// # Errors
    /// The launcher is missing, or the job fails.
    pub fn run(&self, launcher: &Path, program: &Path, ranks: usize) -> Result<Measurement, ScalingError> {
        let per_rank = match self.mode {
            Mode::Weak => self.batch_size,
            Mode::Strong => self.batch_size / ranks,
        };
        let mut command = Command::new(launcher);
        command.args(["-np", &ranks.to_string()]).args(&self.launcher_arguments).arg("--program").arg(program);
        command.arg("--").args(&self.arguments).args(["--batch-size", &per_rank.to_string()]);
        if self.threads > 0 {
            let threads = self.threads.to_string();
            command.envs([("OMP_NUM_THREADS", &threads), ("RAYON_NUM_THREADS", &threads)]);
        }
        let missing = |source| ScalingError::Launcher { path: launcher.to_owned(), source };
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(missing)?;
        if !output.status.success() {
            return Err(ScalingError::Job { ranks, status: output.status });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let found = text.lines().find_map(|line| Some(line.split_once(MARK)?.1));
        found.and_then(|json| serde_json::from_str(json).ok()).ok_or(ScalingError::Silent { ranks })
    }
}

impl Measurement {
    /// The line that rank 0 of a job prints for [`Experiment::run`].
    pub fn to_line(&self) -> String {
        let json = serde_json::to_string(self).expect("a struct of numbers is always valid JSON");
        format!("{MARK}{json}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strong_experiment_needs_a_batch_that_can_be_divided() {
        let experiment = |mode, batch_size| Experiment {
            mode,
            ranks: vec![1, 2, 4],
            batch_size,
            threads: 1,
            arguments: Vec::new(),
            launcher_arguments: Vec::new(),
        };
        assert!(experiment(Mode::Weak, 1).check().is_ok());
        assert!(experiment(Mode::Strong, 8).check().is_ok());
        let error = experiment(Mode::Strong, 6).check().unwrap_err().to_string();
        assert!(error.contains("6 cannot be divided over 4 ranks"), "{error}");
    }
}
