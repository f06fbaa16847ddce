"""A worker's share of a split, with every row in exactly one share: decoded once, or read and decoded anew in each epoch.

Each worker reads the shards itself: through Ray Data's iterator the same tiles came more slowly (docs/benchmarks.md), and each
training run started several processes more.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from historay.data.dataset import Dataset
from historay.data.decode import decode_tile_into
from historay.data.loading import TILE_COLUMNS, Labels, TileBatch, Tiles, one_ahead

_SHUFFLE_WINDOW = 32  # batches
_GIB = 2**30


class Piece(NamedTuple):
    """Rows of one shard."""

    key: str
    start: int
    stop: int


def batch_parts(batch_size: int, num_workers: int) -> list[int]:
    """Returns how many tiles of each batch fall to each worker: equal parts, or such as differ by one."""
    bounds = [batch_size * rank // num_workers for rank in range(num_workers + 1)]
    return [stop - start for start, stop in pairwise(bounds)]


def share_of(dataset: Dataset, split: str, rank: int, parts: Sequence[int]) -> list[Piece]:
    """Returns the rows of worker ``rank``, side by side in order: of all rows as large a part as ``parts`` has of its sum.

    Each share lasts for as many batches of its part as all rows hold batches of the sum, or for one more.
    """
    shards = dataset.manifest(["shard"])["shard"].value_counts().to_pylist()
    num_rows = {found["values"]: found["counts"] for found in shards}
    keys = dataset.shard_keys(split)
    num_tiles, whole = dataset.record.num_tiles[split], sum(parts)
    first, last = (num_tiles * sum(parts[:end]) // whole for end in (rank, rank + 1))
    passed, pieces = 0, []
    for key in keys:
        rows = num_rows[key.rsplit("/", 1)[-1].removesuffix(".parquet")]
        start, stop = max(first - passed, 0), min(last - passed, rows)
        if start < stop:
            pieces.append(Piece(key, start, stop))
        passed += rows
    return pieces


def make_room(num_tiles: int, input_px: int, memory_gib: float) -> Tiles | None:
    """Returns where a share's decoded tiles are kept, filled with nothing yet, or None if it must be decoded in each epoch.

    That is memory up to ``memory_gib``; beyond it a file without a name on local disk (TMPDIR), which ends with the worker,
    unless it would take more than half of what is free there; with 0 neither.
    """
    shape = (num_tiles, input_px, input_px, 3)
    num_bytes = num_tiles * input_px**2 * 3
    if num_bytes <= memory_gib * _GIB:
        return np.empty(shape, np.uint8)
    if memory_gib and num_bytes <= shutil.disk_usage(tempfile.gettempdir()).free / 2:
        with tempfile.TemporaryFile() as file:
            return np.memmap(file, np.uint8, "w+", shape=shape)
    return None


def load_share(dataset: Dataset, pieces: list[Piece], tiles_BHWC: Tiles, num_threads: int) -> TileBatch:
    """Decodes a share into ``tiles_BHWC``, which holds it exactly; epochs then pay for no reading and no decoding."""
    tile_ids: list[str] = []
    labels = np.empty(len(tiles_BHWC), np.int64)
    with ThreadPoolExecutor(num_threads) as threads:
        for table in _tables(dataset, pieces):
            start, stop = len(tile_ids), len(tile_ids) + table.num_rows
            _decode_into(tiles_BHWC[start:stop], table["bytes"].to_pylist(), threads, num_threads)
            labels[start:stop] = table["label"].to_numpy()
            tile_ids += table["tile_id"].to_pylist()
    assert len(tile_ids) == len(tiles_BHWC), (len(tile_ids), len(tiles_BHWC))
    return TileBatch(tile_ids, tiles_BHWC, labels)


def streamed_batches(
    dataset: Dataset, pieces: list[Piece], input_px: int, batch_size: int, seed: int, num_threads: int
) -> Iterator[tuple[Tiles, Labels]]:
    """Yields the whole batches of a share: shards in seeded order, rows shuffled among at least 32 batches."""
    rng = np.random.default_rng(seed)
    pieces = [pieces[number] for number in rng.permutation(len(pieces))]
    images: list[bytes] = []  # that wait for their batch
    labels: Labels = np.empty(0, np.int64)
    with ThreadPoolExecutor(num_threads) as threads:
        for number, table in enumerate(_tables(dataset, pieces), start=1):
            images += table["bytes"].to_pylist()
            labels = np.append(labels, table["label"].to_numpy())
            if number < len(pieces) and len(images) < _SHUFFLE_WINDOW * batch_size:
                continue
            order = rng.permutation(len(images))
            num_used = len(images) - len(images) % batch_size
            for start in range(0, num_used, batch_size):
                rows = order[start : start + batch_size]
                tiles_BHWC = np.empty((batch_size, input_px, input_px, 3), np.uint8)
                _decode_into(tiles_BHWC, [images[row] for row in rows], threads, num_threads)
                yield tiles_BHWC, labels[rows]
            images, labels = [images[row] for row in order[num_used:]], labels[order[num_used:]]


def _tables(dataset: Dataset, pieces: list[Piece]) -> Iterator[pa.Table]:
    """Reads each piece while the one before is worked on."""

    def read(piece: Piece) -> pa.Table:
        return dataset.table(piece.key, TILE_COLUMNS).slice(piece.start, piece.stop - piece.start)

    return one_ahead(map(read, pieces))


def _decode_into(tiles_BHWC: Tiles, images: list[bytes], threads: ThreadPoolExecutor, num_threads: int) -> None:
    """Decodes images into their places, in as many stretches as threads: the decoder releases the GIL."""

    def decode(first: int) -> None:
        for place in range(first, len(images), num_threads):
            decode_tile_into(images[place], tiles_BHWC[place])

    if num_threads == 1:
        decode(0)
    else:
        list(threads.map(decode, range(num_threads)))
