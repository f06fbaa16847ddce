"""A batch in parts gives the gradient of the whole one, and workers agree on the mean of theirs."""

from pathlib import Path

import pytest
import torch
from gradients import LABELS, PREPROCESSING, TILES, gradients, network, share_gradients
from torch import Tensor, multiprocessing

from historay.training.loop import Recipe, backward


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 5.0])])
def test_a_batch_in_parts_gives_the_gradient_and_loss_of_the_whole_one(weights: Tensor | None) -> None:
    model, found = network(), []
    for accumulate in (1, 4):
        recipe = Recipe(PREPROCESSING, "strong", 0.1, weights, 1.0, bf16=False, accumulate=accumulate)
        loss, norm = backward(model, TILES, LABELS, recipe, torch.Generator().manual_seed(0))
        found.append([loss, norm, *gradients(model)])
    for whole, in_parts in zip(*found, strict=True):
        torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-6)


def test_two_workers_have_the_mean_of_their_gradients_to_the_eight_bits_of_bfloat16(tmp_path: Path) -> None:
    multiprocessing.spawn(share_gradients, args=(tmp_path,), nprocs=2)
    found = {path.name: torch.load(path) for path in tmp_path.iterdir() if "-" in path.name}
    mean = [(mine + other) / 2 for mine, other in zip(found["alone-0"], found["alone-1"], strict=True)]
    for name, rtol in (("fp32", 1e-4), ("bf16", 2**-7), ("parts", 2**-7)):
        for ours, theirs, expected in zip(found[f"{name}-0"], found[f"{name}-1"], mean, strict=True):
            assert torch.equal(ours, theirs), "all workers take the same step"
            # Three roundings of values that may cancel: relative to the largest.
            torch.testing.assert_close(ours, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))
    assert not torch.equal(found["fp32-0"][0], found["bf16-0"][0])
