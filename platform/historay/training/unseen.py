"""A data set version that a run was not trained on, opened to judge it: refused where the run has seen what would judge it."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from historay.data.dataset import Dataset, open_dataset
from historay.data.decode import Pixels
from historay.data.duplicates import THUMBNAIL_SHAPE, DuplicatePairs, duplicate_pairs, fingerprint
from historay.data.leaks import find_leaks, summarise_leaks
from historay.data.loading import load_tiles
from historay.errors import DataError, LeakError
from historay.training.passes import Origins
from historay.training.run import RunRecord

_COLUMNS = ["tile_id", "patient", "slide", "split", "source", "pixels_sha256", "phash", "blank"]
# Splits of which the run has seen what stands in them, and those that judge it.
_SEEN, _JUDGING = ("train", "val"), ("val", "test")
_THUMBNAIL_PX = 4 * THUMBNAIL_SHAPE[0]  # to which tiles are brought before they are reduced and compared


def open_unseen(trained: Dataset, record: RunRecord, reference: str) -> Dataset:
    """Opens the version that is to judge a run.

    Raises DataError if its classes are others, and LeakError if a patient, slide or tile of the run's training stands in its
    val or test, or one of the run's validation in its test, unless that kind of leak was accepted at training.
    """
    judged = open_dataset(trained.store, reference)
    if judged.record.classes != record.classes:
        raise DataError(f"{judged.reference} has the classes {judged.record.classes}, run {record.run} {record.classes}")
    judged.refuse_leaks(record.accepted_leaks)
    tiles = pa.concat_tables([_of(trained, _SEEN), _of(judged, _JUDGING)])
    num_seen = sum(trained.record.num_tiles.get(split, 0) for split in _SEEN)
    leaks = summarise_leaks(find_leaks(tiles, _duplicates(tiles, trained, judged, num_seen)))
    if blocking := [leak for leak in leaks if leak.kind not in record.accepted_leaks]:
        found = "; ".join(f"{one.kind}: {one.num_pairs} pair(s), e.g. tiles {one.tile_a} and {one.tile_b}" for one in blocking)
        raise LeakError(
            f"run {record.run} has seen, in {trained.reference}, what would judge it in {judged.reference}: {found}. Ingest "
            "the new version with the splits given, so that what was in train stays there"
        )
    return judged


def judged_on(record: RunRecord, judged: Dataset) -> RunRecord:
    """Returns the record with the version that the figures are about, for report, bundle and gate."""
    return record.model_copy(update={"dataset": judged.reference, "dataset_digest": judged.record.digest})


def joined(first: Origins, second: Origins) -> Origins:
    """Returns the origins of the tiles of both, the second's where both know one."""
    return Origins(first.of_tile | second.of_tile, tuple(sorted({*first.sites, *second.sites})))


def _of(dataset: Dataset, splits: tuple[str, ...]) -> pa.Table:
    manifest = dataset.manifest(_COLUMNS)
    return manifest.filter(pa.array([split in splits for split in manifest["split"].to_pylist()]))


def _duplicates(tiles: pa.Table, trained: Dataset, judged: Dataset, num_seen: int) -> DuplicatePairs:
    def thumbnails(rows: NDArray[np.int64]) -> Iterable[Pixels]:
        found: dict[tuple[bool, str], Pixels] = {}
        for dataset, asked in ((trained, rows[rows < num_seen]), (judged, rows[rows >= num_seen])):
            wanted = tiles.take(asked).to_pandas().groupby("split")["tile_id"]
            for split, tile_ids in wanted:
                loaded = load_tiles(dataset, split, tile_ids, _THUMBNAIL_PX)
                found |= {(dataset is trained, tile): fingerprint(pixels).thumbnail for tile, pixels in loaded.items()}
        return [found[row < num_seen, tiles["tile_id"][int(row)].as_py()] for row in rows]

    blank = tiles["blank"].to_numpy(zero_copy_only=False)
    return duplicate_pairs(tiles["phash"].to_pylist(), tiles["pixels_sha256"].to_pylist(), blank, thumbnails)
