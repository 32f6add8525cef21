//! Selection of the checkpoints of a model.

use std::path::{Path, PathBuf};

use super::InferError;
use nnunet_data::work::{FoldId, RunDir};
use nnunet_nn::checkpoint::HEADER;
use nnunet_nn::model::TensorFileError;

/// Default folds, those of nnU-Net v2's five-fold cross-validation.
pub const DEFAULT_FOLDS: [FoldId; 5] =
    [FoldId::Number(0), FoldId::Number(1), FoldId::Number(2), FoldId::Number(3), FoldId::Number(4)];

/// Checkpoint of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum CheckpointName {
    /// Best moving average of the pseudo Dice.
    #[cfg_attr(feature = "clap", value(alias = "checkpoint_best.pth"))]
    Best,
    /// Latest checkpoint.
    #[default]
    #[cfg_attr(feature = "clap", value(aliases = ["final", "checkpoint_final.pth", "checkpoint_latest.pth"]))]
    Latest,
}

impl CheckpointName {
    /// Returns the checkpoint in a run directory; the path of a checkpoint is returned as is.
    pub fn path_in(self, model: &Path) -> PathBuf {
        let is_checkpoint = model.is_file() || model.join(HEADER).is_file();
        if is_checkpoint { model.to_owned() } else { self.path_in_run(&RunDir::new(model)) }
    }

    fn path_in_run(self, run: &RunDir) -> PathBuf {
        match self {
            Self::Best => run.checkpoint_best(),
            Self::Latest => run.checkpoint_latest(),
        }
    }
}

/// Finds the checkpoints of `models`. Each model is a checkpoint, a run directory, or a folder of runs `fold_FOLD`;
/// from the latter, `folds` are selected, or [`DEFAULT_FOLDS`] if `folds` is empty.
///
/// # Errors
/// Returns an error if a fold does not have the checkpoint, or if folds are given for a model that is not a folder of
/// runs.
pub fn find_checkpoints(
    models: &[PathBuf],
    folds: &[FoldId],
    name: CheckpointName,
) -> Result<Vec<PathBuf>, InferError> {
    let mut found = Vec::new();
    for model in models {
        let trained = if model.is_dir() { trained_folds(model) } else { Vec::new() };
        if !trained.is_empty() {
            let folds = if folds.is_empty() { &DEFAULT_FOLDS } else { folds };
            for fold in folds {
                let checkpoint = name.path_in_run(&RunDir::new(model.join(format!("fold_{fold}"))));
                if !checkpoint.is_dir() && !checkpoint.is_symlink() {
                    let defect = format!(
                        "missing checkpoint; -f selects folds, available: {}",
                        trained.iter().map(|fold| fold.to_string()).collect::<Vec<_>>().join(" ")
                    );
                    return Err(TensorFileError::new(&checkpoint, defect).into());
                }
                found.push(checkpoint);
            }
        } else if !folds.is_empty() {
            let defect = "contains no folds (fold_0, fold_1, …) to select";
            return Err(TensorFileError::new(model, defect).into());
        } else {
            found.push(name.path_in(model));
        }
    }
    Ok(found)
}

/// Returns the folds in a folder of runs in ascending order; empty for any other path.
fn trained_folds(model: &Path) -> Vec<FoldId> {
    let entries = std::fs::read_dir(model).into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut folds: Vec<FoldId> = names.filter_map(|name| name.strip_prefix("fold_")?.parse().ok()).collect();
    folds.sort_by_key(|fold| match fold {
        FoldId::Number(number) => *number,
        FoldId::All => usize::MAX,
    });
    folds
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn models_are_checkpoints_runs_and_folders_of_runs() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("3d_fullres");
        let write = |path: &str| {
            fs::create_dir_all(model.join(path)).unwrap();
            fs::write(model.join(path).join(HEADER), "").unwrap();
        };
        (0..5).for_each(|fold| write(&format!("fold_{fold}/checkpoint_latest")));
        write("fold_all/checkpoint_best");
        write("elsewhere");

        let find = |model: &Path, folds: &[FoldId], name| find_checkpoints(&[model.to_owned()], folds, name);
        let expected: Vec<_> = (0..5).map(|fold| model.join(format!("fold_{fold}/checkpoint_latest"))).collect();
        assert_eq!(find(&model, &[], CheckpointName::Latest).unwrap(), expected);
        let all = find(&model, &[FoldId::All], CheckpointName::Best).unwrap();
        assert_eq!(all, [model.join("fold_all/checkpoint_best")]);
        let run = model.join("fold_3");
        assert_eq!(find(&run, &[], CheckpointName::Best).unwrap(), [run.join("checkpoint_best")]);
        assert_eq!(find(&model.join("elsewhere"), &[], CheckpointName::Best).unwrap(), [model.join("elsewhere")]);

        let missing = find(&model, &[FoldId::All], CheckpointName::Latest).unwrap_err().to_string();
        assert!(
            missing.contains("fold_all/checkpoint_latest") && missing.contains("available: 0 1 2 3 4 all"),
            "{missing}"
        );
        let error = find(&run, &[FoldId::Number(0)], CheckpointName::Latest).unwrap_err().to_string();
        assert!(error.contains("fold_3: contains no folds"), "{error}");
    }
}
