#!/usr/bin/env python3
"""Runs nnunet-dist and a peer program on the same work and machine, alternating: one JSON line per row.

    compare.py [--rounds N] [--record] [ROW…]

ROW is a prefix of row names: `step_f32`, `predict`. Each round runs ours and then the peer; `ours` and `peer` are medians
over the rounds in `unit` per second, `ratio` is ours over the peer's, `spread` the lowest and the highest ratio of a round.
Ratios that differ by more than 10 % from docs/benchmarks/ratios.json are listed at the end; --record writes
the new ones there.

Needs torch, nnunetv2 and batchgeneratorsv2 (`run.sh` installs them). NNUNET_DIST_BIN is the nnunet-dist program,
NNUNET_TEST_DATA a folder with data/Task04_Hippocampus and data/Dataset101_BraTS2015mini; without it, phantoms are used.
"""
import argparse
import datetime
import functools
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RECORD = HERE.parent.parent / "docs" / "benchmarks" / "ratios.json"
NOTICE = 0.10


class Sample:
    """Result of one run: items per second, and the peak memory in bytes if known."""

    def __init__(self, per_second, memory=None, note=None):
        self.per_second, self.memory, self.note = per_second, memory, note


# -- running -----------------------------------------------------------------------------------------------------------

def output_of(command):
    """Standard output of a command; exits with the command's output if it fails."""
    command = [str(word) for word in command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


class Programs:
    """The nnunet-dist program and the peer scripts."""

    def __init__(self, binary, threads):
        self.binary, self.threads = binary, threads

    def run(self, *words):
        return output_of([self.binary, *words])

    def report(self, *words, prefix=()):
        """The report of `nnunet-dist bench … --json`."""
        return json.loads(output_of([*prefix, self.binary, "bench", *words, "--json"]))

    def bench(self, row, *words):
        report = self.report(*words)
        found = next(each for each in report["rows"] if each["name"] == row)
        return Sample(found["per_second"], report["peak_memory_bytes"])

    def peer(self, script, *words):
        last = json.loads(output_of([sys.executable, HERE / script, *words]).splitlines()[-1])
        return Sample(last["per_second"], last.get("peak_memory_bytes"), last)

    def timed(self, items, *words):
        """Wall-clock time and memory of a whole run of nnunet-dist, including its start."""
        began = time.perf_counter()
        child = subprocess.Popen([str(word) for word in (self.binary, *words)], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            sys.exit(f"nnunet-dist {' '.join(map(str, words))} ended with {child.returncode}")
        return Sample(items / (time.perf_counter() - began), usage.ru_maxrss * 1024)


# -- data --------------------------------------------------------------------------------------------------------------

class Data:
    """Datasets in one temporary folder, planned and with a trained network if a row needs them."""

    def __init__(self, programs, folder):
        self.programs, self.folder = programs, folder
        self.shared = pathlib.Path(os.environ.get("NNUNET_TEST_DATA", HERE.parents[2] / "shared")) / "data"

    @functools.cache
    def hippocampus(self):
        return self._found("Task04_Hippocampus") or self._phantom("hippocampus", "36,50,35", 40)

    @functools.cache
    def brats(self):
        return self._found("Dataset101_BraTS2015mini") or self._phantom("brats", "155,240,240", 3)

    @functools.cache
    def work(self, raw):
        """Work folder of a planned dataset."""
        work = self.folder / f"{raw.name}_work"
        self.programs.run("-q", "plan", "-d", raw, "-w", work, "-c", "3d_fullres")
        return work

    @functools.cache
    def trained(self, raw, epochs, iterations):
        """A run directory: a briefly trained network."""
        work, run = self.work(raw), self.folder / f"{raw.name}_run"
        if raw == self.brats():
            self._at_two_millimetres(work)
        self.programs.run("-q", "preprocess", "-w", work, "-c", "3d_fullres")
        self.programs.run("-q", "train", "-w", work, "-c", "3d_fullres", "-f", "0", "--epochs", epochs,
                          "--iters-per-epoch", iterations, "--val-iters", "1", "--batch-size", "2", "--run-dir", run)
        return run

    def images(self, raw, count):
        """A folder with the images of the first `count` cases, with nnU-Net's file names."""
        folder = self.folder / f"{raw.name}_images_{count}"
        if not folder.exists():
            folder.mkdir()
            labels = sorted((raw / "labelsTr").glob("*.nii.gz"))[:count]
            for label in labels:
                case = label.name.removesuffix(".nii.gz")
                single = raw / "imagesTr" / label.name
                channels = [single] if single.exists() else self.channels(raw, case)
                for number, path in enumerate(channels):
                    shutil.copy(path, folder / f"{case}_{number:04}.nii.gz")
        return folder

    def channels(self, raw, case):
        return sorted((raw / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].nii.gz"))

    def first_case(self, raw):
        """Images, one per channel, and label map."""
        label = sorted((raw / "labelsTr").glob("*.nii.gz"))[0]
        case = label.name.removesuffix(".nii.gz")
        return self.channels(raw, case) or [raw / "imagesTr" / label.name], label

    def _found(self, name):
        return self.shared / name if (self.shared / name / "dataset.json").exists() else None

    def _phantom(self, name, shape, cases):
        print(f"{self.shared} has no {name}: comparing on a phantom", file=sys.stderr)
        raw = self.folder / name
        self.programs.run("-q", "phantom", "-o", raw, "--train", cases, "--test", 0, "--shape", shape)
        return raw

    def _at_two_millimetres(self, work):
        """Sets a coarser spacing, as 1 mm takes half an hour on a CPU with mirroring, and holds out one case."""
        plans = json.loads((work / "nnUNetPlans.json").read_text())
        plans["configurations"]["3d_fullres"] |= {"spacing": [2.0, 2.0, 2.0], "patch_size": [64, 96, 96]}
        (work / "nnUNetPlans.json").write_text(json.dumps(plans))
        splits = json.loads((work / "splits_final.json").read_text())
        for split in splits:
            split["train"], split["val"] = split["train"] + split["val"][1:], split["val"][:1]
        (work / "splits_final.json").write_text(json.dumps(splits))


# -- rows --------------------------------------------------------------------------------------------------------------

class Row:
    """One comparison: `measure` runs both sides once and gives a sample of each."""

    def __init__(self, name, unit, measure, rounds=None):
        self.name, self.unit, self.measure, self.rounds = name, unit, measure, rounds

    def run(self, rounds):
        pairs = [self.measure() for _ in range(min(rounds, self.rounds or rounds))]
        ours, peers = zip(*pairs)
        rate = [statistics.median(sample.per_second for sample in side) for side in (ours, peers)]
        ratios = [one.per_second / other.per_second for one, other in pairs]
        line = {"name": self.name, "ours": rate[0], "peer": rate[1], "ratio": rate[0] / rate[1],
                "spread": [min(ratios), max(ratios)], "unit": self.unit, "rounds": len(pairs)}
        for key, side in (("ours", ours), ("peer", peers)):
            if side[0].memory:
                line[f"{key}_peak_mib"] = max(sample.memory for sample in side) >> 20
        if peers[-1].note and "equal_voxels" in peers[-1].note:
            line["equal_voxels"] = peers[-1].note["equal_voxels"]
        if peers[-1].note and "peer" in peers[-1].note:
            line["against"] = peers[-1].note["peer"]
        return {key: rounded(value) for key, value in line.items()}


def rounded(value):
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def step(programs, precision, options, steps):
    words = [*options, "--precision", precision, "--rounds", steps]
    return lambda: (programs.bench("step", "step", *words),
                    programs.peer("step.py", *words, "--threads", programs.threads))


def preprocess(programs, data):
    raw = data.hippocampus()
    return (programs.bench("all cases", "preprocess", "-d", raw, "--rounds", 1),
            programs.peer("preprocess.py", data.work(raw), "--raw", raw, "--processes", programs.threads, "--rounds", 1))


def resample(programs, data):
    images, label = data.first_case(data.brats())
    return (programs.bench("image, cubic", "resample", "--image", *images, "--labels", label, "--spacing-from", 1,
                           "--spacing-to", 0.7, "--rounds", 3),
            programs.peer("resample.py", *images, "--spacing-to", 0.7, "--rounds", 1))


def augment(programs):
    return (programs.bench("augment", "loader", "--rounds", 3), programs.peer("augment.py", "--rounds", 3))


def predict(programs, data, raw, cases, training):
    run, images = data.trained(raw, *training), data.images(raw, cases)
    with tempfile.TemporaryDirectory(dir=data.folder) as output:
        ours = programs.timed(cases, "-q", "predict", "-r", run, "-i", images, "-o", output)
        return ours, programs.peer("predict.py", "--from-checkpoint", run / "checkpoint_latest", "-i", images,
                                   "--compare", output, "--threads", programs.threads, "--no-warm-up")


def all_reduce(programs, megabytes):
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"]
    report = programs.report("allreduce", "--mb", megabytes, "--rounds", 31, prefix=mpirun)
    rates = {row["name"]: row["gb_per_s"] for row in report["rows"]}
    return Sample(rates["f32"]), Sample(rates["MPI_Allreduce"], note={"peer": "MPI_Allreduce"})


def scaling(programs, data):
    """Efficiency of two processes, in two samples: see scaling.py."""
    work = data.work(data.hippocampus())
    programs.run("-q", "preprocess", "-w", work, "-c", "3d_fullres")
    line = json.loads(output_of([sys.executable, HERE / "scaling.py", programs.binary, work, 1]).splitlines()[-1])
    return Sample(line["ours"]), Sample(line["peer"], note={"peer": "PyTorch DDP on gloo"})


def rows(programs, data):
    cube = ["--patch", "64,64,64", "--batch-size", 2, "--channels", 4, "--classes", 4,
            "--features", "32,64,128,256,320,320"]
    plane = ["--patch", "512,512", "--batch-size", 12, "--features", "32,64,128,256,512,512,512,512"]
    for short, precision in (("f32", "fp32"), ("bf16", "amp-bf16")):
        yield Row(f"step_{short}_hippocampus", "samples", step(programs, precision, [], 3))
        yield Row(f"step_{short}_64", "samples", step(programs, precision, cube, 2))
        # A step of the peer takes half a minute.
        yield Row(f"step_{short}_2d", "samples", step(programs, precision, plane, 1), rounds=1)
    yield Row("preprocess_hippocampus", "cases", lambda: preprocess(programs, data))
    yield Row("preprocess_resample_brats", "Mvoxel", lambda: resample(programs, data))
    yield Row("augment_hippocampus", "samples", lambda: augment(programs))
    yield Row("predict_hippocampus", "cases", lambda: predict(programs, data, data.hippocampus(), 20, (2, 50)))
    yield Row("predict_brats_2mm", "cases", lambda: predict(programs, data, data.brats(), 1, (1, 10)), rounds=1)
    yield Row("allreduce_22mb", "GB", lambda: all_reduce(programs, 22))
    yield Row("allreduce_120mb", "GB", lambda: all_reduce(programs, 120))
    yield Row("scaling_np2", "efficiency", lambda: scaling(programs, data))


# -- the record --------------------------------------------------------------------------------------------------------

def recorded(path):
    return json.loads(path.read_text())["rows"] if path.exists() else {}


def moved(lines, before):
    """One sentence for each row whose ratio changed."""
    for line in lines:
        old = before.get(line["name"], {}).get("ratio")
        if old is None:
            continue
        change = line["ratio"] / old - 1
        if abs(change) > NOTICE:
            word = "faster" if change > 0 else "slower"
            yield f"{line['name']}: ratio {line['ratio']:.2f}, recorded {old:.2f}: {abs(change):.0%} {word}"


def record(path, lines):
    """Replaces the measured rows and keeps the others."""
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    stamp = {"date": datetime.date.today().isoformat(), "commit": commit.stdout.strip() or None, "hardware": hardware()}
    content = {"command": "make bench", "rows": recorded(path) | {line["name"]: line | stamp for line in lines}}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.replace(path)


def hardware():
    model = platform.processor()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores of {model}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="prefixes of row names [default: all]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="store the ratios for later comparisons")
    parser.add_argument("--recorded", type=pathlib.Path, default=RECORD, help="file of the ratios")
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    parser.add_argument("--from", dest="measured", type=pathlib.Path, help="lines measured earlier, instead of measuring")
    options = parser.parse_args()

    programs = Programs(os.environ.get("NNUNET_DIST_BIN", "nnunet-dist"), os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        if options.measured:
            lines = [json.loads(line) for line in options.measured.read_text().splitlines()]
        else:
            chosen = [row for row in rows(programs, Data(programs, pathlib.Path(folder)))
                      if not options.rows or row.name.startswith(tuple(options.rows))]
            if not chosen:
                sys.exit(f"no row begins with {' or '.join(options.rows)}; --list prints them")
            if options.list:
                return print(*(row.name for row in chosen), sep="\n")
            lines = []
            for row in chosen:
                lines.append(row.run(options.rounds))
                print(json.dumps(lines[-1]), flush=True)
    sentences = list(moved(lines, recorded(options.recorded)))
    print(*sentences or ["no ratio moved by more than 10 % from those recorded"], sep="\n", file=sys.stderr)
    if options.record:
        record(options.recorded, lines)


if __name__ == "__main__":
    main()
