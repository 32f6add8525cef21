#!/usr/bin/env python3
"""Dice of short trainings with nnunet-dist and with nnU-Net v2, for several seeds each.

    seeds.py --dataset Task04_Hippocampus --keep FOLDER [--bin target/release/nnunet-dist] [--seeds 3] [--seed N]
             [--program peer|ours]

Fold 0 of 3d_fullres: nnU-Net's plans, split and full augmentation, batch size 2, 10 epochs of 100 steps, 5 validation
batches after each. The program that trained also predicts the held-out cases, with mirroring, and evaluates them.
FOLDER keeps every finished training, so the command can be stopped and repeated; the last lines are a table of all
trainings in it. Takes half an hour per seed on two cores; needs nnunetv2.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from roundtrip import CONFIGURATION, subset

DATASET = "Dataset004_Hippocampus"
BATCH, EPOCHS, STEPS, VALIDATION_STEPS = 2, 10, 100, 5


def prepare(arguments, folder):
    """Plans and preprocesses for both programs, with nnunet-dist's plans: nnU-Net's, with another batch size."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    raw, work, preprocessed = folder / "nnUNet_raw" / DATASET, folder / "work", folder / "nnUNet_preprocessed" / DATASET
    if (folder / "prepared").exists():
        return work, preprocessed
    for stale in (raw, work, preprocessed):
        shutil.rmtree(stale, ignore_errors=True)
    subset(arguments.dataset, raw, None)
    subprocess.run([arguments.bin, "-q", "plan", "-d", raw, "-w", work], check=True)
    subprocess.run([arguments.bin, "-q", "preprocess", "-w", work, "-c", CONFIGURATION], check=True)
    preprocessed.mkdir(parents=True)
    plans = json.loads((work / "nnUNetPlans.json").read_text(encoding="utf-8"))
    plans["dataset_name"] = DATASET
    plans["configurations"][CONFIGURATION]["batch_size"] = BATCH
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    for name in ("dataset.json", "splits_final.json", "dataset_fingerprint.json"):
        shutil.copy(work / name, preprocessed / name)
    shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations")
    DefaultPreprocessor(verbose=False).run(4, CONFIGURATION, "nnUNetPlans", 2)
    (folder / "prepared").touch()
    return work, preprocessed


def train_ours(arguments, work, run, seed):
    words = ("-q", "train", "-w", work, "-c", CONFIGURATION, "-f", 0, "--batch-size", BATCH, "--epochs", EPOCHS,
             "--iters-per-epoch", STEPS, "--val-iters", VALIDATION_STEPS, "--seed", seed, "--run-dir", run)
    subprocess.run([arguments.bin, *map(str, words)], check=True, stdout=sys.stderr)


def train_peer(preprocessed, run, seed):
    import numpy
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    # As nnU-Net's command does on a CPU; the trainer sets no seed, and its loader is a process with its own seed.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    plans, dataset = (json.loads((preprocessed / name).read_text(encoding="utf-8"))
                      for name in ("nnUNetPlans.json", "dataset.json"))
    trainer = nnUNetTrainer(plans | {"continue_training": False}, CONFIGURATION, 0, dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = EPOCHS, STEPS
    trainer.num_val_iterations_per_epoch = VALIDATION_STEPS
    trainer.run_training()
    trainer.perform_actual_validation(False)
    shutil.move(trainer.output_folder, run)


def mean_dice(run):
    """Mean over cases, then over labels; also by label."""
    summary = json.loads((run / "validation" / "summary.json").read_text(encoding="utf-8"))
    by_label = [summary["mean"][label]["Dice"] for label in sorted(summary["mean"], key=int) if label != "0"]
    return [statistics.mean(by_label), *by_label]


def table(runs):
    print(f"{'program':<12} {'seed':>4} {'mean Dice':>10}  by label")
    for program in ("ours", "peer"):
        means = []
        for run in sorted(runs.glob(f"{program}_*")):
            mean, *by_label = mean_dice(run)
            means.append(mean)
            print(f"{program:<12} {run.name.split('_')[1]:>4} {mean:>10.4f}  {'  '.join(f'{dice:.4f}' for dice in by_label)}")
        if means:
            print(f"{program:<12} mean {statistics.mean(means):>10.4f}  from {min(means):.4f} to {max(means):.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=pathlib.Path, required=True)
    parser.add_argument("--keep", type=pathlib.Path, required=True)
    parser.add_argument("--bin", default="nnunet-dist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--program", choices=("ours", "peer"), help="only this one")
    arguments = parser.parse_args()

    folder = arguments.keep.resolve()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder / name)
    os.environ.update(nnUNet_compile="false", nnUNet_n_proc_DA="1", nnUNet_def_n_proc="2")
    work, preprocessed = prepare(arguments, folder)
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    for seed in (arguments.seed,) if arguments.seed else range(1, arguments.seeds + 1):
        for program in (arguments.program,) if arguments.program else ("ours", "peer"):
            run, began = runs / f"{program}_{seed}", time.perf_counter()
            if (run / "validation" / "summary.json").exists():
                continue
            shutil.rmtree(run, ignore_errors=True)
            if program == "ours":
                train_ours(arguments, work, run, seed)
            else:
                train_peer(preprocessed, run, seed)
            print(json.dumps({"program": program, "seed": seed, "dice": mean_dice(run)[0],
                              "seconds": round(time.perf_counter() - began)}), flush=True)
    table(runs)


if __name__ == "__main__":
    main()
