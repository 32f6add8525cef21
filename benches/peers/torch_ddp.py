#!/usr/bin/env python3
"""Training steps of nnU-Net v2's plain U-Net in PyTorch, data-parallel over processes with DDP on gloo.

The network, loss and optimizer of nnU-Net v2: two convolutions with instance norm and leaky ReLU per stage, strided
downsampling, transposed upsampling, deep supervision; cross-entropy + soft Dice without background; SGD with Nesterov
momentum, gradients clipped at 12. Prints one JSON line with the median step.

    torch_ddp.py --np 2 --threads 1 --batch 1 --patch 40 56 40 --features 32 64 128 256
"""
import argparse
import json
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn


def layer(channels_in, channels_out, stride=1):
    convolution = nn.Conv3d(channels_in, channels_out, 3, stride, 1)
    return nn.Sequential(convolution, nn.InstanceNorm3d(channels_out, affine=True), nn.LeakyReLU(0.01, inplace=True))


class UNet(nn.Module):
    def __init__(self, channels, classes, features):
        super().__init__()
        inputs = [channels, *features[:-1]]
        self.encoder = nn.ModuleList(
            nn.Sequential(layer(i, o, 1 if stage == 0 else 2), layer(o, o))
            for stage, (i, o) in enumerate(zip(inputs, features)))
        pairs = list(zip(features[::-1], features[-2::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose3d(i, o, 2, 2) for i, o in pairs)
        self.decoder = nn.ModuleList(nn.Sequential(layer(2 * o, o), layer(o, o)) for _, o in pairs)
        # The lowest head has weight 0 in the loss and is omitted, as in nnunet-dist.
        self.heads = nn.ModuleList(nn.Conv3d(o, classes, 1) for _, o in pairs[1:])

    def forward(self, x):
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        logits = []
        for number, (up, convs) in enumerate(zip(self.up, self.decoder)):
            x = convs(torch.cat((up(x), skips.pop()), 1))
            if number > 0:
                logits.append(self.heads[number - 1](x))
        return logits[::-1]


def dice_and_cross_entropy(logits, labels):
    probabilities = logits.softmax(1)[:, 1:]
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].to(probabilities.dtype)
    axes = (2, 3, 4)
    sums = probabilities.sum(axes) + truth.sum(axes)
    dice = (2 * (probabilities * truth).sum(axes) + 1e-5) / (sums + 1e-5).clamp_min(1e-8)
    return F.cross_entropy(logits, labels) - dice.mean()


def worker(rank, arguments, port, results):
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=arguments.np)
    network = UNet(1, arguments.classes, arguments.features)
    if arguments.np > 1:
        network = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    images = torch.randn(arguments.batch, 1, *arguments.patch)
    heads = len(arguments.features) - 2
    labels = [torch.randint(0, arguments.classes, (arguments.batch, *(n >> head for n in arguments.patch)))
              for head in range(heads)]
    weights = [0.5**head for head in range(heads)]
    weights = [weight / sum(weights) for weight in weights]
    seconds = []
    for step in range(arguments.warm_up + arguments.steps):
        dist.barrier()
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        losses = (dice_and_cross_entropy(*pair) for pair in zip(network(images), labels))
        sum(weight * loss for weight, loss in zip(weights, losses)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        if step >= arguments.warm_up:
            seconds.append(time.perf_counter() - began)
    if rank == 0:
        results.put(statistics.median(seconds))
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--np", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="samples per process")
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--features", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(worker, (arguments, port, results), arguments.np)
    step = results.get()
    print(json.dumps({"peer": f"pytorch {torch.__version__}", "ranks": arguments.np, "step_s": step,
                      "samples_per_s": arguments.np * arguments.batch / step}))


if __name__ == "__main__":
    main()
