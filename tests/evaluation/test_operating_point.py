"""The threshold is chosen on validation and does there what was asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from historay.errors import DataError
from historay.evaluation.operating_point import OperatingPoint, choose_threshold, decide

Binary = tuple[NDArray[np.bool_], NDArray[np.float64]]


@st.composite
def binary(draw: st.DrawFn) -> Binary:
    """Labels of both classes, with probabilities that often tie."""
    num = draw(st.integers(2, 40))
    positive = np.array(draw(st.lists(st.booleans(), min_size=num, max_size=num)))
    positive[:2] = [True, False]
    values = st.one_of(st.integers(0, 8).map(lambda eighths: eighths / 8), st.floats(0, 1))
    return positive, np.array(draw(st.lists(values, min_size=num, max_size=num)))


@given(binary(), st.floats(0.01, 1.0))
def test_threshold_keeps_the_requested_sensitivity_on_validation(tiles: Binary, target: float) -> None:
    positive, probability = tiles
    threshold = choose_threshold(positive, probability, "sensitivity", target)
    assert (probability[positive] >= threshold).mean() >= target


@given(binary(), st.floats(0.01, 1.0))
def test_no_higher_threshold_would_keep_the_requested_sensitivity(tiles: Binary, target: float) -> None:
    positive, probability = tiles
    threshold = choose_threshold(positive, probability, "sensitivity", target)
    at_or_above = probability[probability >= threshold]
    for candidate in np.unique(at_or_above)[1:]:
        assert (probability[positive] >= candidate).mean() < target


@given(binary())
def test_youden_reaches_the_greatest_j_of_scikit_learns_roc_curve(tiles: Binary) -> None:
    positive, probability = tiles
    threshold = choose_threshold(positive, probability, "youden")
    false_rate, true_rate, _ = roc_curve(positive, probability, drop_intermediate=False)
    called = probability >= threshold
    assert called[positive].mean() - called[~positive].mean() == pytest.approx((true_rate - false_rate).max(), abs=1e-12)


def test_youden_takes_the_lower_of_two_equal_thresholds() -> None:
    positive, probability = np.array([True, False, True, False]), np.array([0.9, 0.7, 0.5, 0.1])
    assert choose_threshold(positive, probability, "youden") == pytest.approx(0.3)


def test_a_validation_split_of_one_class_is_refused_with_its_counts() -> None:
    with pytest.raises(DataError, match="3 positive and 0 negative"):
        choose_threshold(np.ones(3, dtype=bool), np.array([0.1, 0.2, 0.3]), "youden")


def test_a_probability_at_the_threshold_is_positive() -> None:
    point = OperatingPoint(positive_class="tumour", threshold=0.25, rule="youden")
    probability = np.array([[0.75, 0.25], [0.76, 0.24]])
    assert decide(probability, ("normal", "tumour"), point).tolist() == [1, 0]
    assert decide(probability[:, ::-1], ("tumour", "normal"), point).tolist() == [0, 1]


def test_without_an_operating_point_the_most_probable_class_wins() -> None:
    assert decide(np.array([[0.2, 0.5, 0.3]]), ("a", "b", "c"), None).tolist() == [1]
