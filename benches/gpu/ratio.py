#!/usr/bin/env python3
"""Compares nnunet-dist with PyTorch: `ratio.py PEER OURS…`, outputs of gpu_step.py and `nnunet-dist bench step --json`.

Prints one line: the fastest 16-bit setting of each, their ratio (above 1: nnunet-dist is faster) and their memory.
"""
import json
import sys
from pathlib import Path


def last_object(path):
    """The last line of a log that is JSON."""
    for line in reversed(Path(path).read_text().splitlines()):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue
    sys.exit(f"{path}: contains no JSON line")


def main():
    peer, *ours = sys.argv[1:]
    settings = [result for precision, result in last_object(peer)["fastest"].items() if precision.startswith("amp")]
    best = min(settings, key=lambda result: result["seconds_median"])
    # The batch stays on the device in both.
    rows = [report["rows"][1] for report in map(last_object, ours) if report.get("bench") == "step"]
    fastest = min(row["seconds_median"] for row in rows)
    setting = " ".join([best["precision"], *(name for name in ("channels_last", "compile") if best[name])])
    memory = best["memory_in_use_bytes"]
    print(f"{1e3 * fastest:.1f} ms, PyTorch {1e3 * best['seconds_median']:.1f} ms ({setting}), ratio "
          f"{best['seconds_median'] / fastest:.2f}; PyTorch's memory {memory / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
