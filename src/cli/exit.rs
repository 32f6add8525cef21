//! Exit codes and the mapping of library errors to them.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | success |
//! | 1 | internal error: please report |
//! | 2 | usage: an unknown flag, a missing argument |
//! | 3 | invalid data, plans or configuration; the message names the file or key |
//! | 4 | a device or a library is missing; `nnunet-dist doctor` prints how to install it |
//! | 5 | out of GPU memory; the message names the settings to lower |
//! | 75 | temporary failure (rank, node, network, disk); continue from the last checkpoint with `train --resume` |
//! | 79 | stopped by SIGUSR1, SIGTERM or SIGINT (Ctrl-C) after saving a checkpoint; continue with `train --resume` |
//! | 101 | a panic |

use std::io;

use crate::crossval::CrossvalError;
use crate::report::ReportError;
use crate::scaling::ScalingError;
use crate::serve::ServeError;
use nnunet_comm::distributed::{CommError, Fault};
use nnunet_core::lock::LockError;
use nnunet_core::protect::InputOverwritten;
use nnunet_data::dataset::DatasetError;
use nnunet_data::loader::LoaderError;
use nnunet_data::plan::PlanError;
use nnunet_data::preprocess::PreprocessError;
use nnunet_data::store::{LocalCacheError, StoreError};
use nnunet_data::work::ConfigError;
use nnunet_eval::EvalError;
use nnunet_image::ImageError;
use nnunet_infer::ensemble::EnsembleError;
use nnunet_infer::{InferError, ProbabilityError};
use nnunet_interop::InteropError;
use nnunet_nn::backend::DeviceError;
use nnunet_nn::model::TensorFileError;
use nnunet_train::TrainError;

/// Internal error, not caused by the user's data or machine.
pub const INTERNAL: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The data, the plans or the configuration are invalid.
pub const INVALID: u8 = 3;
/// A device or a library is missing.
pub const MISSING: u8 = 4;
/// Temporary failure: the same command may succeed when run again (`EX_TEMPFAIL` of sysexits.h).
pub const RETRY: u8 = 75;

/// Stopped on request without loss of progress: not a failure (the first code unused by sysexits.h).
pub const STOPPED: u8 = 79;

/// Training stopped as requested.
#[derive(Debug, thiserror::Error)]
#[error("stopped by a signal; continue from the checkpoint with `--resume`")]
pub struct Stopped;

/// Device or library missing on this machine or in this build.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not available: {remedy}")]
pub struct Missing {
    /// Name of the device or library.
    pub what: String,
    /// Installation hint.
    pub remedy: String,
}

/// Returns the exit code of a failed command.
///
/// The causes are searched from the outside in; the first known type determines the code.
///
/// A full, failing or vanished disk is a temporary failure whatever the command was doing. Most errors keep only the
/// text of an I/O error, which ends with its number.
pub fn code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| is_disk_failure(&cause.to_string())) {
        return RETRY;
    }
    error.chain().find_map(code_of).unwrap_or(INTERNAL)
}

/// Returns whether a message contains the text of an I/O error of a full, failing or vanished disk, as formatted by
/// [`io::Error`].
fn is_disk_failure(message: &str) -> bool {
    [libc::ENOSPC, libc::EDQUOT, libc::EIO, libc::EROFS, libc::ESTALE]
        .iter()
        .any(|number| message.contains(&format!("(os error {number})")))
}

/// Maps one cause. `None` defers to the next cause: if a file could not be read, the I/O error determines the code.
fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<CommError>() {
        Some(comm_code(error.fault))
    } else if let Some(ScalingError::Job { status, .. }) = cause.downcast_ref() {
        // The job has already reported the cause.
        status.code().and_then(|code| u8::try_from(code).ok())
    } else if cause.is::<Stopped>() {
        Some(STOPPED)
    } else if matches!(cause.downcast_ref(), Some(TrainError::Unsaved { .. })) {
        Some(RETRY)
    } else if cause.is::<Missing>()
        || matches!(cause.downcast_ref(), Some(ScalingError::Launcher { .. }))
        || matches!(cause.downcast_ref(), Some(DeviceError::NotBuilt(_)))
    {
        Some(MISSING)
    } else if cause.is::<ConfigError>()
        || cause.is::<InputOverwritten>()
        || matches!(cause.downcast_ref(), Some(LockError::Held { .. }))
        || cause.is::<ImageError>()
        || cause.is::<PlanError>()
        || cause.is::<StoreError>()
        || cause.is::<TensorFileError>()
        || matches!(cause.downcast_ref(), Some(InteropError::File { .. }))
        || matches!(cause.downcast_ref(), Some(ScalingError::Setting(_)))
        || matches!(cause.downcast_ref(), Some(PreprocessError::Case { .. }))
        || matches!(cause.downcast_ref(), Some(LocalCacheError::Copy { .. }))
        || matches!(cause.downcast_ref(), Some(LoaderError::Setup(_) | LoaderError::Sample { .. }))
        || matches!(
            cause.downcast_ref(),
            Some(
                TrainError::Checkpoint { .. }
                    | TrainError::Exists { .. }
                    | TrainError::Diverged { .. }
                    | TrainError::Untrained { .. }
            )
        )
        || matches!(cause.downcast_ref(), Some(TrainError::PreviousStage { .. }))
        || matches!(cause.downcast_ref(), Some(CrossvalError::Invalid { .. }))
        || matches!(cause.downcast_ref(), Some(EnsembleError::Invalid { .. } | EnsembleError::Cases { .. }))
        || cause.is::<ProbabilityError>()
        || cause.is::<ReportError>()
        || matches!(cause.downcast_ref(), Some(ServeError::Listen { .. }))
        || matches!(
            cause.downcast_ref(),
            Some(
                InferError::Weights { .. }
                    | InferError::Ensemble { .. }
                    | InferError::Cases { .. }
                    | InferError::NotResults { .. }
            )
        )
        || matches!(cause.downcast_ref(), Some(InferError::NoPreviousStage { .. } | InferError::NotCascaded { .. }))
        || matches!(cause.downcast_ref(), Some(InferError::OtherStage { .. } | InferError::PreviousMissing { .. }))
        || matches!(cause.downcast_ref(), Some(InferError::TooLarge { .. }))
    {
        Some(INVALID)
    } else if let Some(error) = cause.downcast_ref::<DatasetError>() {
        (!matches!(error, DatasetError::Io { .. })).then_some(INVALID)
    } else if let Some(error) = cause.downcast_ref::<EvalError>() {
        (!matches!(error, EvalError::Io { .. })).then_some(INVALID)
    } else {
        cause.downcast_ref::<io::Error>().map(io_code)
    }
}

fn comm_code(fault: Fault) -> u8 {
    match fault {
        Fault::Lost | Fault::Desync => RETRY,
        Fault::Disagreement => INVALID,
        Fault::Unavailable => MISSING,
    }
}

/// Maps I/O errors: an unusable file named by the user is invalid data; a full or failing disk is a temporary failure.
fn io_code(error: &io::Error) -> u8 {
    use io::ErrorKind::*;
    match error.kind() {
        NotFound | AlreadyExists | PermissionDenied | NotADirectory | IsADirectory | InvalidData | UnexpectedEof => {
            INVALID
        }
        StorageFull | QuotaExceeded | ReadOnlyFilesystem | StaleNetworkFileHandle | TimedOut => RETRY,
        _ if error.raw_os_error() == Some(libc::EIO) => RETRY,
        _ => INTERNAL,
    }
}

/// Joins the chain of causes into one line without repetition.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        // Many errors already include the message of their source.
        if !line.contains(&cause) {
            let separator = if line.is_empty() { "" } else { ": " };
            line.extend([separator, &cause]);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::{Context, anyhow};

    use super::*;
    use nnunet_train::telemetry::TelemetryError;

    #[test]
    fn the_known_cause_decides_wherever_it_is_in_the_chain() {
        let config = || anyhow::Error::from(ConfigError::new("a.toml", "unknown key `x`"));
        assert_eq!(code(&config()), INVALID);
        assert_eq!(code(&config().context("training").context("demo")), INVALID);
        assert_eq!(code(&anyhow!("surprise")), INTERNAL);
        let dataset = DatasetError::Invalid { path: "dataset.json".into(), defect: "no labels".into() };
        assert_eq!(code(&dataset.into()), INVALID);
        let unwritten =
            DatasetError::Io { path: "splits_final.json".into(), source: io::ErrorKind::StorageFull.into() };
        assert_eq!(code(&unwritten.into()), RETRY);
        let comm = |fault| {
            let (operation, reason) = ("all-reduce".into(), "rank 0 is gone".into());
            anyhow::Error::from(CommError { rank: 1, operation, elapsed_s: 5.0, fault, reason }).context("epoch 3")
        };
        assert_eq!(code(&comm(Fault::Lost)), RETRY);
        assert_eq!(code(&comm(Fault::Disagreement)), INVALID);
        assert_eq!(code(&comm(Fault::Unavailable)), MISSING);
        assert_eq!(code(&io::Error::from(io::ErrorKind::NotFound).into()), INVALID);
        assert_eq!(code(&io::Error::from_raw_os_error(libc::EIO).into()), RETRY);
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(code(&ImageError::new(Path::new("a.nii"), &full).into()), RETRY);
        assert_eq!(code(&TensorFileError::new(Path::new("model.pth"), &full).into()), RETRY);
        let unwritten = TelemetryError::io(Path::new("log.jsonl"), io::ErrorKind::StorageFull.into());
        assert_eq!(code(&TrainError::Telemetry(unwritten).into()), RETRY);
    }

    #[test]
    fn a_chain_is_one_line_without_repetition() {
        let error = Err::<(), _>(anyhow!("no such\nfile")).context("images/a.nii: no such file").context("predict");
        assert_eq!(one_line(&error.unwrap_err()), "predict: images/a.nii: no such file");
    }
}
