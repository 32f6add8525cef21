#!/usr/bin/env python3
"""Training steps of nnU-Net's plain U-Net in PyTorch on a GPU, in each setting that may be the fastest.

Peer of `nnunet-dist bench step --device cuda`, with its options; needs only PyTorch, for offline machines. Network,
loss and optimizer are those of nnU-Net v2: two convolutions with instance norm and leaky ReLU per stage, Dice +
cross-entropy at each resolution except the lowest, SGD with Nesterov momentum, clipping at 12. The batch stays on the
device; steps are queued and synchronized every ten steps.

Prints a JSON line per setting, then one with the fastest setting for each precision:

    gpu_step.py --patch 128,128,128 --batch-size 2 --channels 4 --classes 4 --features 32,64,128,256,320,320
"""
import argparse
import contextlib
import itertools
import json
import signal
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

QUEUED = 10
AUTOCAST = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}


def numbers(text):
    return [int(number) for number in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=numbers, default=[40, 56, 40], help="z,y,x, or y,x for a 2D network")
    parser.add_argument("--batch-size", type=int, default=9)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--features", type=numbers, default=[32, 64, 128, 256])
    parser.add_argument("--precision", action="append", choices=["fp32", "tf32", *AUTOCAST], help="default: both 16-bit precisions")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds of ten steps")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile, which takes minutes")
    parser.add_argument("--limit", type=int, default=150, help="time limit of one setting in seconds")
    return parser.parse_args()


class Block(nn.Module):
    def __init__(self, dimensions, channels_in, channels, stride):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dimensions == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        layers = []
        for place in range(2):
            step = stride if place == 0 else 1
            layers += [conv(channels_in, channels, 3, step, 1), norm(channels, eps=1e-5, affine=True), nn.LeakyReLU(0.01, inplace=True)]
            channels_in = channels
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class UNet(nn.Module):
    def __init__(self, dimensions, channels, classes, features):
        super().__init__()
        conv, transposed = (nn.Conv2d, nn.ConvTranspose2d) if dimensions == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.encoder, self.up, self.decoder, self.heads = (nn.ModuleList() for _ in range(4))
        for stage, width in enumerate(features):
            self.encoder.append(Block(dimensions, channels, width, 1 if stage == 0 else 2))
            channels = width
        for below, width in reversed(list(zip(features[1:], features[:-1]))):
            self.up.append(transposed(below, width, 2, 2))
            self.decoder.append(Block(dimensions, 2 * width, width, 1))
            self.heads.append(conv(width, classes, 1))

    def forward(self, x):
        """Logits, highest resolution first."""
        skips, logits = [], []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, decoder, head in zip(self.up, self.decoder, self.heads):
            x = decoder(torch.cat((up(x), skips.pop()), dim=1))
            logits.append(head(x))
        return logits[::-1]


def dice_and_cross_entropy(logits, labels):
    probabilities = logits.softmax(1)
    truth = torch.zeros_like(probabilities).scatter_(1, labels[:, None], 1.0)
    axes = [0, *range(2, logits.ndim)]
    both, found, there = ((values.sum(axes)[1:]) for values in (probabilities * truth, probabilities, truth))
    dice = (2 * both + 1e-5) / (found + there + 1e-5).clamp_min(1e-8)
    return F.cross_entropy(logits, labels) - dice.mean()


def measure(options, precision, channels_last, compiled):
    torch.manual_seed(0)
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    dimensions = len(options.patch)
    layout = torch.contiguous_format
    if channels_last:
        layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    model = UNet(dimensions, options.channels, options.classes, options.features).to(device, memory_format=layout)
    run = torch.compile(model) if compiled else model
    heads = len(options.features) - 1
    weights = [0.5 ** head for head in range(heads)]
    if heads > 1:
        weights[-1] = 0.0
    weights = [weight / sum(weights) for weight in weights]
    images = torch.randn(options.batch_size, options.channels, *options.patch, device=device).to(memory_format=layout)
    targets = [torch.randint(0, options.classes, (options.batch_size, *(extent >> head for extent in options.patch)), device=device)
               for head in range(heads)]
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "amp-fp16" and device.type == "cuda")
    autocast = (lambda: torch.autocast(device.type, AUTOCAST[precision])) if precision in AUTOCAST else contextlib.nullcontext

    def steps(number):
        began = time.perf_counter()
        for _ in range(number):
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                logits = run(images)
                loss = sum(weight * dice_and_cross_entropy(logit, target)
                           for weight, logit, target in zip(weights, logits, targets) if weight)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 12)
            scaler.step(optimizer)
            scaler.update()
        loss.item()
        return (time.perf_counter() - began) / number

    # Compiles, benchmarks cuDNN's algorithms, and allocates memory.
    steps(3 if device.type == "cuda" else 1)
    queued = QUEUED if device.type == "cuda" else 1
    seconds = [steps(queued) for _ in range(options.rounds)]
    in_use = None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        in_use = total - free
    return {"precision": precision, "channels_last": channels_last, "compile": compiled, "seconds_median": statistics.median(seconds),
            "seconds": seconds, "per_second": options.batch_size / statistics.median(seconds), "memory_in_use_bytes": in_use,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None}


class TooLong(Exception):
    pass


def stop(*_):
    raise TooLong("takes too long")


def main():
    options = arguments()
    signal.signal(signal.SIGALRM, stop)
    fastest = {}
    for precision in options.precision or ["amp-bf16", "amp-fp16"]:
        for compiled, channels_last in itertools.product([False] if options.no_compile else [False, True], [False, True]):
            setting = {"precision": precision, "channels_last": channels_last, "compile": compiled}
            signal.alarm(options.limit)
            try:
                result = measure(options, precision, channels_last, compiled)
            except Exception as error:  # settings that PyTorch cannot run are skipped
                result = {**setting, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
            finally:
                signal.alarm(0)
                torch._dynamo.reset()
                if options.device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
            print(json.dumps(result), flush=True)
            if "error" not in result and result["seconds_median"] < fastest.get(precision, result)["seconds_median"] + 1e-12:
                fastest[precision] = result
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(json.dumps({"peer": f"PyTorch {torch.__version__}", "device": gpu, "fastest": fastest}))
    return 0 if fastest else 1


if __name__ == "__main__":
    sys.exit(main())
