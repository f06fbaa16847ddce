"""The card counts what a data set holds, shows a few tiles of each class, and names no patient."""

import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import textures

from historay.data.card import write_card
from historay.data.dataset import Dataset
from historay.data.duplicates import DuplicatePairs
from historay.data.schema import QUARANTINE_SCHEMA
from historay.storage import LocalStore

# Five patients train, two validate, one tests; four tiles each.
DUPLICATES = DuplicatePairs(np.array([[0, 4], [0, 31], [1, 2], [1, 30]]), np.array([True, True, False, False]))


@pytest.fixture
def dataset(store: LocalStore) -> Dataset:
    dataset = textures(store)
    rows = dataset.manifest().to_pandas().assign(split=["train"] * 20 + ["val"] * 8 + ["test"] * 4)
    rows["patient"] = [None] + [f"Erika Muster {row // 4}" for row in range(1, 32)]
    rows["slide"] = [f"{row % 2}" for row in range(32)]
    rows["site"] = ["Leeds"] * 30 + [None] * 2
    quarantine = pa.Table.from_pylist(
        [{"source": "Erika Muster.jpg", "reason": reason, "detail": "-"} for reason in ("empty", "empty", "cmyk")],
        schema=QUARANTINE_SCHEMA,
    )
    write_card(dataset, pa.Table.from_pandas(rows, preserve_index=False), DUPLICATES, quarantine)
    return dataset


def test_tiles_patients_duplicates_and_what_was_refused_are_counted(dataset: Dataset) -> None:
    card = json.loads(dataset.store.read(f"{dataset.prefix}/card.json"))
    assert card["tiles_by_site"] == {
        "Leeds": {"train": 20, "val": 8, "test": 2},
        "unknown": {"train": 0, "val": 0, "test": 2},
    }
    assert card["patients_by_split"] == {"train": 5, "val": 2, "test": 1}
    assert card["slides_by_split"] == {"train": 11, "val": 4, "test": 2}, "each patient's are numbered anew"
    assert card["tiles_per_patient"] == {"smallest": 3, "median": 4.0, "largest": 4}
    assert card["tiles_without_patient"] == 1
    assert card["tiles_by_size"] == {"96 x 96": {"train": 20, "val": 8, "test": 4}}
    assert card["quarantine"] == {"empty": 2, "cmyk": 1}
    assert card["duplicates"] == {
        "identical_within_a_split": 1,
        "identical_across_splits": 1,
        "near_within_a_split": 1,
        "near_across_splits": 1,
    }
    assert {name: sum(counts.values()) for name, counts in card["tiles_by_class"].items()} == {"a": 16, "b": 16}


def test_the_page_shows_tiles_of_each_class_and_names_nobody(dataset: Dataset) -> None:
    page = dataset.store.read(f"{dataset.prefix}/card.html").decode()
    assert page.count("data:image/jpeg;base64,") == 16
    for name in ("card.json", "card.html"):
        assert "Erika" not in dataset.store.read(f"{dataset.prefix}/{name}").decode()
