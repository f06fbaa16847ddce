"""What 8 to 512 GPUs should give, from a step, a loader and bytes: python bench/scaling.py. A model, not a measurement.

Give what was measured: --rate (images/s of one GPU) and --loader (images/s that a node's cores decode).
"""

import argparse
from dataclasses import dataclass

import torch

from historay.models.zoo import build_model

GPUS_PER_NODE = 8
EFFICIENCY = 0.7  # of a link's line rate that a ring reaches; assumed
HOP_S = 20e-6  # latency of one step of the ring between nodes; assumed
NVLINK = 300e9  # bytes/s each way, A100 (NVIDIA A100 datasheet: 600 GB/s both ways)


@dataclass(frozen=True)
class Inputs:
    """What the model is computed from, measured or published."""

    rate: float  # images/s of one GPU without exchange
    loader: float  # images/s of a node's loaders
    batch: int  # images a GPU and step
    num_bytes: float  # exchanged by each GPU and step
    network: float  # bytes/s of a node's network, line rate


def exchange_s(inputs: Inputs, num_gpus: int) -> float:
    """Returns the time of one all-reduce: a ring within the node, then one between nodes."""
    here, nodes = min(num_gpus, GPUS_PER_NODE), max(1, num_gpus // GPUS_PER_NODE)
    inside = 2 * (here - 1) / here * inputs.num_bytes / (NVLINK * EFFICIENCY)
    between = 2 * (nodes - 1) / nodes * inputs.num_bytes / (inputs.network * EFFICIENCY)
    return inside + between + 2 * (nodes - 1) * HOP_S


def images_per_s(inputs: Inputs, num_gpus: int, *, overlap: bool) -> float:
    """Returns the rate of all GPUs; with overlap, the exchange hides behind the backward pass, 2/3 of the step."""
    alone = inputs.batch / inputs.rate
    exchange = exchange_s(inputs, num_gpus)
    step = alone + max(0.0, exchange - (2 / 3 * alone if overlap else 0.0))
    fed = inputs.loader * max(1, num_gpus / GPUS_PER_NODE)
    return min(num_gpus * inputs.batch / step, fed)


def main() -> None:
    """Prints the share of linear scaling, without and with overlap, for fp32 and bfloat16 gradients and three networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rate", type=float, default=2470.0)
    parser.add_argument("--loader", type=float, default=112_000.0)
    parser.add_argument("--batch", type=int, default=256)
    chosen = parser.parse_args()
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build_model(chosen.model, 2, 224).parameters())
    sizes = (8, 16, 64, 256, 512)
    print(f"| {chosen.model}: exchanged | Gbit/s of a node |", " | ".join(f"{size} GPUs" for size in sizes), "|")
    print("|---|---|" + "---|" * len(sizes))
    for kind, width in (("fp32", 4), ("bf16", 2)):
        for gigabits in (25, 100, 400):
            inputs = Inputs(chosen.rate, chosen.loader, chosen.batch, width * count, gigabits / 8 * 1e9)
            bounds = [
                [images_per_s(inputs, size, overlap=how) / (size * chosen.rate) for how in (False, True)] for size in sizes
            ]
            cells = " | ".join(f"{least:.2f} to {most:.2f}" for least, most in bounds)
            print(f"| {kind}, {width * count / 1e6:.0f} MB | {gigabits} | {cells} |")


if __name__ == "__main__":
    main()
