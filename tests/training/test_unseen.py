"""A run is judged on another data set version only where it has seen nothing of what judges it."""

from typing import Any

import numpy as np
import pytest
from datasets import row, written
from images import encoded, texture
from records import RECORD

from historay.data.dataset import Dataset
from historay.errors import DataError, LeakError
from historay.storage import LocalStore
from historay.training.passes import Origins
from historay.training.unseen import joined, judged_on, open_unseen

SPLITS = {"p0": "train", "p1": "train", "p2": "val", "p3": "test"}


def tile(number: int, patient: str, split: str, pixels: np.ndarray[Any, Any] | None = None) -> dict[str, object]:
    shown = texture(number) if pixels is None else pixels
    return row(number, encoded(shown, quality=95), shown, patient, split)


def version(store: LocalStore, name: str, *more: dict[str, object], splits: dict[str, str] = SPLITS) -> Dataset:
    rows = [tile(2 * place + turn, patient, split) for place, (patient, split) in enumerate(splits.items()) for turn in (0, 1)]
    return written(store, [*rows, *more], version=name * 16)


@pytest.fixture
def trained(store: LocalStore) -> Dataset:
    return version(store, "0")


def test_a_version_with_more_patients_in_its_test_judges_a_run_of_the_former(store: LocalStore, trained: Dataset) -> None:
    larger = version(store, "1", tile(100, "p9", "test"), tile(101, "p9", "test"))
    judged = open_unseen(trained, RECORD, larger.reference)
    record = judged_on(RECORD, judged)
    assert (record.dataset, record.dataset_digest) == (larger.reference, larger.record.digest)
    assert judged.record.num_tiles["test"] == 4


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ([tile(100, "p0", "test")], "patient"),
        ([tile(100, "p2", "test")], "patient"),
        ([tile(100, "p1", "val")], "patient"),
        ([tile(100, "p9", "test", texture(0))], "identical-pixels"),
        ([tile(100, "p9", "test", np.ascontiguousarray(np.rot90(texture(0))))], "near-duplicate"),
    ],
    ids=["a training patient", "a validation patient", "a training patient in val", "a copied tile", "a turned tile"],
)
def test_what_the_run_has_seen_does_not_judge_it(
    more: list[dict[str, object]], kind: str, store: LocalStore, trained: Dataset
) -> None:
    larger = version(store, "1", *more)
    with pytest.raises(LeakError, match=f"run r has seen.*{kind}: "):
        open_unseen(trained, RECORD, larger.reference)
    accepted = RECORD.model_copy(update={"accepted_leaks": (kind, "slide")})
    assert open_unseen(trained, accepted, larger.reference).reference == larger.reference


def test_a_version_of_other_classes_judges_nothing(trained: Dataset) -> None:
    with pytest.raises(DataError, match="has the classes"):
        open_unseen(trained, RECORD.model_copy(update={"classes": ("x", "y")}), trained.reference)


def test_origins_of_both_versions_are_known_and_the_judging_one_has_the_last_word() -> None:
    first = Origins({"t": ("p", None, "north", None, None), "u": ("q", None, "south", None, None)}, ("north", "south"))
    second = Origins({"t": ("p", None, "east", None, None)}, ("east",))
    both = joined(first, second)
    assert both.of_tile == {**first.of_tile, **second.of_tile}
    assert both.sites == ("east", "north", "south")
