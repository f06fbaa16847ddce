"""A checkpoint brings a learner back bit for bit, and is never taken for whole when it isn't."""

import numpy as np
import pytest
import torch
from images import texture

from historay.data.transforms import Preprocessing
from historay.errors import TrainingError
from historay.models.zoo import build_model
from historay.storage import LocalStore
from historay.training.checkpoint import drop_checkpoints, load_checkpoint, save_checkpoint
from historay.training.loop import Learner, Recipe, train_one_epoch
from historay.training.optim import build_ema, build_optimizer, build_schedule
from historay.training.run import complete_epochs

LABELS = np.arange(32) % 2
TILES = np.stack([texture(seed, 32) // (1 + label) for seed, label in enumerate(LABELS)])  # a label is to be seen: darker
RECIPE = Recipe(Preprocessing(input_px=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)), "full", 0.1, None, 1.0, bf16=False)


def learner(optimizer: str, lr: float = 1e-2) -> Learner:
    torch.manual_seed(0)
    model = build_model("small_cnn", 2, 32, dropout=0.2).to(memory_format=torch.channels_last)  # as workers have it
    built = build_optimizer(model, optimizer, lr, 0.9, 1e-3)  # type: ignore[arg-type]
    return Learner(model, built, build_schedule(built, "cosine", 2, 40), build_ema(model, 0.9))


def epoch(one: Learner, seed: int) -> float:
    torch.manual_seed(seed)
    batches = [(TILES[start : start + 8], LABELS[start : start + 8]) for start in range(0, 32, 8)]
    return train_one_epoch(one, batches, RECIPE, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_resumed_learner_takes_bit_for_bit_the_steps_of_an_unbroken_one(store: LocalStore, optimizer: str) -> None:
    unbroken = learner(optimizer)
    epoch(unbroken, 1)
    save_checkpoint(store, "r", 1, unbroken, {"best": None})
    resumed = learner(optimizer)
    assert load_checkpoint(store, "r", 1, resumed) == {"best": None}
    assert epoch(unbroken, 2) == epoch(resumed, 2)
    assert resumed.step == unbroken.step == 8
    for name in ("model", "ema"):
        ours, theirs = getattr(resumed, name).state_dict(), getattr(unbroken, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_training_lowers_the_loss() -> None:
    one = learner("adamw", lr=2e-3)
    losses = [epoch(one, seed) for seed in range(10)]
    assert losses[-1] < losses[0]


def test_a_gradient_that_is_not_finite_stops_training_and_says_where() -> None:
    one = learner("sgd", lr=1e30)
    with pytest.raises(TrainingError, match=r"after \d steps with lr=.*Lower --lr"):
        epoch(one, 1)


def test_an_unfinished_checkpoint_does_not_count_and_older_ones_are_dropped(store: LocalStore) -> None:
    one = learner("sgd")
    for number in (1, 2, 3):
        save_checkpoint(store, "r", number, one, {})
    store.delete("runs/r/checkpoints/epoch-0003/state.json")
    assert complete_epochs(store, "r") == [1, 2]
    drop_checkpoints(store, "r", keep={2})
    assert complete_epochs(store, "r") == [2]


def test_nothing_in_a_checkpoint_is_a_pickle(store: LocalStore) -> None:
    save_checkpoint(store, "r", 1, learner("adamw"), {})
    names = {item.key.rsplit("/", 1)[1] for item in store.list("runs")}
    assert names == {"model.safetensors", "training.safetensors", "state.json"}
