#!/usr/bin/env python3
"""Preprocessing of a dataset's training cases by nnU-Net v2 (`DefaultPreprocessor.run_case_save`).

Peer of `nnunet-dist preprocess` and `nnunet-dist bench preprocess`. The plans are from a work folder that
`nnunet-dist plan` made, so both do the same work. Reading, preprocessing and saving are timed; starting Python and
importing its modules, in the pool's processes too, are not. The last line is JSON.

    preprocess.py WORK --raw RAW_DATASET --configuration 3d_fullres --processes 2
"""
import argparse
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import tempfile
import time

from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

# Set in every process of the pool.
job = None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path, help="folder with nnUNetPlans.json and dataset.json")
    parser.add_argument("--raw", type=pathlib.Path, required=True, help="folder with imagesTr and labelsTr")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cases", type=int, help="number of cases [default: all]")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def find_cases(raw, ending):
    """Name, image files and label file of each case: ID_0000.nii.gz, ID_0001.nii.gz, ... or ID.nii.gz."""
    for label in sorted((raw / "labelsTr").glob(f"*{ending}")):
        name = label.name.removesuffix(ending)
        images = sorted((raw / "imagesTr").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"))
        yield name, [str(path) for path in images or [raw / "imagesTr" / label.name]], str(label)


class Job:
    """One configuration's preprocessing, ready to run."""

    def __init__(self, work, configuration):
        self.plans = PlansManager(json.loads((work / "nnUNetPlans.json").read_text()))
        self.configuration = self.plans.get_configuration(configuration)
        self.dataset = json.loads((work / "dataset.json").read_text())
        self.preprocessor = DefaultPreprocessor(verbose=False)
        # The lookup of both walks through nnU-Net's modules, which imports them.
        self.plans.image_reader_writer_class()
        self.configuration.resampling_fn_data, self.configuration.resampling_fn_seg

    def run(self, case, out):
        name, images, label = case
        self.preprocessor.run_case_save(
            os.path.join(out, name), images, label, self.plans, self.configuration, self.dataset)


def begin_process(*job_arguments):
    global job
    job = Job(*job_arguments)


def run_in_process(case, out):
    job.run(case, out)


def is_ready(_):
    return job is not None


def main():
    args = arguments()
    own = Job(args.work, args.configuration)
    cases = list(find_cases(args.raw, own.dataset["file_ending"]))[:args.cases]

    def timed(run_all):
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            run_all(out)
            return time.perf_counter() - began

    def rounds(run_all):
        # The first run warms up.
        return [timed(run_all) for _ in range(args.rounds + 1)][1:]

    if args.processes == 1:
        seconds = rounds(lambda out: [own.run(case, out) for case in cases])
    else:
        # `spawn`, as nnU-Net does it.
        with multiprocessing.get_context("spawn").Pool(
                args.processes, begin_process, (args.work, args.configuration)) as pool:
            pool.map(is_ready, range(args.processes), chunksize=1)
            seconds = rounds(lambda out: pool.starmap(run_in_process, [(case, out) for case in cases], chunksize=1))

    peak = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({
        "peer": f"nnU-Net v{importlib.metadata.version('nnunetv2')}",
        "unit": "cases",
        "seconds": seconds,
        "per_second": len(cases) / statistics.median(seconds),
        # Memory of the largest process, times the number of processes.
        "peak_memory_bytes": max(peak) * 1024 * args.processes,
    }))


if __name__ == "__main__":
    main()
