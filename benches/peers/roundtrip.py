#!/usr/bin/env python3
"""Converts models from nnU-Net v2 to nnunet-dist and back, and checks that both predict the same.

    roundtrip.py --dataset Task04_Hippocampus [--bin target/release/nnunet-dist] [--cases 20] [--iterations 250]

A few cases are planned by nnunet-dist, the network is made small, and each program preprocesses and trains for some
steps. nnU-Net's model is imported, nnunet-dist's exported (as .pth, .safetensors and .onnx); the label maps of both
are compared, and so are the logits of PyTorch and ONNX Runtime. Each continues training from the other's weights.
Prints one JSON line per comparison, and fails if one differs too much. Takes minutes on two cores; needs nnunetv2,
onnxruntime and safetensors.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

CONFIGURATION = "3d_fullres"
DATASET = "Dataset004_Roundtrip"
# Label maps differ in voxels where two logits are equal up to rounding: nnU-Net sums windows in half precision. A network
# after very few steps has many such voxels; after a few dozen steps it predicts only background.
EQUAL_VOXELS = 0.999


def subset(source, target, count):
    """Copies the first cases of a dataset in the layout of MSD or nnU-Net v2 to that of nnU-Net v2."""
    description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    ending = description.get("file_ending", ".nii.gz")
    labels = sorted(path for path in (source / "labelsTr").glob(f"*{ending}") if not path.name.startswith("."))[:count]
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (target / folder).mkdir(parents=True)
    for number, label in enumerate(labels):
        case = label.name.removesuffix(ending)
        images = sorted((source / "imagesTr").glob(f"{case}_????{ending}")) or [source / "imagesTr" / label.name]
        (target / "labelsTr" / label.name).symlink_to(label.resolve())
        for channel, image in enumerate(images):
            name = f"{case}_{channel:04}{ending}"
            (target / "imagesTr" / name).symlink_to(image.resolve())
            if number < 10:
                (target / "imagesTs" / name).symlink_to(image.resolve())
    names = description["labels"]
    if all(key.isdigit() for key in names):
        names = {"background" if key == "0" else value: int(key) for key, value in names.items()}
    (target / "dataset.json").write_text(json.dumps({
        "channel_names": description.get("channel_names") or description["modality"], "labels": names,
        "numTraining": len(labels), "file_ending": ending}), encoding="utf-8")


def shrink(plans):
    """Edits the plans: half the features, batch size 2."""
    configuration = plans["configurations"][CONFIGURATION]
    configuration["batch_size"] = 2
    kwargs = configuration["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [max(4, features // 2) for features in kwargs["features_per_stage"]]
    plans["dataset_name"] = DATASET
    plans["configurations"] = {CONFIGURATION: configuration}
    return plans


def report(what, passed, **figures):
    print(json.dumps({"comparison": what, "passed": bool(passed), **figures}), file=sys.__stdout__, flush=True)
    return bool(passed)


def compare_maps(what, ours, theirs, ending):
    """Label maps must agree and contain foreground."""
    import SimpleITK
    from predict import equal_share

    share, maps = equal_share(ours, theirs, ending)
    images = (SimpleITK.ReadImage(str(path)) for path in theirs.glob(f"*{ending}"))
    foreground = sum(int((SimpleITK.GetArrayViewFromImage(image) > 0).sum()) for image in images)
    return report(what, share > EQUAL_VOXELS and foreground > 0, equal_voxels=share, label_maps=maps,
                  foreground_voxels=foreground)


def train_reference(folder, plans, dataset, iterations, pretrained=None):
    """Runs nnU-Net's trainer for some steps; returns its model folder."""
    import torch
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(1)
    trainer = nnUNetTrainer(json.loads(json.dumps(plans)) | {"continue_training": False}, CONFIGURATION, 0, dataset,
                            torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, iterations, 1
    trainer.initialize()
    if pretrained:
        load_pretrained_weights(trainer.network, str(pretrained))
    trainer.run_training()
    return pathlib.Path(trainer.output_folder_base)


def predict_reference(model, images, output):
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output.mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(str(images), str(output))
    return predictor


def compare_onnx(predictor, path, patch):
    """The largest difference of logits, relative to the largest logit."""
    import numpy
    import onnxruntime
    import torch

    network = predictor.network.eval()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    # A different batch size and extent from the first.
    for batch, factor in ((1, 1), (2, 2)):
        image = torch.randn(batch, 1, patch[0] * factor, *patch[1:])
        with torch.no_grad():
            expected = network(image).numpy()
        got, = session.run(None, {"image": image.numpy()})
        differences.append(float(numpy.abs(got - expected).max() / numpy.abs(expected).max()))
    return max(differences)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=pathlib.Path, required=True)
    parser.add_argument("--bin", default="nnunet-dist")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--keep", type=pathlib.Path, help="work in this new folder and keep it")
    arguments = parser.parse_args()

    folder = arguments.keep or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)
    os.environ.update(nnUNet_compile="false", nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1")
    # nnU-Net prints a lot on standard output.
    sys.stdout = sys.stderr
    try:
        sys.exit(0 if roundtrip(arguments, folder) else 1)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


def roundtrip(arguments, folder):
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    def ours(*words):
        subprocess.run([arguments.bin, "-q", *map(str, words)], check=True, stdout=sys.stderr)

    raw, work = folder / "nnUNet_raw" / DATASET, folder / "work"
    images, iterations = raw / "imagesTs", arguments.iterations
    subset(arguments.dataset, raw, arguments.cases)
    ours("plan", "-d", raw, "-w", work)
    plans = shrink(json.loads((work / "nnUNetPlans.json").read_text(encoding="utf-8")))
    dataset = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    preprocessed = folder / "nnUNet_preprocessed" / DATASET
    preprocessed.mkdir()
    for target in (work / "nnUNetPlans.json", preprocessed / "nnUNetPlans.json"):
        target.write_text(json.dumps(plans), encoding="utf-8")
    for name in ("dataset.json", "splits_final.json", "dataset_fingerprint.json"):
        shutil.copy(work / name, preprocessed / name)
    shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations")
    DefaultPreprocessor(verbose=False).run(4, CONFIGURATION, "nnUNetPlans", 1)
    ours("preprocess", "-w", work, "-c", CONFIGURATION)

    passed = []
    # From nnU-Net to nnunet-dist.
    model = train_reference(folder, plans, dataset, iterations)
    ours("import", "-i", model, "-o", folder / "imported")
    ours("predict", "-r", folder / "imported" / "fold_0", "-i", images, "-o", folder / "predicted_imported")
    predict_reference(model, images, folder / "predicted_reference")
    ending = dataset["file_ending"]
    passed.append(compare_maps("import", folder / "predicted_imported", folder / "predicted_reference", ending))

    # From nnunet-dist to nnU-Net, starting with nnU-Net's weights.
    run = folder / "run" / "fold_0"
    train = ["train", "-w", work, "-c", CONFIGURATION, "-f", 0, "--epochs", 1, "--iters-per-epoch", iterations,
             "--val-iters", 1, "--run-dir", run]
    ours(*train, "--pretrained-weights", model / "fold_0" / "checkpoint_final.pth")
    ours("predict", "-r", run, "-i", images, "-o", folder / "predicted_run")
    exported = folder / "exported"
    ours("export", "-r", run, "--to", "pth", "-o", exported)
    predictor = predict_reference(exported, images, folder / "predicted_exported")
    passed.append(compare_maps("export pth", folder / "predicted_run", folder / "predicted_exported", ending))

    from safetensors.torch import load_file
    ours("export", "-r", run, "--to", "safetensors", "-o", folder / "network.safetensors")
    weights, state = load_file(folder / "network.safetensors"), predictor.network.state_dict()
    equal = sum(weights[name].equal(state[name]) for name in weights)
    passed.append(report("export safetensors", equal == len(weights), equal_tensors=equal, tensors=len(weights)))

    ours("export", "-r", run, "--to", "onnx", "-o", folder / "network.onnx")
    patch = plans["configurations"][CONFIGURATION]["patch_size"]
    difference = compare_onnx(predictor, folder / "network.onnx", patch)
    passed.append(report("export onnx", difference < 1e-4, largest_difference=difference))

    # nnU-Net continues from nnunet-dist's weights; it raises an error if a tensor does not fit.
    shutil.rmtree(model)
    train_reference(folder, plans, dataset, 2, exported / "fold_0" / "checkpoint_final.pth")
    passed.append(report("nnU-Net's -pretrained_weights", True))
    return all(passed)


if __name__ == "__main__":
    main()
