"""The loop computes on a GPU what it computes on a CPU, and never makes it wait."""

import copy

import pytest
import torch
from gpus import needs_gpu
from gradients import LABELS, PREPROCESSING, TILES, gradients, network
from torch import nn

from historay.errors import TrainingError
from historay.training.loop import Learner, Recipe, backward, train_one_epoch
from historay.training.optim import build_ema, build_optimizer, build_schedule, update_ema

pytestmark = needs_gpu

BATCHES = [(TILES, LABELS)] * 4


def recipe(*, bf16: bool, accumulate: int = 1) -> Recipe:
    weights = torch.tensor([0.5, 1.0, 2.0], device="cuda")
    return Recipe(PREPROCESSING, "strong", 0.1, weights, 1.0, bf16, accumulate)


def learner(model: nn.Module, lr: float = 1e-2) -> Learner:
    optimizer = build_optimizer(model, "adamw", lr, 0.9, 0.05)
    return Learner(model, optimizer, build_schedule(optimizer, "cosine", 2, 40), build_ema(model, 0.9))


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-3), (True, 5e-2)])
def test_a_gpu_gives_the_loss_and_gradient_of_the_cpu(bf16: bool, tolerance: float) -> None:
    here, there = network(), network().cuda()
    weights = recipe(bf16=bf16).class_weights
    assert weights is not None
    on_cpu = Recipe(PREPROCESSING, "full", 0.1, weights.cpu(), 1.0, bf16=False)
    on_gpu = Recipe(PREPROCESSING, "full", 0.1, weights, 1.0, bf16)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = backward(here, TILES, LABELS, on_cpu, torch.Generator().manual_seed(0))
        found = backward(there, TILES, LABELS, on_gpu, torch.Generator().manual_seed(0))
    torch.testing.assert_close([one.cpu() for one in found], list(expected), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close([one.cpu() for one in gradients(there)], gradients(here), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_never_waits_for_the_gpu(accumulate: int) -> None:
    one = learner(network().cuda())
    made = recipe(bf16=True, accumulate=accumulate)
    assert one.ema is not None
    train_one_epoch(one, BATCHES, made, torch.Generator().manual_seed(0))  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        backward(one.model, TILES, LABELS, made, torch.Generator().manual_seed(0))
        one.optimizer.step()
        update_ema(one.ema, one.model)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_epoch_on_a_gpu_lowers_the_loss_as_one_on_the_cpu() -> None:
    start = network()
    losses = {}
    for device in ("cpu", "cuda"):
        one = learner(copy.deepcopy(start).to(device))
        plain = Recipe(PREPROCESSING, "d4", 0.0, None, None, bf16=False)
        losses[device] = [train_one_epoch(one, BATCHES, plain, torch.Generator().manual_seed(0)) for _ in range(3)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)
    assert losses["cuda"][-1] < losses["cuda"][0]


def test_a_gradient_that_is_not_finite_stops_training_one_step_late() -> None:
    with pytest.raises(TrainingError, match=r"the gradient's norm is (nan|inf)"):
        train_one_epoch(learner(network().cuda(), lr=1e30), BATCHES, recipe(bf16=True), torch.Generator().manual_seed(0))
