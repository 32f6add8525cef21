#!/usr/bin/env python3
"""Training steps of nnU-Net v2's plain U-Net in PyTorch, on one generated batch in memory.

Peer of `nnunet-dist bench step`, with its options. Network, loss and deep supervision are nnU-Net's own classes
(`PlainConvUNet`, `DC_and_CE_loss`, `DeepSupervisionWrapper`), optimizer, clipping and autocast as in
`nnUNetTrainer.train_step`. The last line is JSON.

    step.py --patch 40,56,40 --batch-size 9 --precision amp-bf16 --threads 2
"""
import argparse
import contextlib
import importlib.metadata
import json
import os
import resource
import statistics
import tempfile
import time

for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(variable, tempfile.gettempdir())

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn


def numbers(text):
    return [int(number) for number in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=numbers, default=[40, 56, 40], help="z,y,x, or y,x for a 2D network")
    parser.add_argument("--batch-size", type=int, default=9)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--features", type=numbers, default=[32, 64, 128, 256])
    parser.add_argument("--precision", choices=["fp32", "amp-bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def network(options):
    dimensions, stages = len(options.patch), len(options.features)
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dimensions == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    return PlainConvUNet(
        options.channels, stages, options.features, conv, 3, [1] + [2] * (stages - 1), 2, options.classes, 2,
        conv_bias=True, norm_op=norm, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, deep_supervision=True)


def criterion(heads):
    # As nnUNetTrainer._build_loss: halved from head to head, 0 for the lowest resolution.
    weights = [0.5 ** head for head in range(heads)]
    if heads > 1:
        weights[-1] = 0.0
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    return DeepSupervisionWrapper(loss, [weight / sum(weights) for weight in weights])


def main():
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = network(options)
    heads = len(options.features) - 1
    loss = criterion(heads)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    images = torch.randn(options.batch_size, options.channels, *options.patch)
    targets = [torch.randint(0, options.classes, (options.batch_size, 1, *(-(-extent >> head) for extent in options.patch)))
               for head in range(heads)]

    def step():
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        bf16 = options.precision == "amp-bf16"
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            value = loss(model(images), targets)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12)
        optimizer.step()
        return time.perf_counter() - began

    step()
    seconds = [step() for _ in range(options.rounds)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({
        "peer": f"nnU-Net v{importlib.metadata.version('nnunetv2')} on PyTorch {torch.__version__}", "unit": "samples",
        "seconds": seconds, "per_second": options.batch_size / statistics.median(seconds), "peak_memory_bytes": peak}))


if __name__ == "__main__":
    main()
