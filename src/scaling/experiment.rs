//! Runs one job per number of ranks with the launcher.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;

use super::Measurement;

/// Quantity that is kept constant while the number of ranks grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Batch size per rank.
    Weak,
    /// Global batch size over all ranks.
    Strong,
}

/// A series of jobs.
#[derive(Clone, Debug)]
pub struct Experiment {
    pub mode: Mode,
    /// Numbers of ranks.
    pub ranks: Vec<usize>,
    /// Samples per rank or over all ranks, depending on `mode`.
    pub batch_size: usize,
    /// Threads per rank on the CPU, the same in all jobs; 0 divides the cores among the ranks.
    pub threads: usize,
    /// Arguments of `nnunet-dist` for one rank, without its batch size.
    pub arguments: Vec<String>,
    /// Additional arguments of the launcher, such as hosts or Slurm.
    pub launcher_arguments: Vec<String>,
}

/// An experiment that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScalingError {
    /// The settings are inconsistent.
    #[error("{0}")]
    Setting(String),
    /// The launcher is missing.
    #[error("{}: {source}; the launcher must be in the same folder as nnunet-dist", path.display())]
    Launcher { path: PathBuf, source: io::Error },
    /// A job failed; its ranks have printed the reason.
    #[error("the job with {ranks} rank(s) failed with {status}")]
    Job { ranks: usize, status: std::process::ExitStatus },
    /// A job printed no measurement.
    #[error("the job with {ranks} rank(s) printed no measurement")]
    Silent { ranks: usize },
    /// A result cannot be written.
    #[error("{}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Prefix of the line with a job's measurement.
pub(super) const MARK: &str = "measurement: ";

impl Experiment {
    /// Checks the settings before the first job.
    ///
    /// # Errors
    /// Returns an error if there is no number of ranks, or if one does not divide the global batch of [`Mode::Strong`].
    pub fn check(&self) -> Result<(), ScalingError> {
        if self.ranks.is_empty() || self.ranks.contains(&0) {
            return Err(ScalingError::Setting("--np: the numbers of ranks must be at least 1".into()));
        }
        match self.ranks.iter().find(|ranks| !self.batch_size.is_multiple_of(**ranks)) {
            Some(ranks) if self.mode == Mode::Strong => Err(ScalingError::Setting(format!(
                "global batch {} cannot be divided over {ranks} ranks; --batch-size must be a multiple of every --np",
                self.batch_size
            ))),
            _ => Ok(()),
        }
    }

    /// Runs one job with `launcher` and returns its measurement. The standard error of the job is passed through.
    ///
    /// # Errors
    /// Returns an error if the launcher is missing or the job fails.
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
