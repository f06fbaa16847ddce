"""What a training step costs, in four tables: python bench/step.py; about 10 minutes on two quiet cores.

Bare is the shortest loop with the same network, optimiser, bfloat16, memory format and threads, on the same tiles, and none of
what Historay does around a step. Rates are the best of the epochs after the first; times of single steps are medians.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from datasets import row, written
from images import encoded, texture

from historay.data.loading import iter_tiles
from historay.data.transforms import Preprocessing, augment, measure_preprocessing, normalise, to_input, to_unit
from historay.models.zoo import build_model
from historay.ray_session import connect_ray
from historay.storage import open_store
from historay.training.loop import Recipe, backward
from historay.training.optim import build_optimizer
from historay.training.parallel import DDP_SETTINGS, exchange_in_bf16
from historay.training.run import read_metrics
from historay.training.settings import TrainConfig
from historay.training.train import train

BATCH, EPOCHS, REPEATS, PX = 64, 3, 7, 96
TILES = {"small_cnn": 8192, "resnet18": 512, "p4m_resnet": 384}
CORES = os.cpu_count() or 1


def drawn(num_tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """A few textures over and over: what they show changes no time."""
    few = np.stack([texture(seed, PX) for seed in range(32)])
    return np.ascontiguousarray(few[np.arange(num_tiles) % 32]), np.arange(num_tiles) % 2


def bare(name: str, tiles_BHWC: np.ndarray, labels: np.ndarray) -> float:
    """Returns tiles a second of the shortest loop."""
    torch.set_num_threads(CORES)
    preprocessing = measure_preprocessing(tiles_BHWC)
    model = build_model(name, 2, tiles_BHWC.shape[1]).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, "adamw", 1e-3, 0.9, 0.05)
    seconds = []
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
        seconds.append(time.perf_counter() - started)
    return len(labels) // BATCH * BATCH / min(seconds[1:])


def under_ray(name: str, store: str, augmentation: str, num_workers: int) -> float:
    """Returns tiles a second of a whole run, as the user has it."""
    run = f"{augmentation}-{num_workers}"
    settings: dict[str, Any] = {"run": run, "dataset": "small", "store": store, "model": name, "augment": augmentation}
    settings |= {"epochs": EPOCHS, "batch_size": BATCH, "warmup_epochs": 0.5, "num_workers": num_workers}
    train(TrainConfig(**settings))
    return max(float(line["tiles_per_s"]) for line in read_metrics(open_store(store), run)[1:])


def median_ms(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS + 2):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[2:])


def recipe(accumulate: int = 1) -> Recipe:
    preprocessing = Preprocessing(input_px=PX, mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2))
    return Recipe(preprocessing, "none", 0.0, None, None, bf16=True, accumulate=accumulate)


def one_step(model: torch.nn.Module, size: int, accumulate: int = 1) -> float:
    """Returns the milliseconds of our step on tiles in memory, without augmentation."""
    tiles, labels = drawn(size)
    optimizer = build_optimizer(model.train(), "adamw", 1e-3, 0.9, 0.05)

    def step() -> None:
        backward(model, tiles, labels, recipe(accumulate), torch.Generator())
        optimizer.step()

    return median_ms(step)


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(name, 2, PX).to(memory_format=torch.channels_last)


def augmentation_rows() -> list[list[str]]:
    """Each level's own milliseconds beside the step's, one thread."""
    torch.set_num_threads(1)
    steps = {name: one_step(network(name), BATCH) for name in TILES}
    tiles, generator = torch.from_numpy(drawn(BATCH)[0]), torch.Generator().manual_seed(0)
    unit, preprocessing = to_unit(tiles), recipe().preprocessing
    costs = {"to float and normalised": median_ms(lambda: normalise(to_unit(tiles), preprocessing))}
    for level in ("d4", "full", "strong"):
        costs[level] = median_ms(lambda level=level: augment(unit, level, generator))  # type: ignore[misc]
    shares = [[f"{ms / (ms + step):.1%}" for step in steps.values()] for ms in costs.values()]
    whole = ["step without", "-", *(f"{ms:.0f} ms" for ms in steps.values())]
    return [whole, *([name, f"{ms:.1f}", *share] for (name, ms), share in zip(costs.items(), shares, strict=True))]


def parts_rows() -> list[list[str]]:
    """The same batch of 64 in more and more parts, one thread."""
    torch.set_num_threads(1)
    names = ("small_cnn", "resnet18")
    return [[str(parts), *(f"{one_step(network(name), BATCH, parts):.0f}" for name in names)] for parts in (1, 2, 4, 8)]


def exchange(rank: int, port: int, results: str) -> None:
    """One of two processes with one thread each: steps without exchange, exchanging fp32, and bfloat16."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name in ("small_cnn", "resnet18"):
        for how in ("none", "torch's defaults", "fp32", "bf16"):
            model = network(name)
            if how != "none":
                model = DistributedDataParallel(model, **({} if how == "torch's defaults" else DDP_SETTINGS))
            if how == "bf16":
                exchange_in_bf16(model)
            dist.barrier()
            ms = one_step(model, BATCH // 2)
            if rank == 0:
                with Path(results).open("a") as file:
                    file.write(f"{name}\t{how}\t{ms}\n")
    dist.destroy_process_group()


def exchange_rows(scratch: str) -> list[list[str]]:
    """Tiles a second of two processes with one thread, by what they exchange, and of one process with two threads."""
    results = f"{scratch}/exchange"
    torch.multiprocessing.spawn(exchange, args=(29_500 + os.getpid() % 1000, results), nprocs=2)
    torch.set_num_threads(2)
    rows = []
    found = [line.split("\t") for line in Path(results).read_text().splitlines()]
    for name in ("small_cnn", "resnet18"):
        alone = 1000 * BATCH / one_step(network(name), BATCH)
        rates = [1000 * BATCH / float(ms) for of, _, ms in found if of == name]
        rows.append([name, f"{alone:.0f}", *(f"{rate:.0f}" for rate in rates), f"{rates[-1] / alone:.2f}"])
    return rows


def ray_rows(scratch: str) -> list[list[str]]:
    """A whole run under Ray Train beside the bare loop, measured before and after it."""
    rows = []
    for name, num_tiles in TILES.items():
        pixels, _ = drawn(num_tiles + 32)
        # A tile's digest is its identity: the number goes into a corner.
        pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.arange(len(pixels)) % 256, np.arange(len(pixels)) // 256
        stored = [
            row(number, encoded(tile, quality=90), tile, f"p{number}", "train" if number < num_tiles else "val")
            for number, tile in enumerate(pixels)
        ]
        dataset = written(open_store(f"{scratch}/{name}"), stored)
        batches = list(iter_tiles(dataset, "train", PX, 512))
        tiles, labels = np.concatenate([b.tiles_BHWC for b in batches]), np.concatenate([b.labels for b in batches])
        store = dataset.store.uri
        before, own, after = bare(name, tiles, labels), under_ray(name, store, "none", 1), bare(name, tiles, labels)
        figures = [f"{before:.0f}, {after:.0f}", f"{own:.0f}", f"{2 * own / (before + after):.2f}"]
        rows.append([name, *figures, f"{under_ray(name, store, 'full', 1):.0f}", f"{under_ray(name, store, 'full', 2):.0f}"])
    return rows


def table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n")
    for cells in (heads, ["---"] * len(heads), *rows):
        print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    """Measures and prints table by table; Ray's last, since its processes linger."""
    names = list(TILES)
    print(
        f"{CORES} cores, load {os.getloadavg()[0]:.1f} before, torch {torch.__version__}, ray {ray.__version__}; {PX} px, bf16"
    )
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the bare loop has it
    with tempfile.TemporaryDirectory(prefix="hp-") as scratch:
        table(
            "Augmentation of 64 tiles, one thread: milliseconds, and its share of a step",
            ["", "ms", *names],
            augmentation_rows(),
        )
        table("A batch of 64 in parts, one thread: milliseconds a step", ["accumulate", "small_cnn", "resnet18"], parts_rows())
        heads = ["tiles/s", "1 process, 2 threads", "2 processes, nothing exchanged", "torch's DDP", "ours, fp32", "ours, bf16"]
        table("Two processes over gloo, batch 64 in all", [*heads, "bf16 / 1 process"], exchange_rows(scratch))
        connect_ray()
        heads = ["tiles/s", "bare loop", "Ray Train, 1 worker", "ratio", "with full", "2 workers, full"]
        table("A run under Ray Train, all cores, batch 64", heads, ray_rows(scratch))
        ray.shutdown()
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
