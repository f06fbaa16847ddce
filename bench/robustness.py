"""What stain augmentation and normalisation save under shift: python bench/robustness.py PCAM_FOLDER [pcam|sites].

PCAM_FOLDER holds manifest.csv and train.tar, test.tar, as shared/data/pcam does. Trains small_cnn in the plain loop, on one
thread, about 6 minutes of one quiet core. The tables go to docs/results.md with machine and date.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from historay.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from historay.data.decode import decode_tile
from historay.data.loading import TileBatch, Tiles, shuffled_batches
from historay.data.stain import StainMethod
from historay.data.synthetic import SyntheticConfig, draw_tile
from historay.data.transforms import Augmentation, Preprocessing, measure_preprocessing
from historay.evaluation.metrics import roc_auc
from historay.models.zoo import build_model
from historay.training.loop import Learner, Recipe, judged_model, predict, train_one_epoch
from historay.training.optim import build_ema, build_optimizer, build_schedule

BATCH = 32
NUM_SITES = 4
SYNTHETIC = SyntheticConfig(out="unused", num_sites=NUM_SITES, num_patients=40)


class Arm(NamedTuple):
    augment: Augmentation
    stain: StainMethod


ARMS = {
    "neither": Arm("d4", "none"),
    "stain augmentation (strong)": Arm("strong", "none"),
    "Reinhard": Arm("d4", "reinhard"),
    "Macenko": Arm("d4", "macenko"),
}
# What a laboratory's daily work may bring, by name and severity in CORRUPTIONS; and a lamp that is a little yellow.
SHIFTS = {"stain": 3, "exposure": 3, "jpeg": 4, "blur": 2}
YELLOW = np.array([1.0, 0.95, 0.8])


class Tested(NamedTuple):
    auc: float
    accuracy: float


def pcam(folder: Path, split: str, per_class: int) -> TileBatch:
    """Reads the tiles of lowest rank, a balanced and seeded choice."""
    with (folder / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split and int(row["rank"]) < per_class]
    wanted = {row["path"]: int(row["label"]) for row in rows}
    found = []
    with tarfile.open(folder / f"{split}.tar") as archive:
        for member in archive:
            name = next((path for path in (member.name, f"{split}/{member.name}") if path.removeprefix("./") in wanted), None)
            content = archive.extractfile(member) if name else None
            if name and content:
                found.append((name, decode_tile(content.read()), wanted[name]))
    assert len(found) == len(wanted), f"{split}.tar holds {len(found)} of {len(wanted)} tiles"
    names, tiles, labels = zip(*found, strict=True)
    return TileBatch(list(names), np.stack(tiles), np.array(labels))


def synthetic(numbers: Iterable[int]) -> tuple[TileBatch, NDArray[np.int64]]:
    """Draws tiles and says of which site each is."""
    drawn = {number: draw_tile(SYNTHETIC, number) for number in numbers}
    labels = np.array([int(label == "tumour") for label, _ in drawn.values()])
    tiles = TileBatch([str(number) for number in drawn], np.stack([tile for _, tile in drawn.values()]), labels)
    return tiles, np.array([number % SYNTHETIC.num_patients % NUM_SITES for number in drawn])


def train(tiles: TileBatch, arm: Arm, epochs: int, seed: int) -> tuple[nn.Module, Preprocessing]:
    torch.manual_seed(seed)
    # The reference of the stain and the statistics: tiles of all classes.
    order = np.random.default_rng(seed).permutation(len(tiles.labels))
    preprocessing = measure_preprocessing(tiles.tiles_BHWC[order[:512]], arm.stain)
    model = build_model("small_cnn", 2, preprocessing.input_px).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(tiles.labels) // BATCH
    optimizer = build_optimizer(model, "adamw", 1.5e-3, 0.9, 0.05)
    schedule = build_schedule(optimizer, "cosine", steps, epochs * steps)
    learner = Learner(model, optimizer, schedule, build_ema(model, 0.98))
    recipe = Recipe(preprocessing, arm.augment, 0.05, None, None, bf16=True)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        learner.epoch = epoch
        train_one_epoch(learner, shuffled_batches(tiles, BATCH, seed + epoch), recipe, generator)
    return judged_model(learner), preprocessing


def tested(model: nn.Module, preprocessing: Preprocessing, tiles: Tiles, labels: NDArray[np.int64]) -> Tested:
    batches = np.array_split(tiles, max(1, len(tiles) // 256))
    logits = predict(model, batches, preprocessing, bf16=False)
    score = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    auc = roc_auc(labels == 1, score, np.ones(len(labels), dtype=np.int64))
    return Tested(float(auc), float(((score > 0) == (labels == 1)).mean()))


def shifted(tiles: Tiles) -> dict[str, Tiles]:
    found = {"none": tiles}
    for name, severity in SHIFTS.items():
        level = CORRUPTIONS[name].levels[SEVERITIES.index(severity)]
        found[f"{CORRUPTIONS[name].title} ({CORRUPTIONS[name].parameter}: {level:g})"] = corrupt(tiles, name, severity, 0)
    found["yellow light (red, green, blue x 1, 0.95, 0.8)"] = np.rint(tiles * YELLOW).astype(np.uint8)
    return found


def table(title: str, results: Mapping[str, Mapping[str, Tested]]) -> None:
    """Prints AUC and accuracy of each shift (row) and arm (column)."""
    arms = list(results)
    print(f"\n{title}\n\n| shift | {' | '.join(arms)} |\n|{'---|' * (len(arms) + 1)}")
    for shift in results[arms[0]]:
        cells = [f"{results[arm][shift].auc:.3f} / {results[arm][shift].accuracy:.3f}" for arm in arms]
        print(f"| {shift} | {' | '.join(cells)} |", flush=True)


def told(what: str, started: float, results: Mapping[str, Tested]) -> None:
    figures = ", ".join(f"{name.split(' (')[0]} {found.auc:.3f} / {found.accuracy:.3f}" for name, found in results.items())
    print(f"{what}: {time.process_time() - started:.0f} s of CPU; AUC / accuracy {figures}", flush=True)


def colour_shift(folder: Path, per_class: int = 2000, epochs: int = 4, num_test: int = 400) -> None:
    training, test = pcam(folder, "train", per_class), pcam(folder, "test", num_test)
    tests = shifted(test.tiles_BHWC)
    results = {}
    for name, arm in ARMS.items():
        started = time.process_time()
        model, preprocessing = train(training, arm, epochs, seed=0)
        results[name] = {shift: tested(model, preprocessing, tiles, test.labels) for shift, tiles in tests.items()}
        told(name, started, results[name])
    table(f"PCam, {2 * per_class} training and {2 * num_test} test tiles, {epochs} epochs, AUC / accuracy", results)


def sites_left_out(num_tiles: int = 1200, epochs: int = 5) -> None:
    """Trains on three sites and tests on the fourth and on held-out patients of the three."""
    tiles, site = synthetic(range(num_tiles))
    # Tiles go round the patients; the last fifth of the patients is kept out of training.
    patient = np.array([int(number) % SYNTHETIC.num_patients for number in tiles.tile_ids])
    known = patient < 0.8 * SYNTHETIC.num_patients
    results: dict[str, dict[str, Tested]] = {}
    for name, arm in ARMS.items():
        started = time.process_time()
        seen: list[Tested] = []
        unseen: list[Tested] = []
        for left_out in range(NUM_SITES):
            model, preprocessing = train(_rows(tiles, known & (site != left_out)), arm, epochs, seed=left_out)
            for where, found in ((~known & (site != left_out), seen), (site == left_out, unseen)):
                part = _rows(tiles, where)
                found.append(tested(model, preprocessing, part.tiles_BHWC, part.labels))
        results[name] = {
            "none: other patients of the sites trained on, mean": _mean(seen),
            "a site never seen, mean": _mean(unseen),
        }
        results[name] |= {f"site {number} never seen": found for number, found in enumerate(unseen)}
        told(name, started, results[name])
    table(f"Synthetic sites, {num_tiles} tiles, {epochs} epochs, means over the {NUM_SITES} left out, AUC / accuracy", results)


def _rows(tiles: TileBatch, where: NDArray[np.bool_]) -> TileBatch:
    rows = where.nonzero()[0]
    return TileBatch([tiles.tile_ids[row] for row in rows], tiles.tiles_BHWC[rows], tiles.labels[rows])


def _mean(found: Sequence[Tested]) -> Tested:
    return Tested(*np.mean(found, axis=0).tolist())


if __name__ == "__main__":
    torch.set_num_threads(1)
    which = sys.argv[2:] or ["pcam", "sites"]
    if "pcam" in which:
        colour_shift(Path(sys.argv[1]))
    if "sites" in which:
        sites_left_out()
