"""A split as a Ray Data stream that the workers of a training run share out among themselves."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray.data

from historay.data.dataset import Dataset
from historay.data.loading import TILE_COLUMNS, Labels, TileBatch, Tiles, decode_table
from historay.storage import open_store

_READ_ROWS = 512
_SHUFFLE_WINDOW = 32  # batches


def stream_split(dataset: Dataset, split: str) -> ray.data.Dataset:
    """Returns a split as a Ray Data set of encoded tiles, one block a shard, to be split among workers."""
    uri, keys = dataset.store.uri, dataset.shard_keys(split)

    def read(batch: Any) -> Any:
        return pq.read_table(io.BytesIO(open_store(uri).read(batch["item"][0])), columns=TILE_COLUMNS)

    return ray.data.from_items(keys, override_num_blocks=len(keys)).map_batches(read, batch_size=1)


def load_all(shard: ray.data.DataIterator, num_tiles: int, input_px: int, num_threads: int) -> TileBatch:
    """Decodes the ``num_tiles`` of a worker's share into memory; epochs then pay for no reading and no decoding."""
    tile_ids: list[str] = []
    # Filled in place: joining decoded parts would hold everything twice.
    tiles_BHWC = np.empty((num_tiles, input_px, input_px, 3), np.uint8)
    labels = np.empty(num_tiles, np.int64)
    with ThreadPoolExecutor(num_threads) as threads:
        for table in shard.iter_batches(batch_size=_READ_ROWS, batch_format="pyarrow"):
            part, start = decode_table(table, input_px, threads), len(tile_ids)
            tile_ids += part.tile_ids
            tiles_BHWC[start : len(tile_ids)] = part.tiles_BHWC
            labels[start : len(tile_ids)] = part.labels
    assert len(tile_ids) == num_tiles, (len(tile_ids), num_tiles)
    return TileBatch(tile_ids, tiles_BHWC, labels)


def streamed_batches(
    shard: ray.data.DataIterator, input_px: int, batch_size: int, seed: int, num_threads: int
) -> Iterator[tuple[Tiles, Labels]]:
    """Yields the whole batches of a share too large for memory, shuffled within a window of 32 batches."""
    with ThreadPoolExecutor(num_threads) as threads:
        for table in shard.iter_batches(
            batch_size=batch_size,
            batch_format="pyarrow",
            drop_last=True,
            local_shuffle_buffer_size=_SHUFFLE_WINDOW * batch_size,
            local_shuffle_seed=seed,
        ):
            batch = decode_table(table, input_px, threads)
            yield batch.tiles_BHWC, batch.labels
