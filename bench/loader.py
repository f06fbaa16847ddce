"""How fast training tiles come to two workers on two cores: python bench/loader.py PCAM, about 3 minutes; or --million.

PCAM is a folder with manifest.csv, train.tar, valid.tar and test.tar. Each arm decodes its 12,000 training tiles, 96 px, once.
The arms from S3 read from versitygw, a real S3 server, on the same cores.
"""

import io
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow.parquet as pq
import ray
import ray.data
import simplejpeg
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from datasets import row, written
from pcam import unpack_pcam
from processes import free_port
from s3_server import S3_KEYS, s3_server_over

from historay.data.dataset import Dataset, open_dataset
from historay.data.decode import decode_tile
from historay.data.ingest import IngestConfig, ingest
from historay.data.loading import TILE_COLUMNS, decode_table, shuffled_batches
from historay.data.share import load_share, make_room, share_of, streamed_batches
from historay.data.synthetic import SyntheticConfig, draw_tile
from historay.ray_session import connect_ray
from historay.storage import open_store

PX, BATCH, WORKERS = 96, 64, 2


class Pass(NamedTuple):
    """One worker's pass over its share."""

    tiles: int
    seconds: float
    first_batch_s: float
    later_tiles_per_s: float = float("nan")  # of an epoch after the first
    peak_mib: float = float("nan")


def timed(batches: Iterator[Any], started: float) -> Pass:
    """Consumes batches of tiles."""
    process = psutil.Process()
    first, tiles, before, peak = 0.0, 0, process.memory_info().rss, 0
    for number, batch in enumerate(batches):
        first = first or time.perf_counter() - started
        tiles += len(batch)
        if number % 64 == 0:
            peak = max(peak, process.memory_info().rss)
    return Pass(tiles, time.perf_counter() - started, first, peak_mib=(peak - before) / 2**20)


def decode_limit(tiles: list[bytes]) -> float:
    """Tiles a second of one process that only decodes."""
    started = time.perf_counter()
    for data in tiles:
        decode_tile(data)
    return len(tiles) / (time.perf_counter() - started)


def historay_cached(reference: tuple[str, str], rank: int) -> Pass:
    """What a training worker does first, and what an epoch then costs."""
    dataset = open_dataset(open_store(reference[0]), reference[1])
    started = time.perf_counter()
    pieces = share_of(dataset, "train", rank, [1] * WORKERS)
    room = make_room(sum(piece.stop - piece.start for piece in pieces), PX, 8.0)
    assert room is not None
    loaded = load_share(dataset, pieces, room, 1)
    seconds = time.perf_counter() - started
    first = seconds + timed((tiles for tiles, _ in shuffled_batches(loaded, BATCH, 0)), time.perf_counter()).first_batch_s
    later = timed((tiles for tiles, _ in shuffled_batches(loaded, BATCH, 1)), time.perf_counter())
    return Pass(len(room), seconds, first, later.tiles / later.seconds)


def historay_streamed(reference: tuple[str, str], rank: int) -> Pass:
    """A share that is too large to be kept."""
    dataset = open_dataset(open_store(reference[0]), reference[1])
    started = time.perf_counter()
    found = streamed_batches(dataset, share_of(dataset, "train", rank, [1] * WORKERS), PX, BATCH, 0, 1)
    return timed((tiles for tiles, _ in found), started)


def in_processes(run: Callable[[tuple[str, str], int], Pass], dataset: Dataset) -> list[Pass]:
    """Runs an arm in as many fresh processes as there are workers, at once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as processes:
        reference = (dataset.store.uri, dataset.reference)
        list(processes.map(warm, [reference] * WORKERS))
        return list(processes.map(run, [reference] * WORKERS, range(WORKERS)))


def warm(reference: tuple[str, str]) -> None:
    """Imports what reading imports, about a second, and keeps the process busy until the others have started too."""
    share_of(open_dataset(open_store(reference[0]), reference[1]), "train", 0, [1] * WORKERS)
    time.sleep(1.0)


def ray_data_over_shards(dataset: Dataset) -> list[Pass]:
    """Ray Data over the same shards, split among two workers that decode what it hands them."""
    uri, keys = dataset.store.uri, dataset.shard_keys("train")

    def read(batch: Any) -> Any:
        return pq.read_table(io.BytesIO(open_store(uri).read(batch["item"][0])), columns=TILE_COLUMNS)

    @ray.remote(num_cpus=0)
    def work(shard: ray.data.DataIterator) -> Pass:
        started = time.perf_counter()
        tables = shard.iter_batches(batch_size=512, batch_format="pyarrow")
        return timed((decode_table(table, PX).labels for table in tables), started)

    found = ray.data.from_items(keys, override_num_blocks=len(keys)).map_batches(read, batch_size=1)
    return ray.get([work.remote(shard) for shard in found.streaming_split(WORKERS, equal=True)])


def read_images(folder: Path) -> list[Pass]:
    """ray.data.read_images on the same tiles as files."""
    started = time.perf_counter()
    found = ray.data.read_images(str(folder), mode="RGB").iter_batches(batch_size=BATCH, batch_format="numpy")
    return [timed((batch["image"] for batch in found), started)]


def image_folder(folder: Path) -> list[Pass]:
    """torch's DataLoader over torchvision's ImageFolder, two workers."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    loader = torch.utils.data.DataLoader(ImageFolder(str(folder), PILToTensor()), BATCH, shuffle=True, num_workers=WORKERS)
    started = time.perf_counter()
    return [timed((tiles for tiles, _ in loader), started)]


def in_bucket(dataset: Dataset) -> Dataset:
    """Copies a store's objects into the bucket of a server that runs."""
    bucket = open_store("s3://tiles/store")
    for found in dataset.store.list():
        bucket.write(found.key, dataset.store.read(found.key))
    return open_dataset(bucket, dataset.reference)


def million(store: str) -> Dataset:
    """A data set of a million rows, which are 500 drawn tiles again and again."""
    drawn = [draw_tile(SyntheticConfig(out="unused"), number)[1] for number in range(500)]
    images = [simplejpeg.encode_jpeg(tile, quality=85, colorspace="RGB") for tile in drawn]
    rows = [row(number, data, tile, "p", "train") for number, (tile, data) in enumerate(zip(drawn, images, strict=True))]
    return written(open_store(store), ({**rows[n % 500], "tile_id": f"{n:016d}", "label": n % 2} for n in range(1_000_000)))


def line(what: str, passes: list[Pass], limit: float) -> None:
    """Prints an arm: all workers' tiles over the time of the slowest."""
    rate = sum(one.tiles for one in passes) / max(one.seconds for one in passes)
    first, later = max(one.first_batch_s for one in passes), sum(one.later_tiles_per_s for one in passes)
    cells = [f"{rate:,.0f}", f"{rate / limit / WORKERS:.2f}", f"{first:.2f}", "-" if math.isnan(later) else f"{later:,.0f}"]
    print("|", " | ".join([what, *cells]), "|", flush=True)


def main(pcam: Path) -> None:
    """Measures each arm in turn and prints a table."""
    with tempfile.TemporaryDirectory(prefix="hl-") as scratch:
        unpack_pcam(pcam, Path(scratch) / "pcam")
        connect_ray()
        dataset = ingest(IngestConfig(name="pcam", source=f"{scratch}/pcam/manifest.csv", store=f"{scratch}/store"))
        tiles: list[bytes] = []
        for table in dataset.tables("train", ["tile_id", "bytes", "label_name"]):
            for tile, data, label in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
                (Path(scratch) / "files" / label).mkdir(parents=True, exist_ok=True)
                (Path(scratch) / "files" / label / f"{tile}.jpg").write_bytes(data)
                tiles.append(data)
        limit = decode_limit(tiles)
        print(f"decoding alone, one process: {limit:,.0f} tiles/s")
        print(
            "| two workers | tiles/s, first epoch | of the decode limit of two cores | first batch, s | tiles/s, later epochs |"
        )
        print("|---|---|---|---|---|")
        line("Ray Data over the shards", ray_data_over_shards(dataset), limit)
        line("ray.data.read_images over files", read_images(Path(scratch) / "files"), limit)
        ray.shutdown()
        line("DataLoader over ImageFolder", image_folder(Path(scratch) / "files"), limit)
        line("Historay, decoded once", in_processes(historay_cached, dataset), limit)
        line("Historay, decoded in each epoch", in_processes(historay_streamed, dataset), limit)
        port = free_port()
        os.environ |= {**S3_KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        with s3_server_over(Path(scratch) / "s3", port):
            there = in_bucket(dataset)
            line("Historay from S3, decoded once", in_processes(historay_cached, there), limit)
            line("Historay from S3, decoded in each epoch", in_processes(historay_streamed, there), limit)


def main_million() -> None:
    """Streams a million tiles through one worker of two, and says what memory that took."""
    with tempfile.TemporaryDirectory(prefix="hl-") as scratch:
        done = in_processes(historay_streamed, million(f"{scratch}/store"))
        rate = sum(one.tiles for one in done) / max(one.seconds for one in done)
        peak = ", ".join(f"{one.peak_mib:.0f}" for one in done)
        print(f"{sum(one.tiles for one in done):,} tiles, {rate:,.0f}/s; memory beyond the start, MiB a worker: {peak}")


if __name__ == "__main__":
    main_million() if sys.argv[1:] == ["--million"] else main(Path(sys.argv[1]))
