#!/usr/bin/env python3
"""Scaling of CPU training from one process to two, for nnunet-dist and PyTorch DDP on the same machine, alternating.

One thread per process, one sample per process and step, the same network (Hippocampus 3d_fullres). Prints one JSON line:
throughput of two processes divided by twice that of one, for both; medians over the rounds.

    scaling.py NNUNET_DIST WORK [ROUNDS]     needs torch, and a machine that is idle otherwise
"""
import csv
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent


def ours(program, work):
    with tempfile.TemporaryDirectory() as folder:
        # The peer trains on one batch in memory, so with one process its second core is idle.
        settings = pathlib.Path(folder) / "settings.toml"
        settings.write_text('[data]\naugmentation = "none"\nworkers = 1\n', encoding="utf-8")
        subprocess.run([program, "-q", "scale", "-w", work, "-c", "3d_fullres", "-f", "0", "--np", "1,2", "--threads", "1",
                        "--batch-size", "1", "--steps", "12", "--warm-up", "2", "-o", folder, "--config", settings],
                       check=True, stdout=subprocess.DEVNULL)
        with open(pathlib.Path(folder) / "scaling.csv", encoding="utf-8") as table:
            return [float(row["samples_per_s"]) for row in csv.DictReader(table)]


def peers():
    def throughput(processes):
        command = [sys.executable, HERE / "torch_ddp.py", "--np", str(processes), "--steps", "8"]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["samples_per_s"]
    return [throughput(1), throughput(2)]


def main():
    program, work = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    results = {"ours": [], "peer": []}
    for _ in range(rounds):
        results["ours"].append(ours(program, work))
        results["peer"].append(peers())
    efficiency = {name: [two / (2 * one) for one, two in pairs] for name, pairs in results.items()}
    median = {name: statistics.median(values) for name, values in efficiency.items()}
    print(json.dumps({
        "name": "scaling_np2", **{name: round(value, 4) for name, value in median.items()},
        "ratio": round(median["ours"] / median["peer"], 4),
        "spread": [round(pick(o / p for o, p in zip(efficiency["ours"], efficiency["peer"])), 4) for pick in (min, max)],
        "samples_per_s": {name: [round(statistics.median(column), 4) for column in zip(*pairs)]
                          for name, pairs in results.items()},
    }))


if __name__ == "__main__":
    main()
