"""Tiles out of a data set version, decoded, in plain order or shuffled in memory; knows nothing of Ray."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from historay.data.dataset import Dataset
from historay.data.decode import decode_tile, resize_tile

Tiles = NDArray[np.uint8]  # (N, input_px, input_px, 3)
Labels = NDArray[np.int64]

T = TypeVar("T")

TILE_COLUMNS = ["tile_id", "bytes", "label"]


class TileBatch(NamedTuple):
    """Some decoded tiles."""

    tile_ids: list[str]
    tiles_BHWC: Tiles
    labels: Labels


def iter_tiles(
    dataset: Dataset, split: str, input_px: int, batch_size: int, part: int = 0, num_parts: int = 1
) -> Iterator[TileBatch]:
    """Yields a split's tiles in shard order, without Ray; with ``num_parts`` only every n-th shard, from ``part`` on."""
    for key in dataset.shard_keys(split)[part::num_parts]:
        table = pq.read_table(io.BytesIO(dataset.store.read(key)), columns=TILE_COLUMNS)
        for start in range(0, table.num_rows, batch_size):
            yield decode_table(table.slice(start, batch_size), input_px)


def decode_table(table: pa.Table, input_px: int, threads: ThreadPoolExecutor | None = None) -> TileBatch:
    """Decodes a table with the columns tile_id, bytes and label, in threads where given: the decoder releases the GIL."""

    def decoded(data: bytes) -> Tiles:
        return resize_tile(decode_tile(data), input_px)

    images = table["bytes"].to_pylist()
    tiles = list(threads.map(decoded, images) if threads else map(decoded, images))
    return TileBatch(table["tile_id"].to_pylist(), np.stack(tiles), table["label"].to_numpy().astype(np.int64))


def shuffled_batches(tiles: TileBatch, batch_size: int, seed: int) -> Iterator[tuple[Tiles, Labels]]:
    """Yields the whole batches of tiles in memory, in an order that the seed decides; a last, smaller one is left out."""
    order = np.random.default_rng(seed).permutation(len(tiles.labels))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        yield tiles.tiles_BHWC[rows], tiles.labels[rows]


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items, while a thread already makes the next one: a device then never waits for its batch."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item
