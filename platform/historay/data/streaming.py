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


def load_all(shard: ray.data.DataIterator, input_px: int, num_threads: int) -> TileBatch:
    """Decodes everything that a worker's share of the stream holds; epochs then pay for no reading and no decoding."""
    with ThreadPoolExecutor(num_threads) as threads:
        batches = shard.iter_batches(batch_size=_READ_ROWS, batch_format="pyarrow")
        parts = [decode_table(table, input_px, threads) for table in batches]
    tile_ids = [tile for part in parts for tile in part.tile_ids]
    return TileBatch(
        tile_ids, np.concatenate([part.tiles_BHWC for part in parts]), np.concatenate([part.labels for part in parts])
    )


def streamed_batches(
    shard: ray.data.DataIterator, input_px: int, batch_size: int, num_batches: int, seed: int
) -> Iterator[tuple[Tiles, Labels]]:
    """Yields ``num_batches`` batches of a share too large for memory, shuffled within a window of 32 batches."""
    with ThreadPoolExecutor() as threads:
        batches = shard.iter_batches(
            batch_size=batch_size,
            batch_format="pyarrow",
            drop_last=True,
            local_shuffle_buffer_size=_SHUFFLE_WINDOW * batch_size,
            local_shuffle_seed=seed,
        )
        for _, table in zip(range(num_batches), batches, strict=False):
            batch = decode_table(table, input_px, threads)
            yield batch.tiles_BHWC, batch.labels
