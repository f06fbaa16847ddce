"""Tiles out of a data set version, decoded, in plain order or shuffled in memory; knows nothing of Ray."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
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
    encoded: Sequence[bytes] = ()  # what they were decoded from; empty where that was let go


def iter_tiles(
    dataset: Dataset, split: str, input_px: int, batch_size: int, part: int = 0, num_parts: int = 1
) -> Iterator[TileBatch]:
    """Yields a split's tiles in shard order, without Ray; with ``num_parts`` only every n-th shard, from ``part`` on."""
    for key in dataset.shard_keys(split)[part::num_parts]:
        table = dataset.table(key, TILE_COLUMNS)
        for start in range(0, table.num_rows, batch_size):
            yield decode_table(table.slice(start, batch_size), input_px)


def load_tiles(dataset: Dataset, split: str, tile_ids: Iterable[str], input_px: int) -> dict[str, Tiles]:
    """Decodes the named tiles of a split, each (input_px, input_px, 3), and no others."""
    wanted, found = set(tile_ids), {}
    for table in dataset.tables(split, ["tile_id", "bytes"]):
        for tile_id, data in zip(table["tile_id"].to_pylist(), table["bytes"], strict=True):
            if tile_id in wanted:
                found[tile_id] = resize_tile(decode_tile(data.as_py()), input_px)
    return found


def decode_table(table: pa.Table, input_px: int) -> TileBatch:
    """Decodes a table with the columns tile_id, bytes and label."""
    images = table["bytes"].to_pylist()
    tiles = [resize_tile(decode_tile(data), input_px) for data in images]
    return TileBatch(table["tile_id"].to_pylist(), np.stack(tiles), table["label"].to_numpy().astype(np.int64), images)


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
