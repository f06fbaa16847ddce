"""The bootstrap draws whole patients, and its intervals are as wide as the data deserve."""

import time

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from historay.evaluation import metrics
from historay.evaluation.intervals import Statistic, clusters_of, estimate, interval, resample_weights


def mean_of(value_N: NDArray[np.float64]) -> Statistic:
    return lambda weights: {"mean": (weights @ value_N) / weights.sum(axis=1)}


def clustered(seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """40 patients with 50 tiles each, alike within a patient."""
    generator = np.random.default_rng(seed)
    patients = np.repeat([f"patient-{number}" for number in range(40)], 50)
    return np.repeat(generator.normal(size=40), 50) + 0.1 * generator.normal(size=2000), patients


def test_drawing_patients_gives_wider_intervals_than_tiles_where_tiles_of_a_patient_are_alike() -> None:
    value, patients = clustered()
    by_patient, unit = clusters_of(patients, 2000)
    by_tile, tile_unit = clusters_of(None, 2000)
    assert (unit, tile_unit) == ("patient", "tile")
    widths = []
    for cluster in (by_patient, by_tile):
        mean = estimate(mean_of(value), cluster, 500, 0, "")["mean"]
        assert mean.low is not None
        assert mean.high is not None
        widths.append(mean.high - mean.low)
    assert widths[0] > 4 * widths[1]  # sqrt(50) = 7 if a patient's tiles were equal


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    value = np.random.default_rng(3).exponential(size=300)
    ours = estimate(mean_of(value), clusters_of(None, 300)[0], 4000, 0, "")["mean"]
    theirs = scipy.stats.bootstrap((value,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    held = 0
    for seed in range(200):
        value, patients = clustered(seed)
        mean = estimate(mean_of(value), clusters_of(patients, 2000)[0], 200, seed, "")["mean"]
        assert mean.low is not None
        assert mean.high is not None
        held += mean.low <= 0 <= mean.high
    assert 180 <= held <= 198  # 0.93 is what 40 patients allow; binomial spread of 200 draws is 0.02


def test_a_resample_holds_whole_patients_and_as_many_as_there_are() -> None:
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    weights = np.concatenate(list(resample_weights(clusters_of(patients, 6)[0], 50, seed=0)))
    for patient in "abc":
        columns = weights[:, patients == patient]
        assert (columns == columns[:, :1]).all()
    assert (weights[:, 1] + weights[:, 0] + weights[:, 3] == 3).all()


def test_more_resamples_begin_with_the_same_draws_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = np.arange(7)
    expected = np.concatenate(list(resample_weights(cluster, 20, seed=5)))
    monkeypatch.setattr("historay.evaluation.intervals._CHUNK_WEIGHTS", 21)
    np.testing.assert_array_equal(np.concatenate(list(resample_weights(cluster, 40, seed=5)))[:20], expected)


def test_an_undefined_figure_is_null_with_its_reason() -> None:
    nan = interval(float("nan"), np.array([np.nan]), "class tumour has no tiles")
    assert (nan.value, nan.low, nan.reason) == (None, None, "class tumour has no tiles")
    rare = interval(0.5, np.array([0.5] * 90 + [np.nan] * 10), "")
    assert (rare.value, rare.low) == (0.5, None)
    assert "90 of 100" in str(rare.reason)
    alone = estimate(mean_of(np.ones(4)), np.zeros(4, dtype=np.int64), 10, 0, "")["mean"]
    assert (alone.value, alone.low) == (1.0, None)
    assert "cannot be resampled" in str(alone.reason)


def test_a_thousand_resamples_of_a_hundred_thousand_predictions_take_seconds() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(100_000) < 0.5
    score = generator.normal(size=100_000) + positive
    start = time.perf_counter()
    auc = estimate(lambda weights: {"auc": metrics.roc_auc(positive, score, weights)}, np.arange(100_000), 1000, 0, "")["auc"]
    assert time.perf_counter() - start < 60  # about 5 s on a free core
    assert auc.low is not None
    assert auc.high is not None
    assert auc.high - auc.low == pytest.approx(0.0054, abs=0.001)  # Hanley and McNeil 1982: 2 * 1.96 * 0.00136
