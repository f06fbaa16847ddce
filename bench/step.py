"""A training step under Ray Train against a bare torch loop, one process: python bench/step.py; about 5 minutes.

Bare is the shortest loop with the same network, optimiser, bfloat16, memory format and threads (all cores), on the same tiles,
and none of what Historay does around a step. Rates are those of the last of three epochs.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
from torch.nn import functional as F  # noqa: N812

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from datasets import row, written
from images import encoded

from historay.data.loading import iter_tiles
from historay.data.synthetic import SyntheticConfig, draw_tile
from historay.data.transforms import measure_preprocessing, to_input
from historay.models.zoo import build_model
from historay.ray_session import connect_ray
from historay.storage import open_store
from historay.training.optim import build_optimizer
from historay.training.run import read_metrics
from historay.training.settings import TrainConfig
from historay.training.train import train

BATCH, EPOCHS, TILES = 64, 3, {"small_cnn": 2560, "resnet18": 640, "p4m_resnet": 512}


def bare(name: str, tiles_BHWC: np.ndarray, labels: np.ndarray) -> float:
    """Returns tiles a second of the shortest loop, in its last epoch."""
    torch.set_num_threads(os.cpu_count() or 1)
    preprocessing = measure_preprocessing(tiles_BHWC)
    model = build_model(name, 2, tiles_BHWC.shape[1], 0.0).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, "adamw", 1e-3, 0.9, 0.05)
    seconds = 0.0
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for start in range(0, len(labels) - BATCH + 1, BATCH):
            batch = to_input(torch.from_numpy(tiles_BHWC[start : start + BATCH]), preprocessing)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = model(batch.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(output, torch.from_numpy(labels[start : start + BATCH]))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        seconds = time.perf_counter() - started
    return len(labels) // BATCH * BATCH / seconds


def main() -> None:
    """Measures each network in turn and prints a table."""
    print("| network, 96 px, batch 64, bf16 | bare loop | Ray Train, 1 worker | ratio | with full | 2 workers, full |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="hp-") as scratch:
        connect_ray()
        drawn = [draw_tile(SyntheticConfig(out="unused"), number)[1] for number in range(max(TILES.values()) + 32)]
        for name, num_tiles in TILES.items():
            rows = [
                row(number, encoded(tile, quality=90), tile, f"p{number}", "train" if number < num_tiles else "val")
                for number, tile in enumerate(drawn[: num_tiles + 32])
            ]
            dataset = written(open_store(f"{scratch}/{name}"), rows)
            batches = list(iter_tiles(dataset, "train", 96, 512))
            tiles, labels = np.concatenate([b.tiles_BHWC for b in batches]), np.concatenate([b.labels for b in batches])

            def under_ray(augment: str, num_workers: int = 1, name: str = name, store: str = dataset.store.uri) -> float:
                run = f"{augment}-{num_workers}"
                settings = {"run": run, "dataset": "small", "store": store, "model": name, "augment": augment}
                settings |= {"epochs": EPOCHS, "batch_size": BATCH, "warmup_epochs": 0.5, "num_workers": num_workers}
                train(TrainConfig(**settings))  # type: ignore[arg-type]
                return float(read_metrics(open_store(store), run)[-1]["tiles_per_s"])

            loop = bare(name, tiles, labels)
            own = under_ray("none")
            again = bare(name, tiles, labels)
            figures = [f"{loop:.0f}, {again:.0f}", f"{own:.0f}", f"{own / ((loop + again) / 2):.2f}"]
            figures += [f"{under_ray('full'):.0f}", f"{under_ray('full', 2):.0f}"]
            print("|", " | ".join([name, *figures]), "|", flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
