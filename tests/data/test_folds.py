"""Folds deal out whole patients, every tile to one fold, classes evenly."""

import numpy as np
import pytest
from datasets import textures
from hypothesis import given
from hypothesis import strategies as st

from historay.data.dataset import open_dataset
from historay.data.folds import make_folds
from historay.data.loading import iter_tiles
from historay.data.splits import assign_folds
from historay.errors import DataError
from historay.storage import LocalStore


@given(st.data())
def test_no_patient_stands_in_two_folds_and_no_fold_is_empty(data: st.DataObject) -> None:
    num_folds = data.draw(st.integers(2, 5))
    num_patients = data.draw(st.integers(num_folds, 20))
    patient = np.array(
        data.draw(st.lists(st.integers(0, num_patients - 1), min_size=0, max_size=60)) + list(range(num_patients))
    )
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(patient), max_size=len(patient))))
    fold = assign_folds(labels, patient.astype(str), num_folds, seed=0)
    assert set(fold) == set(range(num_folds))
    assert all(len(set(fold[patient == one])) == 1 for one in set(patient))


def test_classes_are_shared_out_evenly() -> None:
    patient = np.repeat(np.arange(100), 10)
    labels = (patient % 4 == 0).astype(int)
    fold = assign_folds(labels, patient.astype(str), 5, seed=1)
    shares = [labels[fold == one].mean() for one in range(5)]
    assert max(shares) - min(shares) < 0.02
    assert max(np.bincount(fold)) - min(np.bincount(fold)) <= 20


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 group\(s\) of tiles cannot fill 3 folds"):
        assign_folds(np.array([0, 1]), np.array(["a", "b"]), 3, seed=0)


def test_each_tile_of_train_and_val_is_held_out_once_and_the_test_never_touched(store: LocalStore) -> None:
    dataset = textures(store)
    folds = [open_dataset(store, reference) for reference in make_folds(dataset, 3, seed=0)]
    held, patients = [], {}
    for number, fold in enumerate(folds):
        manifest = fold.manifest(["tile_id", "patient", "split"]).to_pandas()
        assert set(manifest["split"]) == {"train", "val"}
        assert len(manifest) == 28
        held += manifest.loc[manifest["split"] == "val", "tile_id"].tolist()
        patients |= dict.fromkeys(manifest.loc[manifest["split"] == "val", "patient"], number)
        read = [batch.tile_ids for batch in iter_tiles(fold, "val", 96, 8)]
        assert sorted(tile for batch in read for tile in batch) == sorted(manifest.loc[manifest["split"] == "val", "tile_id"])
        assert fold.record.leaks == ()
        assert f"fold{number + 1}of3" in fold.record.split_rule
    assert len(held) == len(set(held)) == 28
    assert patients["p0"] == patients["p1"], "they share a tile"
    assert "p7" not in patients


def test_folds_that_exist_are_left_as_they_are(store: LocalStore) -> None:
    dataset = textures(store)
    references = make_folds(dataset, 3, seed=0)
    before = {item.key: item.size for item in store.list()}
    assert make_folds(dataset, 3, seed=0) == references
    assert {item.key: item.size for item in store.list()} == before
