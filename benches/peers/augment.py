#!/usr/bin/env python3
"""nnU-Net v2's training augmentation (batchgeneratorsv2) on generated patches, in one process and one thread.

A sample is the input of nnU-Net's transforms: two ellipsoids of two classes in an image, cropped with the
margin that rotation and scaling need, padded with 0 (labels: -1) outside of the image. The transforms are those of
`nnUNetTrainer.get_training_transforms` with nnU-Net's own ranges, including deep-supervision targets. Reading is not timed.

    augment.py [--patch 40,56,40] [--image 36,50,35] [--channels 1] [--batch-size 9] [--batches 8] [--rounds 5]

Needs nnunetv2 and torch. Prints one JSON object: samples per second of each round.
"""
import argparse
import importlib.metadata
import json
import resource
import statistics
import sys
import time

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

# As nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size and its constant ANISO_THRESHOLD.
ANISOTROPY_THRESHOLD = 3
READ_SCALE = (0.85, 1.25)


def extents(text):
    return tuple(int(part) for part in text.split(","))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=extents, default=(40, 56, 40), help="z,y,x of the network's input patch")
    parser.add_argument("--image", type=extents, default=(36, 50, 35), help="z,y,x of the images")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=9)
    parser.add_argument("--batches", type=int, default=8, help="batches per round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def rotation_range(patch):
    """Largest rotation angle of a 3D patch, and whether it is rotated slice by slice."""
    in_plane = max(patch) / patch[0] > ANISOTROPY_THRESHOLD
    degrees = 180.0 if in_plane else 30.0
    return degrees / 360 * 2 * np.pi, in_plane


def transforms(patch):
    angle, in_plane = rotation_range(patch)
    rotation = (-angle, angle)
    if in_plane:
        read = (patch[0], *get_patch_size(patch[1:], rotation, (0, 0), (0, 0), READ_SCALE))
    else:
        read = get_patch_size(patch, rotation, rotation, rotation, READ_SCALE)
    pipeline = nnUNetTrainer.get_training_transforms(
        patch, rotation, deep_supervision_scales=[[1.0] * 3, [0.5] * 3, [0.25] * 3], mirror_axes=(0, 1, 2),
        do_dummy_2d_data_aug=in_plane, use_mask_for_norm=[False])
    return pipeline, tuple(int(extent) for extent in read)


def sample(image, read, channels, rng):
    """An image with a noisy background and two ellipsoids, in the middle of a box of padding."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, extent) for extent in image], indexing="ij"))
    labels = np.zeros(image, np.int16)
    for label, centre in ((1, -0.35), (2, 0.35)):
        axes = np.array([0.5, 0.3, 0.4]).reshape(3, 1, 1, 1)
        distance = (((grid - np.array([0.0, centre, 0.0]).reshape(3, 1, 1, 1)) / axes) ** 2).sum(0)
        labels[distance < 1] = label
    data = labels + rng.standard_normal((channels, *image))
    boxed_data = np.zeros((channels, *read), np.float32)
    boxed_labels = np.full((1, *read), -1, np.int16)
    here = tuple(slice((r - min(r, i)) // 2, (r - min(r, i)) // 2 + min(r, i)) for r, i in zip(read, image))
    there = tuple(slice((i - min(r, i)) // 2, (i - min(r, i)) // 2 + min(r, i)) for r, i in zip(read, image))
    boxed_data[(slice(None), *here)] = data[(slice(None), *there)]
    boxed_labels[(slice(None), *here)] = labels[there]
    return torch.from_numpy(boxed_data), torch.from_numpy(boxed_labels)


def main():
    options = arguments()
    torch.set_num_threads(1)
    np.random.seed(1)
    torch.manual_seed(1)
    pipeline, read = transforms(options.patch)
    rng = np.random.default_rng(1)
    samples = [sample(options.image, read, options.channels, rng) for _ in range(options.batch_size)]

    def run(batches):
        """Seconds spent in the transforms, which change their input: the copies they get are not counted."""
        spent = 0.0
        for _ in range(batches):
            fresh = [(image.clone(), segmentation.clone()) for image, segmentation in samples]
            began = time.perf_counter()
            with torch.no_grad():
                for image, segmentation in fresh:
                    pipeline(image=image, segmentation=segmentation)
            spent += time.perf_counter() - began
        return spent

    run(1)
    seconds = []
    for number in range(options.rounds):
        seconds.append(run(options.batches))
        print(f"round {number + 1}: {seconds[-1]:.2f} s", file=sys.stderr)
    count = options.batches * options.batch_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({
        "peer": f"batchgeneratorsv2 {importlib.metadata.version('batchgeneratorsv2')}",
        "unit": "samples",
        "seconds": seconds,
        "per_second": count / statistics.median(seconds),
        "peak_memory_bytes": peak,
    }))


if __name__ == "__main__":
    main()
