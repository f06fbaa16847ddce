"""What each idea is worth on PCam, and what each network learns in equal time.

Run as python bench/quality.py PCAM_FOLDER [ideas|networks]. PCAM_FOLDER holds manifest.csv and train.tar, valid.tar and
test.tar, as shared/data/pcam does. All by the plain loop, one recipe and one thread: about 40 and 25 minutes of a quiet
core for the two tables, which go to docs/results.md.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from robustness import pcam, tested
from torch import nn

from historay.data.loading import TileBatch, Tiles, shuffled_batches
from historay.data.transforms import Augmentation, Preprocessing, measure_preprocessing
from historay.models.averaging import averaged
from historay.models.small_cnn import SmallCNN
from historay.models.zoo import build_model
from historay.training.loop import Learner, Recipe, judged_model, train_one_epoch
from historay.training.optim import ScheduleName, build_ema, build_optimizer, build_schedule

BATCH, LR, EPOCHS, BUDGET_S = 64, 2e-3, 8, 120


@dataclass(frozen=True)
class Arm:
    """One training run."""

    model: str = "small_cnn"
    augment: Augmentation = "full"
    schedule: ScheduleName = "cosine"
    ema: bool = True
    widths: tuple[int, ...] | None = None
    seed: int = 0


IDEAS = {
    "the recipe": Arm(),
    "the recipe, second seed": Arm(seed=1),
    "the recipe, third seed": Arm(seed=2),
    "no augmentation": Arm(augment="none"),
    "turns and flips only": Arm(augment="d4"),
    "stain augmentation (strong)": Arm(augment="strong"),
    "no average of the weights": Arm(ema=False),
    "constant learning rate": Arm(schedule="constant"),
    "constant, no average": Arm(schedule="constant", ema=False),
    "half as wide": Arm(widths=(12, 24, 48, 64)),
    "1.4 x as wide": Arm(widths=(34, 68, 136, 180)),
}
NETWORKS = (
    "small_cnn",
    "p4m_resnet",
    "resnet18",
    "vgg11_bn",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v3_large",
    "convnext_tiny",
    "inception_v3",
)


class Split(NamedTuple):
    training: TileBatch
    validation: TileBatch
    test: TileBatch


class Trained(NamedTuple):
    model: nn.Module
    preprocessing: Preprocessing
    num_steps: int
    cpu_s: float


def train(arm: Arm, tiles: TileBatch, num_steps: int | None) -> Trained:
    """Trains for so many steps, or for as many as a probe of ten steps says go into BUDGET_S of CPU."""
    torch.manual_seed(arm.seed)
    order = np.random.default_rng(arm.seed).permutation(len(tiles.labels))
    preprocessing = measure_preprocessing(tiles.tiles_BHWC[order[:2048]])
    recipe = Recipe(preprocessing, arm.augment, 0.05, None, None, bf16=True)
    network = build_model(arm.model, 2, preprocessing.input_px) if arm.widths is None else SmallCNN(2, 0.0, arm.widths)
    model: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    num_steps = num_steps or round(BUDGET_S / seconds_a_step(model, tiles, recipe))
    learner = learner_of(model, arm, num_steps)
    batches = itertools.islice(endless(tiles, arm.seed), num_steps)
    started = time.process_time()
    train_one_epoch(learner, batches, recipe, torch.Generator().manual_seed(arm.seed))
    return Trained(judged_model(learner), preprocessing, num_steps, time.process_time() - started)


def learner_of(model: nn.Module, arm: Arm, num_steps: int) -> Learner:
    """Warms up for a tenth of the steps; the average reaches back an eleventh of them, as in the named runs."""
    optimizer = build_optimizer(model, "adamw", LR, 0.9, 0.05)
    schedule = build_schedule(optimizer, arm.schedule, num_steps // 10, num_steps)
    return Learner(model, optimizer, schedule, build_ema(model, 1 - 11 / num_steps) if arm.ema else None)


def seconds_a_step(model: nn.Module, tiles: TileBatch, recipe: Recipe) -> float:
    """CPU of one step, of a copy: the network itself learns nothing yet."""
    probe, generator = learner_of(copy.deepcopy(model), Arm(), 1000), torch.Generator()
    train_one_epoch(probe, itertools.islice(endless(tiles, 0), 3), recipe, generator)
    started = time.process_time()
    train_one_epoch(probe, itertools.islice(endless(tiles, 0), 10), recipe, generator)
    return (time.process_time() - started) / 10


def endless(tiles: TileBatch, seed: int) -> Iterator[tuple[Tiles, np.ndarray]]:
    for epoch in itertools.count(1):
        yield from shuffled_batches(tiles, BATCH, 1000 * seed + epoch)


def row(name: str, arm: Arm, split: Split, num_steps: int | None) -> None:
    trained = train(arm, split.training, num_steps)
    models = [trained.model, averaged(trained.model, "d4")] if num_steps else [trained.model]
    looks = [
        tested(model, trained.preprocessing, of.tiles_BHWC, of.labels)
        for model in models
        for of in (split.validation, split.test)
    ]
    parameters = sum(p.numel() for p in trained.model.parameters()) / 1e6
    figures = " | ".join(f"{look.auc:.3f} / {look.accuracy:.3f}" for look in looks)
    epochs = trained.num_steps * BATCH / len(split.training.labels)
    print(f"| {name} | {parameters:.2f} | {epochs:.1f} | {trained.cpu_s:.0f} | {figures} |", flush=True)


def main(folder: Path, which: list[str]) -> None:
    """Prints each row as soon as it is known."""
    torch.set_num_threads(1)
    split = Split(*(pcam(folder, name, 10**9) for name in ("train", "valid", "test")))
    heads = "M parameters | epochs | s of CPU | validation AUC / accuracy | test"
    if "ideas" in which:
        print(f"\n| {EPOCHS} epochs of small_cnn | {heads} | validation, averaging d4 | test, averaging d4 |\n{'|---' * 8}|")
        for name, arm in IDEAS.items():
            row(name, arm, split, EPOCHS * (len(split.training.labels) // BATCH))
    if "networks" in which:
        print(f"\n| {BUDGET_S} s of CPU each | {heads} |\n{'|---' * 6}|")
        for model in NETWORKS:
            row(model, replace(Arm(), model=model, schedule="constant"), split, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["ideas", "networks"])
