"""The first pass of an ingest: one chunk of a listing, read, checked, fingerprinted and staged as one Parquet file."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from historay.data.decode import Limits, encode_png, verify_tile
from historay.data.duplicates import fingerprint
from historay.data.layouts import Layout, Listing, open_hdf5
from historay.data.schema import QUARANTINE_SCHEMA, TILE_SCHEMA
from historay.errors import BadImage, NotFound, TooLarge, Unreadable
from historay.storage import Store, open_store

Row = dict[str, Any]

_TILES_PER_CHUNK = 512
_QUARANTINE_KEY = b"historay.quarantine"

# What a chunk knows of a tile: all but its split, and what the duplicate search confirms on.
STAGED_SCHEMA = pa.schema(
    [field for field in TILE_SCHEMA if field.name != "split"]
    + [pa.field("split", pa.string()), pa.field("num_bytes", pa.int64(), nullable=False), pa.field("thumbnail", pa.binary())]
)


class Chunk(NamedTuple):
    """Some rows of a listing, and all that a worker needs to read them."""

    number: int
    source: str
    layout: Layout
    rows: pd.DataFrame
    labels: dict[str, int]
    mpp: float | None
    limits: Limits


def make_chunks(listing: Listing, mpp: float | None, limits: Limits) -> list[Chunk]:
    """Cuts a listing into chunks of 512 rows."""
    labels = {name: number for number, name in enumerate(listing.classes)}
    starts = range(0, len(listing.rows), _TILES_PER_CHUNK)
    parts = [listing.rows.iloc[start : start + _TILES_PER_CHUNK] for start in starts]
    uri, layout = listing.store.uri, listing.layout
    return [Chunk(number, uri, layout, rows, labels, mpp, limits) for number, rows in enumerate(parts)]


def stage_chunk(chunk: Chunk, store: Store, key: str) -> None:
    """Reads and checks a chunk and writes it whole under ``key``; bad images are kept apart, with the reason.

    Raises StorageError if the source as a whole cannot be read, since no image is to blame for that.
    """
    tiles, quarantine = [], []
    for row, data in _read(chunk):
        try:
            if isinstance(data, Exception):
                raise data
            tiles.append(_tile(row, data, chunk))
        except BadImage as error:
            quarantine.append({"source": row["path"], "reason": error.reason, "detail": str(error).partition(": ")[2]})
    table = pa.Table.from_pylist(tiles, schema=STAGED_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_QUARANTINE_KEY: json.dumps(quarantine)}), sink, compression="none")
    store.write(key, sink.getvalue().to_pybytes())


def read_staged(store: Store, key: str, columns: list[str]) -> pa.Table:
    """Reads some columns of a staged chunk, without the others; NotFound where it is gone."""
    filesystem, root = store.arrow()
    try:
        return pq.read_table(f"{root}/{key}", filesystem=filesystem, columns=columns)
    except FileNotFoundError:
        raise NotFound(f"{store.locate(key)}: the staged chunk is gone") from None


def read_quarantine(store: Store, key: str) -> pa.Table:
    """Reads what a staged chunk put into quarantine."""
    filesystem, root = store.arrow()
    try:
        metadata = pq.read_schema(f"{root}/{key}", filesystem=filesystem).metadata
    except FileNotFoundError:
        raise NotFound(f"{store.locate(key)}: the staged chunk is gone") from None
    return pa.Table.from_pylist(json.loads(metadata[_QUARANTINE_KEY]), schema=QUARANTINE_SCHEMA)


def _read(chunk: Chunk) -> Iterator[tuple[Row, bytes | BadImage]]:
    """Yields each row with its bytes, or with why there are none."""
    store = open_store(chunk.source)
    rows: list[Row] = [{str(column): value for column, value in row.items()} for row in chunk.rows.to_dict("records")]
    if chunk.layout == "pcam":
        yield from _read_hdf5(store, rows)
        return
    for row in rows:
        if row["label_name"] is None:
            yield row, BadImage("misnamed: its name does not tell its class as the layout's names do")
            continue
        try:
            yield row, store.read(str(row["path"]), at_most=chunk.limits.max_bytes)
        except NotFound:
            yield row, BadImage("missing: the listing names it, the source does not have it")
        except TooLarge as error:
            yield row, BadImage(f"too-many-bytes: {str(error).rpartition(': ')[2]}")
        except Unreadable as error:
            yield row, BadImage(f"unreadable: {type(error.__cause__).__name__}")


def _read_hdf5(store: Store, rows: list[Row]) -> Iterator[tuple[Row, bytes]]:
    """Reads the tiles ``<file>#<row>`` as PNG, with one slice per file: neighbours in the listing are neighbours in it."""
    by_file: dict[str, list[Row]] = {}
    for row in rows:
        by_file.setdefault(str(row["path"]).partition("#")[0], []).append(row)
    for name, of_file in by_file.items():
        numbers = [int(str(row["path"]).partition("#")[2]) for row in of_file]
        with open_hdf5(store, name) as file:
            pixels = file["x"][min(numbers) : max(numbers) + 1]
        for row, number in zip(of_file, numbers, strict=True):
            yield row, encode_png(pixels[number - min(numbers)])


def _tile(row: Row, data: bytes, chunk: Chunk) -> Row:
    tile = verify_tile(data, chunk.limits)
    found = fingerprint(tile.pixels_HWC)
    return {
        "tile_id": hashlib.sha256(str(row["path"]).encode()).hexdigest()[:16],
        "bytes": tile.bytes,
        "width": tile.width,
        "height": tile.height,
        "label": chunk.labels[str(row["label_name"])],
        "label_name": row["label_name"],
        "patient": row["patient"],
        "slide": row["slide"],
        "site": row["site"],
        "scanner": row["scanner"],
        "mpp": row["mpp"] if row["mpp"] is not None else chunk.mpp,
        "sha256": tile.sha256,
        "pixels_sha256": tile.pixels_sha256,
        "phash": found.phash,
        "blank": found.blank,
        "split": row["split"],
        "source": row["path"],
        "num_bytes": len(tile.bytes),
        "thumbnail": found.thumbnail.tobytes(),
    }
