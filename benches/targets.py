#!/usr/bin/env python3
"""Tests regions, a cascade, a residual encoder and the ignore label on real multi-modal images, from planning to evaluation.

    targets.py --dataset Dataset101_BraTS2015mini --keep FOLDER [--bin target/release/nnunet-dist] [--iterations 150]

The four tumor labels are learned as three regions by a plain network, by a cascade with a forced first stage, and by
a residual encoder; then again by the plain network with seven of eight slices labeled `ignore`. The networks have a
quarter of the features and patches of 64^3 voxels. Prints one JSON line per network with the Dice of the held-out
cases, and fails if a command fails, if no whole tumor is found, or if `ignore` is predicted. Takes minutes on two
cores; needs numpy and SimpleITK. Finished trainings in FOLDER are not repeated.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import time

import SimpleITK

ENDING = ".nii.gz"
REGIONS = {
    "labels": {"background": 0, "whole_tumour": [1, 2, 3, 4], "tumour_core": [1, 3, 4], "enhancing": [4]},
    "regions_class_order": [2, 1, 4],
}
# Necrosis and non-enhancing tumor are merged, so that predictions in the order above are labels.
LABEL_OF = {0: 0, 1: 1, 2: 2, 3: 1, 4: 4}
IGNORE = 5
ANNOTATED = 8
PATCH = [64, 64, 64]


def make_dataset(source, target, labels, edit):
    """The images of `source`, with label maps changed by `edit`."""
    if (target / "dataset.json").exists():
        return
    (target / "imagesTr").mkdir(parents=True, exist_ok=True)
    (target / "labelsTr").mkdir(exist_ok=True)
    for image in sorted((source / "imagesTr").glob(f"*{ENDING}")):
        link = target / "imagesTr" / image.name
        link.unlink(missing_ok=True)
        link.symlink_to(image.resolve())
    cases = sorted((source / "labelsTr").glob(f"*{ENDING}"))
    for path in cases:
        image = SimpleITK.ReadImage(str(path))
        edited = SimpleITK.GetImageFromArray(edit(SimpleITK.GetArrayFromImage(image)))
        edited.CopyInformation(image)
        SimpleITK.WriteImage(edited, str(target / "labelsTr" / path.name))
    description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    (target / "dataset.json").write_text(json.dumps(description | labels | {"numTraining": len(cases)}), encoding="utf-8")


def merged(labels):
    result = labels.astype("uint8")
    for label, merged_label in LABEL_OF.items():
        result[labels == label] = merged_label
    return result


def sparse(labels):
    """Keeps the annotation in one slice of eight."""
    result = merged(labels)
    is_annotated = [z % ANNOTATED == ANNOTATED // 2 for z in range(len(result))]
    result[[not each for each in is_annotated]] = IGNORE
    return result


def shrink(path):
    """Edits the plans as a user does: smaller patches and networks."""
    plans = json.loads(path.read_text(encoding="utf-8"))
    for configuration in plans["configurations"].values():
        architecture = configuration.get("architecture")
        if architecture is None or len(configuration["patch_size"]) != 3:
            continue
        configuration["patch_size"] = PATCH
        kwargs = architecture["arch_kwargs"]
        stages = kwargs["n_stages"] = 5
        for key, per_stage in kwargs.items():
            if isinstance(per_stage, list) and per_stage:
                kwargs[key] = per_stage[:stages - 1] if key == "n_conv_per_stage_decoder" else per_stage[:stages]
        kwargs["features_per_stage"] = [max(8, features // 4) for features in kwargs["features_per_stage"]]
    path.write_text(json.dumps(plans), encoding="utf-8")


class Networks:
    def __init__(self, arguments):
        self.binary, self.iterations, self.precision = arguments.bin, arguments.iterations, arguments.precision
        self.failed = False

    def ours(self, *words):
        subprocess.run([self.binary, "-q", *map(str, words)], check=True, stdout=sys.stderr)

    def plan(self, dataset, work, *flags, plans="nnUNetPlans", configurations):
        file = work / f"{plans}.json"
        if not file.exists():
            self.ours("plan", "-d", dataset, "-w", work, *flags)
            shrink(file)
            self.ours("preprocess", "-w", work, "-p", plans, "-c", *configurations)

    def train(self, run, work, configuration, fold, *flags):
        if not (run / "validation" / "summary.json").exists():
            self.ours("train", "-w", work, "-c", configuration, "-f", fold, "--epochs", 1, "--iters-per-epoch", self.iterations,
                      "--batch-size", 2, "--val-iters", 4, "--precision", self.precision, "--run-dir", run, "--resume=auto", *flags)

    def predict_and_evaluate(self, what, run, dataset, output, *flags, truth=None):
        """Predictions of the held-out cases from their raw images."""
        began = time.perf_counter()
        images = output / "images"
        images.mkdir(parents=True, exist_ok=True)
        held_out = [path.name.removesuffix(ENDING) for path in (run / "validation").glob(f"*{ENDING}")]
        for case in held_out:
            for image in (dataset / "imagesTr").glob(f"{case}_????{ENDING}"):
                link = images / image.name
                link.unlink(missing_ok=True)
                link.symlink_to(image.resolve())
        predictions = output / "predictions"
        self.ours("predict", "-r", run, "-i", images, "-o", predictions, "--disable-tta", *flags)
        # Without the training cases.
        self.ours("evaluate", "-p", predictions, "-g", (truth or dataset) / "labelsTr", "--chill", "--dataset-json",
                  dataset / "dataset.json")
        summary = json.loads((predictions / "summary.json").read_text(encoding="utf-8"))
        dice = {name: round(metrics["Dice"], 4) for name, metrics in summary["mean"].items()}
        maps = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(predictions / f"{case}{ENDING}"))) for case in held_out]
        found = sorted({int(label) for each in maps for label in set(each.flatten().tolist())})
        passed = max(dice.values()) > 0 and IGNORE not in found and len(maps) > 0
        self.failed |= not passed
        print(json.dumps({"network": what, "passed": passed, "cases": len(maps), "dice": dice, "labels_predicted": found,
                          "seconds": round(time.perf_counter() - began)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=pathlib.Path, required=True)
    parser.add_argument("--keep", type=pathlib.Path, required=True)
    parser.add_argument("--bin", default="nnunet-dist")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--precision", default="amp-bf16")
    arguments = parser.parse_args()
    folder, networks = arguments.keep.resolve(), Networks(arguments)

    regions, work = folder / "regions", folder / "work"
    make_dataset(arguments.dataset, regions, REGIONS, merged)
    networks.plan(regions, work, "--force-lowres", configurations=("3d_fullres", "3d_lowres"))
    run = folder / "plain"
    networks.train(run, work, "3d_fullres", 0)
    networks.predict_and_evaluate("regions, plain", run, regions, folder / "plain_predicted")

    lowres, cascade = folder / "lowres", folder / "cascade"
    networks.train(lowres, work, "3d_lowres", "all")
    networks.train(cascade, work, "3d_cascade_fullres", 0, "--prev-stage", lowres)
    networks.predict_and_evaluate("regions, cascade", cascade, regions, folder / "cascade_predicted", "--prev-stage", lowres)

    plans, run = "nnUNetResEncUNetMPlans", folder / "residual"
    networks.plan(regions, work, "--planner", "resenc-m", plans=plans, configurations=("3d_fullres",))
    networks.train(run, work, "3d_fullres", 0, "-p", plans)
    networks.predict_and_evaluate("regions, residual encoder M", run, regions, folder / "residual_predicted")

    ignoring, work, run = folder / "ignoring", folder / "work_ignoring", folder / "ignore"
    make_dataset(arguments.dataset, ignoring, REGIONS | {"labels": REGIONS["labels"] | {"ignore": IGNORE}}, sparse)
    networks.plan(ignoring, work, configurations=("3d_fullres",))
    networks.train(run, work, "3d_fullres", 0)
    # Against the annotation of all slices.
    networks.predict_and_evaluate("regions, ignored slices", run, ignoring, folder / "ignore_predicted", truth=regions)
    sys.exit(1 if networks.failed else 0)


if __name__ == "__main__":
    main()
