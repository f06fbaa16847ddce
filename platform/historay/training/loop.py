"""The training loop in plain torch: it knows nothing of Ray, files or the number of workers."""

from collections.abc import Iterable
from dataclasses import dataclass

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
    norms: list[Tensor] = []
    for tiles, labels in batches:
        loss, norm = _backward(learner.model, tiles, labels, recipe, generator)
        losses.append(loss)
        norms.append(norm)
        # Asked one step late on a GPU, so that the check does not wait for the step that was just queued.
        _refuse_infinite(norms[-1 if norm.device.type == "cpu" else max(-2, -len(norms))], loss, learner)
        learner.optimizer.step()
        learner.schedule.step()
        learner.step += 1
        if learner.ema is not None:
            learner.ema.update_parameters(bare_model(learner.model))
    _refuse_infinite(norms[-1], losses[-1], learner)
    return float(torch.stack(losses).float().mean())


def _backward(
    model: nn.Module, tiles: Tiles, labels: Labels, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Leaves the gradient, clipped if so asked, in the parameters; returns the loss and the norm before clipping."""
    parameters = list(model.parameters())
    device = parameters[0].device
    unit_BCHW = normalise_stain(to_unit(torch.from_numpy(tiles).to(device)), recipe.preprocessing.stain)
    tiles_BCHW = augment(unit_BCHW, recipe.augmentation, generator)
    inputs = normalise(tiles_BCHW, recipe.preprocessing).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.bf16):
        loss = recipe.weight * _loss(model(inputs), torch.from_numpy(labels).to(device), recipe)
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if recipe.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, recipe.clip_norm, norm)
    return loss.detach(), norm


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


def _refuse_infinite(norm: Tensor, loss: Tensor, learner: Learner) -> None:
    if not bool(torch.isfinite(norm)):
        lr = learner.optimizer.param_groups[0]["lr"]
        raise TrainingError(
            f"the gradient's norm is {float(norm)} (loss {float(loss):.4g}) in epoch {learner.epoch} after "
            f"{learner.step} steps with lr={lr:.3g}; the last good checkpoint is kept. "
            "Lower --lr, lengthen --warmup-epochs, or set --clip-norm 1, under a new --run"
        )
