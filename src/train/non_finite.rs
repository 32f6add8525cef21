//! Handling of steps whose loss or gradient is NaN or infinite.

use std::path::PathBuf;

use super::TrainError;
use super::context::TrainingContext;
use super::nan_dump::{NanDump, RankBatches, write_step};
use nnunet_core::rng::Purpose;
use nnunet_nn::checkpoint::{Checkpoint, Progress};

/// Maximum number of consecutive skipped steps before the run ends.
pub(super) const MAX_CONSECUTIVE_SKIPS: usize = 20;
/// Maximum number of rollbacks caused by the same step before the run ends.
pub(super) const MAX_ROLLBACKS: u64 = 3;
/// Maximum number of skipped steps that are dumped for a replay.
pub(super) const MAX_DUMPS: usize = 3;

impl TrainingContext<'_> {
    /// Dumps a step to the run directory so that it can be replayed: weights and optimizer from rank 0, batches from
    /// each rank. Returns the dump with the names of all cases, and its folder. A collective.
    ///
    /// # Errors
    /// Returns an error if the samples cannot be read again, or a rank is lost. If the dump cannot be written, for
    /// example on a full disk, there is only a warning.
    pub(super) fn dump_step(
        &self,
        dump: NanDump,
        checkpoint: impl FnOnce() -> Checkpoint,
        progress: &Progress,
    ) -> Result<(NanDump, PathBuf), TrainError> {
        const WHAT: &str = "samples of a step without a loss";
        let NanDump { epoch, iteration, .. } = dump;
        let at = Progress {
            next_epoch: epoch,
            next_iteration: iteration,
            rollbacks: progress.rollbacks,
            ..Progress::default()
        };
        let mut loader = self.loader(Purpose::TrainSample, &at)?;
        let batches = (0..self.config.training.gradient_accumulation_steps)
            .map(|_| loader.next())
            .collect::<Result<Vec<_>, _>>()?;
        let own: Vec<&str> =
            batches.iter().flat_map(|batch| &batch.samples).map(|sample| sample.case.as_str()).collect();
        let all = self.comm.all_gather_bytes(own.join("\n").as_bytes(), WHAT)?;
        let mut cases: Vec<String> = all
            .iter()
            .flat_map(|names| String::from_utf8_lossy(names).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        cases.sort();
        cases.dedup();
        let dump = NanDump { cases, ..dump };

        let step = epoch * self.config.training.iterations_per_epoch + iteration + 1;
        let folder = self.config.run_dir().nan_dumps().join(format!("step_{step:010}"));
        let mut written = match self.comm.rank() {
            0 => write_step(&folder, &dump, &checkpoint()),
            _ => Ok(()),
        };
        self.comm.barrier(WHAT)?;
        let rank = self.comm.rank();
        if written.is_ok() {
            written = RankBatches { rank, batches }.write(&folder);
        }
        if let Err(error) = written {
            tracing::warn!("{error}; rank {rank} does not dump the step");
        }
        self.comm.barrier(WHAT)?;
        Ok((dump, folder))
    }
}
