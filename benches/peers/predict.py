#!/usr/bin/env python3
"""Prediction of a folder of images by nnU-Net v2 on the CPU, with mirroring; imports are not timed.

The network is read from an nnU-Net model folder or from an nnunet-dist checkpoint, whose weights have nnU-Net's
names. Then both networks are the same, and --compare prints the fraction of voxels in which both label maps agree.

    predict.py --from-checkpoint RUN/checkpoint_latest -i imagesTs --compare OUR_PREDICTIONS
    predict.py --model Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres -i imagesTs

Cases are predicted one after the other in this process, as `predict_from_files_sequential` does: nnU-Net's worker
processes import PyTorch again for every folder, which takes longer than 20 small images.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(variable, tempfile.gettempdir())

import numpy as np
import torch
from importlib.metadata import version


def model_folder(checkpoint, folder):
    """Writes an nnunet-dist checkpoint as an nnU-Net model folder."""
    from safetensors import safe_open

    model = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))["model"]
    with safe_open(checkpoint / "network.safetensors", "pt") as tensors:
        ours = {name: tensors.get_tensor(name) for name in tensors.keys()}
    weights = {}
    for name, values in ours.items():
        # PyTorch lists a shared module under each of its names.
        names = [name, f"decoder.{name}"] if name.startswith("encoder.") else [name]
        for name in names:
            weights[name] = values
            weights[name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")] = values
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    torch.save({"trainer_name": "nnUNetTrainer", "init_args": {"configuration": model["configuration"]},
                "inference_allowed_mirroring_axes": tuple(model["mirror_axes"]), "network_weights": weights},
               fold / "checkpoint_final.pth")
    for name, content in (("dataset.json", model["dataset"]), ("plans.json", model["plans"])):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def equal_share(ours, theirs, ending):
    """Fraction of equal voxels of the label maps in both folders, and the number of maps."""
    import SimpleITK

    equal = total = maps = 0
    for path in sorted(pathlib.Path(theirs).glob(f"*{ending}")):
        one, other = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(each))) for each in (path, ours / path.name))
        if one.shape != other.shape:
            sys.exit(f"{path.name}: {one.shape} voxels here, {other.shape} in {ours}")
        equal, total, maps = equal + int(np.count_nonzero(one == other)), total + one.size, maps + 1
    if maps == 0:
        sys.exit(f"{theirs}: no label maps *{ending}")
    return equal / total, maps


def peak_memory():
    kibibytes = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(kibibytes) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--from-checkpoint", type=pathlib.Path, help="an nnunet-dist checkpoint")
    network.add_argument("--model", type=pathlib.Path, help="an nnU-Net model folder with fold_0")
    parser.add_argument("-i", "--images", type=pathlib.Path, required=True)
    parser.add_argument("-o", "--output", type=pathlib.Path, help="keep the label maps here")
    parser.add_argument("--compare", type=pathlib.Path, help="folder of nnunet-dist's label maps")
    parser.add_argument("--checkpoint-name", default="checkpoint_final.pth")
    parser.add_argument("--no-mirroring", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-warm-up", action="store_true", help="start timing with the first round")
    arguments = parser.parse_args()

    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        output = arguments.output or folder / "output"
        output.mkdir(parents=True, exist_ok=True)
        model = arguments.model or model_folder(arguments.from_checkpoint, folder / "model")
        predictor = nnUNetPredictor(use_mirroring=not arguments.no_mirroring, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), (0,), arguments.checkpoint_name)
        ending = predictor.dataset_json["file_ending"]
        cases = sorted({path.name[:-len(f"_0000{ending}")] for path in arguments.images.glob(f"*_0000{ending}")})
        if not cases:
            sys.exit(f"{arguments.images}: no images *_0000{ending}")

        def predict(images):
            began = time.perf_counter()
            predictor.predict_from_files_sequential(images, str(output))
            return time.perf_counter() - began

        if not arguments.no_warm_up:
            first = sorted(str(path) for path in arguments.images.glob(f"{cases[0]}_????{ending}"))
            predictor.predict_from_files_sequential([first], [str(output / cases[0])])
        seconds = [predict(str(arguments.images)) for _ in range(arguments.rounds)]
        memory = peak_memory()
        result = {"peer": f"nnU-Net v{version('nnunetv2')}", "unit": "cases", "cases": len(cases), "seconds": seconds,
                  "per_second": len(cases) / statistics.median(seconds), "peak_memory_bytes": memory}
        if arguments.compare:
            result["equal_voxels"], result["label_maps"] = equal_share(arguments.compare, output, ending)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
