"""Data sets as an ingest leaves them, made without Ray."""

import hashlib
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from images import encoded, texture

from historay.data.dataset import Dataset
from historay.data.duplicates import fingerprint
from historay.data.schema import TILE_SCHEMA, DatasetRecord
from historay.data.shards import place_in_shards, write_shard
from historay.storage import Store


def row(number: int, data: bytes, pixels: np.ndarray[Any, Any], patient: str, split: str) -> dict[str, object]:
    """One tile, of class a if its number is even and b if not."""
    found = fingerprint(pixels)
    return {
        "tile_id": hashlib.sha256(str(number).encode()).hexdigest()[:16], "bytes": data, "width": pixels.shape[1],
        "height": pixels.shape[0], "label": number % 2, "label_name": "ab"[number % 2], "patient": patient,
        "slide": f"s{patient}", "site": None, "scanner": None, "mpp": 0.5, "sha256": hashlib.sha256(data).hexdigest(),
        "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(), "phash": found.phash, "blank": found.blank,
        "split": split, "source": str(number), "num_bytes": len(data),
    }  # fmt: skip


def textures(store: Store, num_patients: int = 8, tiles_each: int = 4) -> Dataset:
    """Five patients train, two validate, the others test; patient 1 has a turned copy of a tile of patient 0."""
    rows = []
    for number in range(num_patients * tiles_each):
        patient = number // tiles_each
        pixels = np.ascontiguousarray(np.rot90(texture(0))) if number == tiles_each else texture(number)
        split = ("train", "val", "test")[0 if patient < 5 else 1 if patient < 7 else 2]
        rows.append(row(number, encoded(pixels, quality=95), pixels, f"p{patient}", split))
    return written(store, rows)


def written(store: Store, rows: Iterable[dict[str, object]], version: str = "0" * 16) -> Dataset:
    """Packs rows into shards and writes manifest and record."""
    frame = pd.DataFrame(rows)
    schema = pa.schema([field for field in TILE_SCHEMA if field.name != "bytes"]).append(pa.field("num_bytes", pa.int64()))
    placed = place_in_shards(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), seed=0)
    frame = frame.assign(shard=placed["shard"].to_pandas(), row=placed["row"].to_pandas())
    names = frame.groupby("split")["shard"].unique()
    record = DatasetRecord(
        name="small", version=version, digest=version * 4, classes=("a", "b"),
        num_tiles=frame["split"].value_counts().to_dict(), num_quarantined=0, num_patients=frame["patient"].nunique(),
        shards={split: tuple(f"shards/{one}.parquet" for one in sorted(shards)) for split, shards in names.items()},
        leaks=(), confounds=(), split_rule="a test", mpp=0.5, tile_px=(96, 96), source="-", layout="folder", seed=0,
        created="2026-01-01T00:00:00+00:00", historay="0",
    )  # fmt: skip
    dataset = Dataset(store, record)
    for _, shard in frame.groupby("shard"):
        write_shard(shard, store, dataset.prefix)
    sink = io.BytesIO()
    pq.write_table(placed, sink)
    store.write(f"{dataset.prefix}/manifest.parquet", sink.getvalue())
    store.write(f"{dataset.prefix}/dataset.json", record.model_dump_json().encode())
    return dataset
