"""Gradients of one batch, alone and shared by two processes; here, since a process that is spawned imports no test."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from images import texture
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from historay.data.transforms import Preprocessing
from historay.training.loop import Recipe, backward
from historay.training.parallel import DDP_SETTINGS, exchange_in_bf16

TILES, LABELS = np.stack([texture(seed, 32) for seed in range(16)]), np.array([0, 0, 0, 1] * 3 + [2, 1, 0, 0])
PREPROCESSING = Preprocessing(input_px=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def network() -> nn.Module:
    """Without batch norm, which sees a part at a time."""
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(pooled, nn.Flatten(), nn.Linear(16, 3))


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def share_gradients(rank: int, folder: Path) -> None:
    """A worker: the gradient of its half alone, then shared in fp32, in bfloat16, and in parts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = slice(8 * rank, 8 * rank + 8)
    for name, parts in (("alone", 1), ("fp32", 1), ("bf16", 1), ("parts", 4)):
        model = network()
        if name != "alone":
            model = DistributedDataParallel(model, **DDP_SETTINGS)
        if name in {"bf16", "parts"}:
            exchange_in_bf16(model)
        plain = Recipe(PREPROCESSING, "none", 0.0, None, None, bf16=False, accumulate=parts)
        backward(model, TILES[half], LABELS[half], plain, torch.Generator())
        torch.save(gradients(model), folder / f"{name}-{rank}")
    dist.destroy_process_group()
