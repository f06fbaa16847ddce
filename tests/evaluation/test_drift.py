"""The stability index is Siddiqi's, stays quiet without drift and speaks with it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from historay.evaluation.drift import DriftReference, Stability, fit_drift_reference, stability
from historay.evaluation.tile_statistics import STAIN_NAMES

NUM_STAINS = len(STAIN_NAMES)
QUANTITIES = 2 + NUM_STAINS


def served(rng: np.random.Generator, num: int, shift: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of a confident model, and stain figures moved by ``shift`` standard deviations."""
    probability = rng.beta(0.3, 0.4, num)
    return np.column_stack([1 - probability, probability]), rng.normal(shift, 1, (num, NUM_STAINS))


def looked_at(reference: DriftReference, rng: np.random.Generator, num: int, shift: float = 0.0) -> list[Stability]:
    bins = reference.bins(*served(rng, num, shift))
    return [
        stability(usual, np.bincount(bins[:, q], minlength=len(usual)), QUANTITIES) for q, usual in enumerate(reference.counts)
    ]


@pytest.fixture(scope="module")
def reference() -> DriftReference:
    return fit_drift_reference(*served(np.random.default_rng(0), 3000), ("normal", "tumour"))


def test_a_bin_holds_a_tenth_of_validation(reference: DriftReference) -> None:
    assert reference.quantities[:3] == ("probability of normal", "probability of tumour", "optical density red")
    assert {len(counts) for counts in reference.counts} == {10}
    assert all(abs(count - 300) <= 1 for counts in reference.counts for count in counts)
    probabilities, stains = served(np.random.default_rng(0), 3000)
    bins = reference.bins(probabilities, stains)
    assert [tuple(np.bincount(bins[:, q]).tolist()) for q in range(QUANTITIES)] == list(reference.counts)


def test_with_many_tiles_the_index_is_siddiqi_s() -> None:
    usual, found = np.array([30_000, 50_000, 20_000]), np.array([20_000, 60_000, 40_000])
    share, expected = found / found.sum(), usual / usual.sum()
    siddiqi = sum((one - other) * np.log(one / other) for one, other in zip(share, expected, strict=True))
    assert stability(tuple(usual.tolist()), found, 1).value == pytest.approx(siddiqi, rel=1e-3)


@pytest.mark.parametrize("num", [200, 1000, 5000])
def test_without_drift_the_index_is_what_is_expected_and_no_alert_is_raised(reference: DriftReference, num: int) -> None:
    """150 windows of tiles like those of validation; one quantity alone has a chance of 1 in 11,000 of an alert."""
    rng = np.random.default_rng(num)
    # Each time with a validation of its own, since the index's expectation is over that, too.
    found = [
        one
        for _ in range(15)
        for own in [fit_drift_reference(*served(rng, 3000), ("normal", "tumour"))]
        for _ in range(10)
        for one in looked_at(own, rng, num)
    ]
    assert np.mean([one.value for one in found]) == pytest.approx(found[0].expected, rel=0.1)
    assert sum(one.alert for one in found) <= 1


@pytest.mark.parametrize(("num", "shift"), [(200, 1.0), (1000, 0.5), (5000, 0.4)])
def test_a_shift_of_the_stain_is_told_and_the_probabilities_that_did_not_move_are_not(
    reference: DriftReference, num: int, shift: float
) -> None:
    rng = np.random.default_rng(1)
    found = [looked_at(reference, rng, num, shift) for _ in range(30)]
    assert np.mean([one.alert for row in found for one in row[2:]]) > 0.9
    assert not any(one.alert for row in found for one in row[:2])


def test_a_difference_too_small_to_matter_raises_no_alert_however_sure_it_is(reference: DriftReference) -> None:
    found = looked_at(reference, np.random.default_rng(1), 100_000, 0.2)
    assert all(one.value > 2 * one.expected for one in found[2:])
    assert not any(one.alert for one in found)


def test_few_tiles_raise_no_alert_and_an_empty_window_is_no_division_by_zero(reference: DriftReference) -> None:
    assert not any(one.alert for one in looked_at(reference, np.random.default_rng(1), 99, 5.0))
    nothing = stability(reference.counts[0], np.zeros(10, dtype=np.int64), QUANTITIES)
    assert np.isfinite(nothing.value)
    assert not nothing.alert


def test_probabilities_that_repeat_share_fewer_bins() -> None:
    steps = np.repeat([[0.1, 0.9], [0.5, 0.5], [1.0, 0.0]], 100, axis=0)
    reference = fit_drift_reference(steps, np.zeros((300, NUM_STAINS)), ("normal", "tumour"))
    assert sum(reference.counts[0]) == 300
    assert 2 <= len(reference.counts[0]) <= 4
    usual = reference.bins(steps, np.zeros((300, NUM_STAINS)))
    assert stability(reference.counts[0], np.bincount(usual[:, 0], minlength=len(reference.counts[0])), 2).value < 1e-9
    gone = reference.bins(steps, np.full((300, NUM_STAINS), -1.0))
    assert stability(reference.counts[2], np.bincount(gone[:, 2], minlength=len(reference.counts[2])), 2).alert
