"""Ingest: from images at a source to one immutable data set version, with Ray Data.

Two passes. The first reads, checks and fingerprints every image, in chunks that are staged in the store, so that a killed
ingest goes on where it stopped. Then the driver, which holds columns and never images, finds duplicates, splits and
leaks, and the second pass gathers the staged tiles into shuffled shards. dataset.json, written last, makes it visible.
"""

import hashlib
import io
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from pydantic import model_validator

from historay.config import Config, Name
from historay.data.card import write_card
from historay.data.chunks import STAGED_SCHEMA, Chunk, make_chunks, read_quarantine, read_staged, stage_chunk
from historay.data.dataset import Dataset, dataset_prefix, open_dataset
from historay.data.decode import Limits
from historay.data.duplicates import THUMBNAIL_SHAPE, DuplicatePairs, duplicate_pairs
from historay.data.layouts import Layout, Listing, list_source
from historay.data.leaks import find_confounds, find_leaks, summarise_leaks
from historay.data.schema import SPLITS, TILE_SCHEMA, DatasetRecord
from historay.data.shards import place_in_shards, write_shard
from historay.data.splits import SplitFractions, assign_splits, tile_groups
from historay.errors import DataError, NotFound
from historay.log import log_event
from historay.ray_session import connect_ray, run_pipeline
from historay.storage import Store, open_store

_METADATA = [name for name in STAGED_SCHEMA.names if name not in {"bytes", "thumbnail"}]
# What a version's name is made of: everything that can change what is learnt from it, and nothing about where it was found.
_DIGESTED = ["tile_id", "sha256", "label_name", "patient", "slide", "site", "scanner", "mpp", "split"]
_SCHEMA_NUMBER = 2
_ATTEMPTS = 3


class Gathered(NamedTuple):
    """What the first pass leaves for the rest."""

    store: Store
    keys: list[str]  # of the staged chunks
    tiles: pa.Table  # their columns without images, sorted by tile_id
    quarantine: pa.Table
    listing: Listing


class IngestConfig(Config):
    """Reads images into an immutable data set version: checked, split by patient, searched for leaks."""

    name: Name
    """What the data set is called in the store."""
    source: str
    """Folder, manifest file or folder of HDF5 files; a local path or s3://bucket/prefix."""
    layout: Layout = "manifest"
    """How the images lie there; docs/data-format.md describes each."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    val_fraction: float = 0.15
    """Share of the tiles for validation, where the source gives no split."""
    test_fraction: float = 0.15
    """Share of the tiles for the test, where the source gives no split."""
    seed: int = 0
    """Decides the split and the order of the tiles in the shards."""
    mpp: float | None = None
    """Micrometres per pixel of the images for which the source does not say it."""
    max_bytes: int = 64 * 2**20
    """Larger files go to quarantine, undecoded."""
    max_pixels: int = 25_000_000
    """Images whose header claims more pixels go to quarantine, undecoded."""

    @model_validator(mode="after")
    def _check_fractions(self) -> "IngestConfig":
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction={self.val_fraction} and test_fraction={self.test_fraction}: "
                "both must be at least 0 and their sum below 1"
            )
        return self


def ingest(config: IngestConfig) -> Dataset:
    """Ingests a source and returns the version, which is the same for the same input; an existing one is left as it is."""
    store, listing = open_store(config.store), list_source(config.source, config.layout)
    limits = Limits(max_bytes=config.max_bytes, max_pixels=config.max_pixels)
    chunks = make_chunks(listing, config.mpp, limits)
    staging = f"datasets/{config.name}/.staging-{_listing_digest(listing, config)}"
    log_event("ingest", images=len(listing.rows), classes=",".join(listing.classes), chunks=len(chunks))

    connect_ray()
    for attempt in range(_ATTEMPTS):
        try:
            return _ingest_chunks(config, store, staging, chunks, listing)
        except NotFound as error:
            if attempt == _ATTEMPTS - 1:
                raise
            # An ingest of the same source beside this one has finished and cleared what both had staged.
            log_event("WARNING ingest starts again", because=error)
    raise AssertionError("the last attempt returns or raises")


def _ingest_chunks(config: IngestConfig, store: Store, staging: str, chunks: list[Chunk], listing: Listing) -> Dataset:
    """Stages, splits, publishes and clears what was staged."""
    keys = {chunk.number: f"{staging}/{chunk.number:06d}.parquet" for chunk in chunks}
    _stage_chunks(store, staging, chunks, keys)
    staged = list(keys.values())
    tiles = pa.concat_tables([read_staged(store, key, _METADATA) for key in staged]).sort_by("tile_id")
    quarantine = pa.concat_tables([read_quarantine(store, key) for key in staged]).sort_by("source")
    if not tiles.num_rows:  # else the same command would give the same verdict after the images are mended
        _clear(store, staged)
    _refuse_hopeless(tiles, quarantine, config.source)

    gathered = Gathered(store, staged, tiles, quarantine, listing)
    duplicates = _find_duplicates(gathered)
    dataset = _publish(gathered._replace(tiles=_with_split(tiles, duplicates, config)), duplicates, config)
    _clear(store, staged)
    return dataset


def _clear(store: Store, staged: list[str]) -> None:
    for key in staged:
        store.delete(key)


def _stage_chunks(store: Store, staging: str, chunks: list[Chunk], keys: dict[int, str]) -> None:
    """First pass: every chunk that is not staged yet, in parallel; what a killed ingest has staged is kept."""
    done = {item.key for item in store.list(staging) if not _worth_another_try(store, item.key)}
    missing = [chunk for chunk in chunks if keys[chunk.number] not in done]
    if len(missing) < len(chunks):
        log_event("ingest resumed", chunks_done=len(chunks) - len(missing))
    if missing:
        uri = store.uri
        chunk_refs = {chunk.number: ray.put(chunk) for chunk in missing}

        def stage(row: dict[str, int]) -> dict[str, int]:
            stage_chunk(ray.get(chunk_refs[row["item"]]), open_store(uri), keys[row["item"]])
            return row

        rows = ray.data.from_items(list(chunk_refs), override_num_blocks=len(missing)).map(stage)
        for _ in run_pipeline(rows, "ingest: chunks read and checked", len(missing)):
            pass


def _worth_another_try(store: Store, key: str) -> bool:
    """Tells whether an image of the chunk could not be got at, which may have been mended since."""
    return not {"missing", "unreadable"}.isdisjoint(read_quarantine(store, key)["reason"].to_pylist())


def _refuse_hopeless(tiles: pa.Table, quarantine: pa.Table, source: str) -> None:
    reasons = Counter(quarantine["reason"].to_pylist())
    found = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    if not tiles.num_rows:
        raise DataError(f"{source}: none of the {quarantine.num_rows} images can be used: {found}")
    if reasons:
        log_event("ingest quarantine", tiles_good=tiles.num_rows, tiles_bad=quarantine.num_rows, reasons=found)
    if len(set(tiles["tile_id"].to_pylist())) < tiles.num_rows:
        raise DataError(f"{source}: two paths have the same 16-digit tile_id, which chance hardly makes; rename one of them")
    if without := tiles["patient"].null_count:
        log_event("WARNING patients unknown", tiles=without, of=tiles.num_rows, means="no leak check by patient can hold")


def _find_duplicates(gathered: Gathered) -> DuplicatePairs:
    tiles = gathered.tiles

    def load_thumbnails(rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        asked = tiles["tile_id"].take(pa.array(rows)).to_pylist()
        wanted, found = set(asked), {}
        for key in gathered.keys:
            part = read_staged(gathered.store, key, ["tile_id", "thumbnail"]).to_pydict()
            found.update({tile: data for tile, data in zip(*part.values(), strict=True) if tile in wanted})
        return [np.frombuffer(found[tile], np.uint8).reshape(THUMBNAIL_SHAPE) for tile in asked]

    hashes, digests, blank = tiles["phash"].to_pylist(), tiles["pixels_sha256"].to_pylist(), tiles["blank"].to_numpy()
    duplicates = duplicate_pairs(hashes, digests, blank, load_thumbnails)
    log_event("ingest duplicates", identical=int(duplicates.identical.sum()), near=int((~duplicates.identical).sum()))
    return duplicates


def _with_split(tiles: pa.Table, duplicates: DuplicatePairs, config: IngestConfig) -> pa.Table:
    """Keeps the given split, or makes one by group."""
    if not tiles["split"].null_count:
        return tiles
    columns = tiles.select(["tile_id", "label", "patient", "slide"]).to_pydict()
    groups = tile_groups(columns["tile_id"], columns["patient"], columns["slide"], duplicates.pairs)
    fractions = SplitFractions(val=config.val_fraction, test=config.test_fraction)
    split = assign_splits(np.array(columns["label"]), groups, fractions, config.seed)
    return tiles.set_column(tiles.column_names.index("split"), "split", pa.array(split.tolist(), pa.string()))


def _publish(gathered: Gathered, duplicates: DuplicatePairs, config: IngestConfig) -> Dataset:
    """Writes everything of the version, dataset.json last; returns the version that exists already, if it does."""
    store, digest = gathered.store, _digest(gathered.tiles, gathered.listing.classes)
    reference = f"{config.name}@{digest[:16]}"
    if store.exists(f"{dataset_prefix(config.name, digest[:16])}/dataset.json"):
        log_event("ingest unchanged", dataset=reference)
        return open_dataset(store, reference)
    manifest = place_in_shards(gathered.tiles, config.seed)
    leaks = find_leaks(manifest, duplicates)
    record = _record(manifest, leaks, gathered, config, digest)
    dataset = Dataset(store, record)
    _write_shards(gathered, manifest, dataset)
    kept = [name for name in TILE_SCHEMA.names if name != "bytes"] + ["shard", "row"]
    for name, table in {"manifest": manifest.select(kept), "leaks": leaks, "quarantine": gathered.quarantine}.items():
        store.write(f"{dataset.prefix}/{name}.parquet", _parquet(table))
    write_card(dataset, manifest, duplicates, gathered.quarantine)
    store.write(f"{dataset.prefix}/dataset.json", record.model_dump_json(indent=2).encode())
    for leak in record.leaks:
        log_event("WARNING leak", kind=leak.kind, pairs=leak.num_pairs, splits="+".join(leak.splits))
    log_event("ingest done", dataset=reference, **record.num_tiles, quarantined=record.num_quarantined)
    return dataset


def _write_shards(gathered: Gathered, manifest: pa.Table, dataset: Dataset) -> None:
    """Second pass: a shuffle that brings the tiles of each shard together, wherever they were staged."""
    places = ray.put(manifest.select(["tile_id", "split", "shard", "row"]).to_pandas().set_index("tile_id"))
    columns = [name for name in TILE_SCHEMA.names if name != "split"]
    uri, prefix = gathered.store.uri, dataset.prefix

    def place(keys: Any) -> Any:
        return read_staged(open_store(uri), keys["item"][0], columns).to_pandas().join(ray.get(places), on="tile_id")

    def write(tiles: Any) -> Any:
        return write_shard(tiles, open_store(uri), prefix)

    # Not ray.data.read_parquet: its listing of files alone takes 20 s, and we know the files.
    staged = ray.data.from_items(gathered.keys, override_num_blocks=len(gathered.keys))
    placed = staged.map_batches(place, batch_size=1)
    num_shards = sum(len(names) for names in dataset.record.shards.values())
    shards = placed.groupby("shard", num_partitions=num_shards).map_groups(write, batch_format="pandas")
    for _ in run_pipeline(shards, "ingest: shards written", num_shards):
        pass


def _record(manifest: pa.Table, leaks: pa.Table, gathered: Gathered, config: IngestConfig, digest: str) -> DatasetRecord:
    frame = manifest.select(["split", "patient", "mpp", "width", "height", "shard"]).to_pandas()
    shards = frame.groupby("split")["shard"].unique()
    sizes, mpps = frame[["width", "height"]].drop_duplicates(), frame["mpp"].unique()
    return DatasetRecord(
        name=config.name,
        version=digest[:16],
        digest=digest,
        classes=gathered.listing.classes,
        num_tiles={split: int((frame["split"] == split).sum()) for split in SPLITS},
        num_quarantined=gathered.quarantine.num_rows,
        num_patients=None if frame["patient"].isna().any() else frame["patient"].nunique(),
        shards={split: tuple(f"shards/{name}.parquet" for name in sorted(shards.get(split, []))) for split in SPLITS},
        split_rule=_split_rule(gathered.listing, config),
        leaks=summarise_leaks(leaks),
        confounds=find_confounds(manifest),
        mpp=round(float(mpps[0]), 6) if len(mpps) == 1 and not np.isnan(mpps[0]) else None,
        tile_px=(int(sizes.iloc[0, 0]), int(sizes.iloc[0, 1])) if len(sizes) == 1 else None,
        source=config.source,
        layout=config.layout,
        seed=config.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        historay=version("historay"),
    )


def _split_rule(listing: Listing, config: IngestConfig) -> str:
    if listing.rows["split"].notna().any():
        return "as given by the source, and checked"
    return f"whole patients (else slides, else duplicates) at random, each class in proportion, seed {config.seed}"


def _digest(tiles: pa.Table, classes: tuple[str, ...]) -> str:
    rows = hashlib.sha256(f"{_SCHEMA_NUMBER}:{classes}".encode())
    for column in _DIGESTED:
        rows.update(repr(tiles[column].to_pylist()).encode())
    return rows.hexdigest()


def _listing_digest(listing: Listing, config: IngestConfig) -> str:
    """Names what is staged by all that decides it, which the split does not: another one goes on with the same chunks."""
    text = listing.rows.to_csv() + config.model_dump_json(exclude={"store", "seed", "val_fraction", "test_fraction"})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
