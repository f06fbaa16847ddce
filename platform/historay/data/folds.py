"""Cross-validation: the tiles of train and val dealt out to folds by whole patients; the test split is never touched."""

import hashlib
import io
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from historay.data.dataset import Dataset, dataset_prefix
from historay.data.decode import decode_tile
from historay.data.duplicates import DuplicatePairs, duplicate_pairs, fingerprint
from historay.data.leaks import find_confounds, find_leaks, summarise_leaks
from historay.data.schema import SPLITS, TILE_SCHEMA, DatasetRecord
from historay.data.shards import place_in_shards, write_shard
from historay.data.splits import assign_folds, tile_groups
from historay.log import log_event


def make_folds(dataset: Dataset, num_folds: int, seed: int) -> list[str]:
    """Writes one data set version per fold, whose val split is the fold and whose train split the others, and names them.

    ``<name>-fold<k>of<K>@<version>``; versions that exist are left as they are. The tiles are held in memory: this is for
    small cohorts. Raises DataError if there are fewer groups of patients than folds.
    """
    tiles = pa.concat_tables([table for split in ("train", "val") for table in dataset.tables(split)]).sort_by("tile_id")
    duplicates = _duplicates(tiles)
    columns = tiles.select(["tile_id", "patient", "slide"]).to_pydict()
    groups = tile_groups(columns["tile_id"], columns["patient"], columns["slide"], duplicates.pairs)
    fold_N = assign_folds(np.array(tiles["label"].to_pylist()), groups, num_folds, seed)
    names = [f"fold{fold}of{num_folds}" for fold in range(1, num_folds + 1)]
    return [_write_fold(dataset, tiles, duplicates, fold_N == fold, name) for fold, name in enumerate(names)]


def _duplicates(tiles: pa.Table) -> DuplicatePairs:
    """Finds duplicates anew: of a data set only those across its own splits are kept."""
    images = tiles["bytes"]

    def thumbnails(rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        return [fingerprint(decode_tile(images[int(row)].as_py())).thumbnail for row in rows]

    return duplicate_pairs(
        tiles["phash"].to_pylist(), tiles["pixels_sha256"].to_pylist(), tiles["blank"].to_numpy(), thumbnails
    )


def _write_fold(dataset: Dataset, tiles: pa.Table, duplicates: DuplicatePairs, held_N: NDArray[np.bool_], fold: str) -> str:
    split = pa.array(np.where(held_N, "val", "train").tolist(), pa.string())
    placed = tiles.set_column(tiles.column_names.index("split"), "split", split)
    digest = hashlib.sha256(f"{dataset.record.digest}:{fold}:{held_N.tolist()}".encode()).hexdigest()
    name, store = f"{dataset.record.name}-{fold}", dataset.store
    prefix = dataset_prefix(name, digest[:16])
    if not store.exists(f"{prefix}/dataset.json"):
        sizes = pa.array([len(data) for data in tiles["bytes"].to_pylist()], pa.int64())
        manifest = place_in_shards(placed.append_column("num_bytes", sizes), dataset.record.seed)
        for _, shard in manifest.to_pandas().groupby("shard"):
            write_shard(shard, store, prefix)
        leaks = find_leaks(manifest, duplicates)
        kept = [column for column in TILE_SCHEMA.names if column != "bytes"] + ["shard", "row"]
        for file, table in {"manifest": manifest.select(kept), "leaks": leaks}.items():
            store.write(f"{prefix}/{file}.parquet", _parquet(table))
        record = _record(dataset.record, manifest, leaks, name, digest)
        store.write(f"{prefix}/dataset.json", record.model_dump_json(indent=2).encode())
        log_event("fold", dataset=f"{name}@{digest[:16]}", train=record.num_tiles["train"], val=record.num_tiles["val"])
    return f"{name}@{digest[:16]}"


def _record(whole: DatasetRecord, manifest: pa.Table, leaks: pa.Table, name: str, digest: str) -> DatasetRecord:
    frame = manifest.select(["split", "patient", "shard"]).to_pandas()
    shards = frame.groupby("split")["shard"].unique()
    changes = {
        "name": name,
        "version": digest[:16],
        "digest": digest,
        "num_tiles": {split: int((frame["split"] == split).sum()) for split in SPLITS},
        "num_quarantined": 0,
        "num_patients": None if frame["patient"].isna().any() else frame["patient"].nunique(),
        "shards": {split: tuple(f"shards/{one}.parquet" for one in sorted(shards.get(split, []))) for split in SPLITS},
        "split_rule": f"cross-validation: val is {name.rpartition('-')[2]} of the whole patients of train and val",
        "leaks": summarise_leaks(leaks),
        "confounds": find_confounds(manifest),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return whole.model_copy(update=changes)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
