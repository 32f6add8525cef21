#!/usr/bin/env python3
"""Resampling of one case by nnU-Net v2 (`resample_data_or_seg_to_shape`): images cubic, labels linear per class.

Peer of `nnunet-dist bench resample`. Reading the files and importing Python's modules are not timed. The last line is
JSON; voxels are counted after resampling, over all channels.

    resample.py imagesTr/case_0000.nii.gz imagesTr/case_0001.nii.gz --labels labelsTr/case.nii.gz --spacing-to 0.7
    resample.py imagesTr/case_0000.nii.gz --only labels --labels labelsTr/case.nii.gz --spacing-to 0.7
"""
import argparse
import importlib.metadata
import json
import resource
import statistics
import time

import numpy as np
import SimpleITK
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="one file per channel")
    parser.add_argument("--labels", help="label map of the case")
    parser.add_argument("--only", choices=["image", "labels"], default="image", help="part that is timed")
    parser.add_argument("--spacing-from", type=float, nargs="+", default=[1.0], metavar="MM", help="one or z y x")
    parser.add_argument("--spacing-to", type=float, nargs="+", default=[0.7], metavar="MM", help="one or z y x")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def read(paths, number_type):
    return np.stack([SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)) for path in paths]).astype(number_type)


def main():
    args = arguments()
    axes = lambda spacing: spacing * 3 if len(spacing) == 1 else spacing
    current, new = axes(args.spacing_from), axes(args.spacing_to)
    if args.only == "image":
        data, kwargs = read(args.images, np.float32), dict(is_seg=False, order=3, order_z=0)
    else:
        data, kwargs = read([args.labels], np.int16), dict(is_seg=True, order=1, order_z=0)
    shape = compute_new_shape(data.shape[1:], current, new)

    def run():
        began = time.perf_counter()
        resample_data_or_seg_to_shape(data, shape, current, new, force_separate_z=None, **kwargs)
        return time.perf_counter() - began

    # The first run warms up.
    seconds = [run() for _ in range(args.rounds + 1)][1:]
    print(json.dumps({
        "peer": f"nnU-Net v{importlib.metadata.version('nnunetv2')}",
        "unit": "Mvoxel",
        "seconds": seconds,
        "per_second": data.shape[0] * int(np.prod(shape)) / 1e6 / statistics.median(seconds),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


if __name__ == "__main__":
    main()
