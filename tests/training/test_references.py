"""What serving compares its input with comes from the validation split alone, tile by tile in the predictions' order."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from images import encoded
from tissue import Tiles, tissue

from historay.data.dataset import Dataset
from historay.data.schema import DatasetRecord
from historay.evaluation.predictions import Predictions
from historay.evaluation.tile_statistics import tile_statistics
from historay.storage import LocalStore
from historay.training.references import fit_references, read_statistics

TILES = tissue(1, 40, px=48)
IDS = np.array([f"{7919 * number % 1000:03d}" for number in range(40)])


def stored(store: LocalStore, tiles: Tiles) -> Dataset:
    """Validation in two shards, whose order is not that of the tile ids."""
    record = DatasetRecord(
        name="small", version="0" * 16, digest="0" * 64, classes=("a", "b"), num_tiles={"val": len(tiles)}, num_quarantined=0,
        num_patients=None, shards={"val": ("shards/val-0.parquet", "shards/val-1.parquet")}, leaks=(), confounds=(),
        split_rule="a test", mpp=0.5, tile_px=(48, 48), source="-", layout="folder", seed=0,
        created="2026-01-01T00:00:00+00:00", historay="0",
    )  # fmt: skip
    dataset = Dataset(store, record)
    for shard, rows in enumerate(np.array_split(np.arange(len(tiles)), 2)):
        images = [encoded(tiles[row], "PNG") for row in rows]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"tile_id": IDS[rows], "bytes": images, "label": rows % 2}), buffer)
        store.write(f"{dataset.prefix}/shards/val-{shard}.parquet", buffer.getvalue())
    return dataset


def predictions(num: int) -> Predictions:
    positive = np.linspace(0, 1, num)
    both = np.column_stack([1 - positive, positive])
    return Predictions(np.sort(IDS[:num]), np.arange(num) % 2, both, None, ("a", "b"))


def test_statistics_stand_in_the_order_of_the_tile_ids(store: LocalStore) -> None:
    found = read_statistics(stored(store, TILES), "val", 48)
    for one, expected in zip(found, tile_statistics(TILES[np.argsort(IDS)]), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)


def test_gate_and_reference_are_fitted_to_all_of_validation(store: LocalStore) -> None:
    features = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    references = fit_references(stored(store, TILES), predictions(40), features, 48, seed=0)
    assert references.gate is not None
    assert references.space is not None
    assert references.gate.num_tiles == 40
    statistics = tile_statistics(TILES[np.argsort(IDS)])
    assert not any(references.gate.judge(statistics, features, references.space))
    assert references.drift.quantities[:2] == ("probability of a", "probability of b")
    assert all(sum(counts) == 40 for counts in references.drift.counts)


def test_too_few_tiles_make_no_gate_and_evaluation_goes_on(store: LocalStore) -> None:
    references = fit_references(stored(store, TILES[:6]), predictions(6), np.zeros((6, 16), np.float32), 48, seed=0)
    assert (references.gate, references.space) == (None, None)
    assert all(sum(counts) == 6 for counts in references.drift.counts)
