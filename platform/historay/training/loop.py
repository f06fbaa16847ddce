"""The training loop in plain torch: it knows nothing of Ray, files or the number of workers."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from historay.data.loading import Labels, Tiles
from historay.data.stain import normalise_stain
from historay.data.transforms import Augmentation, Preprocessing, augment, normalise, to_input, to_unit
from historay.errors import TrainingError
from historay.training.optim import update_ema

_AUX_WEIGHT = 0.4  # of inception's auxiliary loss (Szegedy et al. 2015)


@dataclass(frozen=True)
class Recipe:
    """How one step turns tiles into a gradient."""

    preprocessing: Preprocessing
    augmentation: Augmentation
    label_smoothing: float
    class_weights: Tensor | None  # (K,)
    clip_norm: float | None
    bf16: bool
    accumulate: int = 1  # parts in which a batch runs through the network
    weight: float = 1.0  # of this worker's mean loss in the workers' mean: its part of the batch times their number


@dataclass
class Learner:
    """All that a step changes."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LambdaLR
    ema: AveragedModel | None
    step: int = 0
    epoch: int = 0  # the one under way, from 1


def train_one_epoch(
    learner: Learner, batches: Iterable[tuple[Tiles, Labels]], recipe: Recipe, generator: torch.Generator
) -> float:
    """Takes one optimiser step per batch, of which there is at least one, and returns the mean loss.

    Raises TrainingError at the first gradient that is not finite, with nothing written. The gradient is the mean over all
    workers', so that all of them raise at the same step and none waits for another.
    """
    learner.model.train()
    losses: list[Tensor] = []
    asked: _OnItsWay | None = None
    for tiles, labels in batches:
        loss, norm = backward(learner.model, tiles, labels, recipe, generator)
        losses.append(loss)
        earlier, asked = asked, _fetch(norm, loss)
        # One step late on a GPU, which so never runs out of work while the loop waits for a number.
        _refuse_infinite(asked if earlier is None or norm.device.type == "cpu" else earlier, learner)
        learner.optimizer.step()
        learner.schedule.step()
        learner.step += 1
        if learner.ema is not None:
            update_ema(learner.ema, bare_model(learner.model))
    assert asked is not None
    _refuse_infinite(asked, learner)
    return float(torch.stack(losses).float().mean())


def backward(
    model: nn.Module, tiles: Tiles, labels: Labels, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Leaves the gradient, clipped if so asked, in the parameters; returns the loss and the norm before clipping.

    In parts, the gradient is the whole batch's up to rounding, and workers exchange it once, but each part has its own
    batch norm. Never waits for a GPU.
    """
    parameters = list(model.parameters())
    device = parameters[0].device
    unit_BCHW = normalise_stain(to_unit(_on_device(tiles, device)), recipe.preprocessing.stain)
    # Augmented whole, so that parts see what the batch would: what parts save is the network's memory.
    tiles_BCHW = augment(unit_BCHW, recipe.augmentation, generator)
    inputs = normalise(tiles_BCHW, recipe.preprocessing).contiguous(memory_format=torch.channels_last)
    labels_B = _on_device(labels, device)
    shares = _shares(labels_B, recipe)
    model.zero_grad(set_to_none=True)
    losses = []
    parts = zip(inputs.chunk(recipe.accumulate), labels_B.chunk(recipe.accumulate), shares, strict=True)
    for number, (part_BCHW, part_B, share) in enumerate(parts, start=1):
        with _exchange(model, now=number == len(shares)):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.bf16):
                loss = recipe.weight * share * _loss(model(part_BCHW), part_B, recipe)
            torch.autograd.backward(loss)
        losses.append(loss.detach())
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if recipe.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, recipe.clip_norm, norm)
    return torch.stack(losses).sum(), norm


def _on_device(batch: NDArray[Any], device: torch.device) -> Tensor:
    """From pinned memory a GPU takes a batch by itself, while the loop goes on."""
    tensor = torch.from_numpy(batch)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _shares(labels_B: Tensor, recipe: Recipe) -> Tensor:
    """Returns each part's share of the batch's mean: by its tiles, or by their classes' weights."""
    weights_B = torch.ones_like(labels_B, dtype=torch.float32)
    if recipe.class_weights is not None:
        weights_B = recipe.class_weights[labels_B]
    sums = torch.stack([part.sum() for part in weights_B.chunk(recipe.accumulate)])
    return sums / sums.sum()


def _exchange(model: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    return nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync()


def predict(model: nn.Module, batches: Iterable[Tiles], preprocessing: Preprocessing, *, bf16: bool) -> NDArray[np.float32]:
    """Returns logits (N, K) in evaluation mode; for validation while training, not for what is published."""
    model.eval()
    device = next(model.parameters()).device
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        for tiles in batches:
            inputs = to_input(torch.from_numpy(tiles).to(device), preprocessing)
            logits.append(model(inputs.contiguous(memory_format=torch.channels_last)).float().cpu().numpy())
    return np.concatenate(logits)


def judged_model(learner: Learner) -> nn.Module:
    """Returns the weights that count: the moving average where there is one."""
    return bare_model(learner.model) if learner.ema is None else learner.ema.module


def _loss(output: Tensor | tuple[Tensor, Tensor], labels_B: Tensor, recipe: Recipe) -> Tensor:
    if isinstance(output, tuple):
        main, aux = output
        return _loss(main, labels_B, recipe) + _AUX_WEIGHT * _loss(aux, labels_B, recipe)
    return F.cross_entropy(output, labels_B, weight=recipe.class_weights, label_smoothing=recipe.label_smoothing)


def bare_model(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


class _OnItsWay(NamedTuple):
    """A step's norm and loss on their way to the CPU."""

    norm: Tensor
    loss: Tensor
    arrived: torch.cuda.Event | None  # on a GPU

    def wait(self) -> None:
        if self.arrived is not None:
            self.arrived.synchronize()


def _fetch(norm: Tensor, loss: Tensor) -> _OnItsWay:
    if norm.device.type == "cpu":
        return _OnItsWay(norm, loss, None)
    # Asked for later, a number would come behind all that was queued since.
    asked = norm.to("cpu", non_blocking=True), loss.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    asked[2].record()
    return _OnItsWay(*asked)


def _refuse_infinite(asked: _OnItsWay, learner: Learner) -> None:
    asked.wait()
    if not bool(torch.isfinite(asked.norm)):
        lr = learner.optimizer.param_groups[0]["lr"]
        raise TrainingError(
            f"the gradient's norm is {float(asked.norm)} (loss {float(asked.loss):.4g}) in epoch {learner.epoch} after "
            f"{learner.step} steps with lr={lr:.3g}; the last good checkpoint is kept. "
            "Lower --lr, lengthen --warmup-epochs, or set --clip-norm 1, under a new --run"
        )
