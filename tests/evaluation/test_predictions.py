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


@pytest.mark.parametrize("patients", [None, np.array(["p1", "p1", "p2"])])
def test_predictions_come_back_from_parquet_bit_by_bit(patients: Any) -> None:
    before = made(patients=patients)
    after = Predictions.from_parquet(before.to_parquet())
    for name in ("tile_ids", "labels", "probabilities", "patients", "classes"):
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
