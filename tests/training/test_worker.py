"""Workers that share a batch in unequal parts take together the step that one worker takes with the whole of it."""

import numpy as np
import pytest
import torch
from images import texture
from torch import nn

from historay.data.share import batch_parts
from historay.data.transforms import Preprocessing
from historay.training.loop import Learner, Recipe, train_one_epoch
from historay.training.optim import build_schedule

TILES, LABELS = np.stack([texture(seed, 8) for seed in range(16)]), np.arange(16) % 2


def stepped(tiles: np.ndarray, labels: np.ndarray, weight: float) -> torch.Tensor:
    """Returns the weights of a linear model after one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    preprocessing = Preprocessing(input_px=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    recipe = Recipe(preprocessing, "none", 0.1, None, None, bf16=False, weight=weight)
    learner = Learner(model, optimizer, build_schedule(optimizer, "constant", 0, 1), None)
    train_one_epoch(learner, [(tiles, labels)], recipe, torch.Generator())
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 7])
def test_the_mean_of_the_workers_steps_is_the_step_of_the_whole_batch(num_workers: int) -> None:
    parts, start, sum_of_steps = batch_parts(16, num_workers), 0, torch.zeros(())
    for part in parts:
        stop = start + part
        sum_of_steps = sum_of_steps + stepped(TILES[start:stop], LABELS[start:stop], part * num_workers / 16)
        start = stop
    torch.testing.assert_close(sum_of_steps / num_workers, stepped(TILES, LABELS, 1.0))
