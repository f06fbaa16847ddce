"""Packs tiles into shards: shuffled once, so that training reads from front to back."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from historay.data.schema import TILE_SCHEMA
from historay.storage import Store

_SHARD_BYTES = 64 * 2**20
_MIN_SHARDS = 8  # enough for several workers to share a small split
_MIN_TILES = 64  # below this a further shard costs more than it shares


def place_in_shards(tiles: pa.Table, seed: int) -> pa.Table:
    """Adds to each tile the name of its shard, ``<split>-00000``, and its row there, in an order that the seed decides."""
    frame = tiles.select(["tile_id", "split", "num_bytes"]).to_pandas()
    frame["key"] = [hashlib.blake2b(f"{seed}:{tile}".encode(), digest_size=8).hexdigest() for tile in frame["tile_id"]]
    frame = frame.sort_values(["split", "key"])
    by_split = frame.groupby("split")
    size, num_bytes = by_split["key"].transform("size"), by_split["num_bytes"].transform("sum")
    num_shards = np.maximum(np.minimum(_MIN_SHARDS, -(-size // _MIN_TILES)), -(-num_bytes // _SHARD_BYTES))
    number = by_split.cumcount() * num_shards // size
    frame["shard"] = frame["split"] + "-" + number.astype(str).str.zfill(5)
    frame["row"] = frame.groupby("shard").cumcount()
    placed = frame.sort_index()
    shard, row = pa.array(placed["shard"], pa.string()), pa.array(placed["row"], pa.int32())
    return tiles.append_column("shard", shard).append_column("row", row)


def write_shard(tiles: pd.DataFrame, store: Store, prefix: str) -> pd.DataFrame:
    """Writes the tiles of one shard in their order, the same bytes for the same tiles; returns its name and size."""
    ordered = tiles.sort_values("row")
    name = str(ordered["shard"].iloc[0])
    sink = pa.BufferOutputStream()
    # The images are compressed already.
    pq.write_table(pa.Table.from_pandas(ordered, schema=TILE_SCHEMA, preserve_index=False), sink, compression="none")
    store.write(f"{prefix}/shards/{name}.parquet", sink.getvalue().to_pybytes())
    return pd.DataFrame({"shard": [name], "num_tiles": [len(ordered)]})
