"""The nouns of a data set: the columns of a tile, the names of the splits, and the JSON record of one version.

A data set version lies in the store under ``datasets/<name>/<version>/``:
``manifest.parquet`` (every column but the bytes, one row per tile, sorted by tile_id, plus ``shard`` and ``row``),
``shards/<split>-00000.parquet`` (TILE_SCHEMA, shuffled once), ``leaks.parquet``, ``quarantine.parquet``, ``card.json``,
``card.html`` and, written last, ``dataset.json`` (DatasetRecord), which makes the version visible.
"""

from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

TILE_SCHEMA = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),  # 16 hex digits, from the path inside the source: no identifier
        pa.field("bytes", pa.binary(), nullable=False),  # JPEG or PNG, 8 bits, grey or RGB
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),  # index into DatasetRecord.classes
        pa.field("label_name", pa.string(), nullable=False),
        pa.field("patient", pa.string()),
        pa.field("slide", pa.string()),
        pa.field("site", pa.string()),
        pa.field("scanner", pa.string()),
        pa.field("mpp", pa.float32()),  # micrometres per pixel
        pa.field("sha256", pa.string(), nullable=False),  # of the file as it was found
        pa.field("pixels_sha256", pa.string(), nullable=False),  # of the decoded RGB pixels, row by row
        pa.field("phash", pa.binary(), nullable=False),  # perceptual hash, the same under rotation and flip
        pa.field("blank", pa.bool_(), nullable=False),  # nothing to see: left out of the near-duplicate search
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # path inside the source; may hold identifiers: never logged
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # short code, e.g. "truncated"
        pa.field("detail", pa.string(), nullable=False),
    ]
)

LEAK_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),  # a LeakKind
        pa.field("tile_a", pa.string(), nullable=False),
        pa.field("tile_b", pa.string(), nullable=False),
        pa.field("split_a", pa.string(), nullable=False),
        pa.field("split_b", pa.string(), nullable=False),
        pa.field("source_a", pa.string(), nullable=False),
        pa.field("source_b", pa.string(), nullable=False),
    ]
)

LeakKind = Literal["patient", "slide", "identical-pixels", "near-duplicate"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Leak(_Record):
    """One kind of leak between splits: how many pairs, and an example by tile id (all are in leaks.parquet)."""

    kind: LeakKind
    num_pairs: int
    splits: tuple[str, ...]
    tile_a: str
    tile_b: str


class Confound(_Record):
    """A class that stands or falls with one patient, site or scanner, so that a model may learn the origin for the class."""

    class_name: str
    column: Literal["patient", "site", "scanner"]
    message: str


class DatasetRecord(_Record):
    """The content of dataset.json: what one immutable version holds."""

    name: str
    version: str  # first 16 hex digits of digest
    digest: str  # sha256 over the sorted manifest rows, the classes and the schema's number
    classes: tuple[str, ...]
    num_tiles: dict[str, int]  # by split
    num_quarantined: int
    num_patients: int | None  # None: at least one tile has no patient, so no patient leak check can hold
    shards: dict[str, tuple[str, ...]]  # by split: keys relative to the version's folder
    split_rule: str  # how tiles were shared out, in words
    leaks: tuple[Leak, ...]
    confounds: tuple[Confound, ...]
    mpp: float | None  # None: unknown or mixed
    tile_px: tuple[int, int] | None  # (width, height); None: mixed
    source: str  # where it was ingested from
    layout: str
    seed: int
    created: str  # ISO 8601, UTC; not part of the digest
    historay: str  # version of the code
