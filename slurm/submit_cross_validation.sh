#!/bin/bash
# Trains all folds, one job each, and evaluates them together when the last has succeeded:
#   WORK=hippocampus slurm/submit_cross_validation.sh [flags of sbatch for the trainings]
#
# Environment: that of train.sbatch, and FOLDS, the number of folds [5].
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
: "${WORK:?the work folder that plan and preprocess made}"
unset FOLD RUN_DIR

folds=$(sbatch --parsable --array="0-$((${FOLDS:-5} - 1))" "$@" "$here/train.sbatch")
evaluation=$(sbatch --parsable --dependency="afterok:$folds" --kill-on-invalid-dep=yes "$here/cross_validation.sbatch")
echo "job array $folds trains, job $evaluation evaluates"
