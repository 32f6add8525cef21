#!/bin/bash
# Trains all folds of one or several configurations, one job per fold, and compares them after all jobs have succeeded:
#   WORK=hippocampus slurm/submit_cross_validation.sh [flags of sbatch for the trainings]
#   WORK=hippocampus CONFIG='2d 3d_fullres' slurm/submit_cross_validation.sh
#
# Environment: the variables of train.sbatch and cross_validation.sbatch.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
: "${WORK:?the work folder created by plan and preprocess}"
unset FOLD RUN_DIR

read -ra configs <<<"${CONFIG:-3d_fullres}"
if [ ${#configs[@]} -gt 1 ]; then
    # Ensembles average the probabilities of the held-out cases.
    export TRAIN_FLAGS="--npz ${TRAIN_FLAGS:-}"
fi
tasks=$((${#configs[@]} * ${FOLDS:-5}))
trainings=$(sbatch --parsable --array="0-$((tasks - 1))" "$@" "$here/train.sbatch")
comparison=$(sbatch --parsable --dependency="afterok:$trainings" --kill-on-invalid-dep=yes "$here/cross_validation.sbatch")
echo "job array $trainings trains, job $comparison compares"
