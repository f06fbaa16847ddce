"""Predictions are checked on creation and come back from Parquet as they were."""

from typing import Any

import numpy as np
import pytest

from historay.errors import DataError
from historay.evaluation.predictions import Predictions


def made(**changes: Any) -> Predictions:
    values: dict[str, Any] = {
        "tile_ids": np.array(["0a", "0b", "0c"]),
        "labels": np.array([0, 1, 1]),
        "probabilities": np.array([[0.75, 0.25], [0.1, 0.9], [0.5, 0.5]]),
        "patients": np.array(["p1", "p1", "p2"]),
        "classes": ("normal", "tumour"),
    }
    return Predictions(**{**values, **changes})


ORIGINS = {
    "slides": np.array(["s1", "s2", "s3"]),
    "sites": np.array(["x", "unknown", "x"]),
    "mpps": np.array([0.5, 0.5, np.nan]),
}


@pytest.mark.parametrize("origins", [{"patients": None}, ORIGINS])
def test_predictions_come_back_from_parquet_bit_by_bit(origins: Any) -> None:
    before = made(**origins)
    after = Predictions.from_parquet(before.to_parquet())
    for name in ("tile_ids", "labels", "probabilities", "patients", "classes", "slides", "sites", "scanners", "mpps"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, 1])}, r"labels have the shape \(2,\)"),
        ({"probabilities": np.full((3, 3), 1 / 3)}, r"expected \(3,\) and \(3, 2\)"),
        ({"patients": np.array(["p1"])}, r"patients have the shape \(1,\)"),
        ({"labels": np.array([0, 1, 2])}, "tile 0c: label 2"),
        ({"tile_ids": np.array(["0a", "0b", "0a"])}, "1 tile ids stand twice"),
        ({"probabilities": np.array([[0.75, 0.25], [np.nan, np.nan], [0.5, 0.5]])}, "tile 0b.*diverged"),
        ({"probabilities": np.array([[0.75, 0.25], [0.1, 0.9], [0.5, 0.51]])}, "tile 0c.*1 of 3"),
        ({"probabilities": np.array([[1.5, -0.5], [0.1, 0.9], [0.5, 0.5]])}, "tile 0a"),
    ],
)
def test_what_cannot_be_predictions_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(**changes)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="no tiles"):
        made(tile_ids=np.array([]), labels=np.array([]), probabilities=np.zeros((0, 2)), patients=None)


def test_chosen_rows_keep_what_is_known_of_them() -> None:
    chosen = made(**ORIGINS).at(np.array([2, 0]))
    assert chosen.tile_ids.tolist() == ["0c", "0a"]
    assert chosen.patients is not None
    assert chosen.patients.tolist() == ["p2", "p1"]
    assert chosen.slides is not None
    assert chosen.slides.tolist() == ["s3", "s1"]
    assert chosen.scanners is None
