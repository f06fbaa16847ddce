"""The bootstrap draws whole patients, and its intervals hold the truth as often as they say."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from historay.evaluation.delong import auc_by_delong
from historay.evaluation.intervals import (
    MAX_GROUPS,
    Estimate,
    Named,
    Units,
    auc_tally,
    draw,
    estimate,
    mean_tally,
    ranking_tally,
    resample_weights,
    units_of,
    wilson,
)
from historay.evaluation.weighting import weighted_means_tally

Cohort = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.str_]]


def cohort(seed: int, num_patients: int = 60, tiles: int = 20, likeness: float = 1.0) -> Cohort:
    """Tiles of both classes in each patient; ``likeness`` is the spread between patients, that within them is 1."""
    generator = np.random.default_rng(seed)
    patients = np.repeat([f"patient-{number}" for number in range(num_patients)], tiles)
    positive = generator.random(len(patients)) < 0.5
    of_patient = np.repeat(generator.normal(size=num_patients), tiles)
    return positive, positive + likeness * of_patient + generator.normal(size=len(patients)), patients


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_drawing_patients_gives_wider_intervals_than_tiles_where_tiles_of_a_patient_are_alike() -> None:
    _, score, patients = cohort(0, likeness=3.0)
    by_patient, by_tile = units_of(patients, len(score), 0), units_of(None, len(score), 0)
    assert (by_patient.unit, by_patient.num_units, by_tile.unit, by_tile.num_units) == ("patient", 60, "tile", 1200)
    widths = [width(estimate([mean_tally("mean", score, units)], units, 500, 0)["mean"]) for units in (by_patient, by_tile)]
    assert widths[0] > 3 * widths[1]  # sqrt(20) = 4.5 if a patient's tiles were equal


def holds(found: Estimate, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def test_of_400_simulated_cohorts_95_in_100_intervals_by_patient_hold_the_truth() -> None:
    """Nominal coverage within the error of 400 simulations (0.011), for a mean and for an AUC of clustered tiles."""
    truth = {"mean": 0.5, "auc": float(scipy.stats.norm.cdf(1 / 2))}  # scores spread by sqrt(2), their difference by 2
    held = dict.fromkeys(truth, 0)
    for seed in range(400):
        positive, score, patients = cohort(seed)
        units = units_of(patients, len(score), 0)
        tallies = [mean_tally("mean", score, units), auc_tally("auc", positive, score, units)]
        for name, found in estimate(tallies, units, 400, seed).items():
            held[name] += holds(found, truth[name])
    error = 3 * np.sqrt(0.95 * 0.05 / 400)
    assert held["mean"] / 400 == pytest.approx(0.95, abs=error)
    assert held["auc"] / 400 == pytest.approx(0.95, abs=error)


def test_the_naive_bootstrap_of_single_tiles_holds_the_truth_far_less_often() -> None:
    held = 0
    for seed in range(100):
        _, score, _ = cohort(seed)
        units = units_of(None, len(score), 0)
        held += holds(estimate([mean_tally("mean", score, units)], units, 300, seed)["mean"], 0.5)
    assert held < 60


def test_the_interval_agrees_with_scipys_bca_bootstrap() -> None:
    value = np.random.default_rng(3).exponential(size=300)
    units = units_of(None, 300, 0)
    ours = estimate([mean_tally("mean", value, units)], units, 8000, 0)["mean"]
    theirs = scipy.stats.bootstrap((value,), np.mean, n_resamples=8000, method="BCa", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_a_resample_holds_whole_patients_and_as_many_as_there_are() -> None:
    units = units_of(np.array(["b", "a", "b", "c", "a", "b"]), 6, 0)
    weights = np.concatenate(list(resample_weights(units, 50, seed=0, rows=7)))
    assert weights.shape == (50, 3)
    assert (weights.sum(axis=1) == 3).all()
    np.testing.assert_array_equal(units.group_N, [1, 0, 1, 2, 0, 1])


def test_more_resamples_begin_with_the_same_draws_whatever_the_chunk() -> None:
    units = units_of(None, 7, 0)
    first = np.concatenate(list(resample_weights(units, 20, seed=5, rows=3)))
    np.testing.assert_array_equal(np.concatenate(list(resample_weights(units, 40, seed=5, rows=40)))[:20], first)


def test_each_draw_of_an_auc_is_the_auc_of_the_tiles_drawn() -> None:
    positive, score, patients = cohort(1, num_patients=12, tiles=9)
    units = units_of(patients, len(score), 0)
    drawn = draw([ranking_tally(positive, score, units, auc="auc", precision="ap")], units, 6, seed=4)
    for row, weights in enumerate(next(resample_weights(units, 6, 4, 6))):
        of_tile = weights[units.group_N]
        expected = sklearn.metrics.roc_auc_score(positive, score, sample_weight=of_tile)
        assert drawn.resampled["auc"][row] == pytest.approx(expected, abs=1e-12)
        expected = sklearn.metrics.average_precision_score(positive, score, sample_weight=of_tile)
        assert drawn.resampled["ap"][row] == pytest.approx(expected, abs=1e-12)
    without = units.group_N != 5
    assert drawn.left_out["auc"][5] == pytest.approx(sklearn.metrics.roc_auc_score(positive[without], score[without]))


def test_a_difference_is_drawn_on_the_same_patients_and_so_is_far_narrower_than_its_parts() -> None:
    positive, score, patients = cohort(2)
    units = units_of(patients, len(score), 0)
    better = score + 0.05 * positive
    tallies = [auc_tally("a", positive, better, units), auc_tally("b", positive, score, units)]

    def gain(named: Named) -> Named:
        return {"gain": named["a"] - named["b"]}

    found = estimate(tallies, units, 500, 0, gain)
    assert width(found["gain"]) < width(found["a"]) / 5


def test_more_scores_than_bins_leave_the_value_exact_and_the_interval_where_it_was() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(30_000) < 0.5
    score = generator.normal(size=30_000) + positive
    units = units_of(None, 30_000, 0)
    assert units.num_groups == MAX_GROUPS
    assert units.num_units == 30_000
    found = estimate([auc_tally("auc", positive, score, units)], units, 1000, 0)["auc"]
    assert found.value == pytest.approx(sklearn.metrics.roc_auc_score(positive, score), abs=1e-12)
    assert width(found) == pytest.approx(width(auc_by_delong(positive, score)), rel=0.08)


def test_random_groups_of_many_patients_tell_the_same_interval_as_the_patients_themselves() -> None:
    generator = np.random.default_rng(6)
    patients = np.repeat(np.arange(6000).astype(str), 3)
    value = np.repeat(generator.normal(size=6000), 3) + 0.1 * generator.normal(size=18_000)
    grouped = units_of(patients, 18_000, 0)
    whole = Units(np.unique(patients, return_inverse=True)[1].astype(np.int64), 6000, "patient", 6000)
    widths = [width(estimate([mean_tally("m", value, units)], units, 1000, 0)["m"]) for units in (grouped, whole)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)


def test_an_undefined_figure_is_null_with_its_reason() -> None:
    units = units_of(None, 4, 0)
    one_class = auc_tally("auc", np.ones(4, dtype=bool), np.arange(4.0), units)
    found = estimate([one_class], units, 50, 0, undefined="class tumour has no tiles")["auc"]
    assert (found.value, found.low, found.reason) == (None, None, "class tumour has no tiles")
    rare = estimate([auc_tally("auc", np.array([True, False, False, False]), np.arange(4.0), units)], units, 200, 0)["auc"]
    assert (rare.value, rare.low) == (0.0, None)
    assert "defined in only" in str(rare.reason)
    single = units_of(np.array(["a"] * 4), 4, 0)
    alone = estimate([mean_tally("mean", np.ones(4), single)], single, 10, 0)["mean"]
    assert (alone.value, alone.low) == (1.0, None)
    assert "a single patient cannot be resampled" in str(alone.reason)


def test_a_figure_without_a_single_error_keeps_an_interval_below_one() -> None:
    units = units_of(None, 14, 0)
    found = estimate([mean_tally("accuracy", np.ones(14), units)], units, 200, 0)["accuracy"]
    assert found.low == pytest.approx(14 / (14 + 1.96**2), abs=1e-3)
    assert found.reason == "Wilson's bound over 14 tiles"


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilsons_interval_is_that_of_statsmodels(successes: int, more: int) -> None:
    trials = successes + more
    assert wilson(successes, trials) == pytest.approx(proportion_confint(successes, trials, method="wilson"), abs=1e-9)


@given(st.permutations(range(30)))
def test_the_order_of_the_tiles_changes_nothing(order: list[int]) -> None:
    positive, score, patients = cohort(3, num_patients=6, tiles=5)
    units, turned = units_of(patients, 30, 0), units_of(patients[order], 30, 0)
    found = estimate([auc_tally("auc", positive, score, units)], units, 40, 0)["auc"]
    assert estimate([auc_tally("auc", positive[order], score[order], turned)], turned, 40, 0)["auc"] == found


def test_a_hundred_thousand_predictions_bear_ten_thousand_resamples() -> None:
    """About 4 s on a free core; the time is in docs/benchmarks.md and no matter here."""
    generator = np.random.default_rng(0)
    positive = generator.random(100_000) < 0.5
    score = generator.normal(size=100_000) + positive
    units = units_of(None, 100_000, 0)
    found = estimate([auc_tally("auc", positive, score, units)], units, 10_000, 0)["auc"]
    assert width(found) == pytest.approx(width(auc_by_delong(positive, score)), rel=0.06)


@pytest.mark.parametrize("num_bearing", [4, 6, 8, 12])
def test_a_perfect_figure_is_as_unsure_as_the_patients_that_bear_it_are_few(num_bearing: int) -> None:
    """60 patients, of whom only some have positives, all found: draws without any of those are undefined."""
    patient = np.repeat(np.arange(60), 10)
    positive = patient < num_bearing
    right = positive | (np.random.default_rng(0).random(600) < 0.9)
    units = units_of(patient.astype(str), 600, 0)
    means = weighted_means_tally({"weighted": (right, positive * 0.5)}, units)
    found = estimate([mean_tally("sensitivity", right, units, positive), means], units, 2000, 0)
    for name in ("sensitivity", "weighted"):
        assert (found[name].value, found[name].low) == (1.0, pytest.approx(wilson(num_bearing, num_bearing)[0]))
        assert found[name].reason == f"Wilson's bound over {num_bearing} patients"


def test_a_perfect_ranking_is_as_unsure_as_the_rarer_class_and_so_is_a_mean_over_classes() -> None:
    """One class of 5 patients, one of 20, told apart without error; each patient has tiles of one class alone."""
    patient = np.repeat(np.arange(25), 4)
    positive = patient < 5
    units = units_of(patient.astype(str), 100, 0)
    tallies = [auc_tally(name, positive, positive.astype(float), units) for name in ("one", "other")]

    def derive(named: Named) -> Named:
        return {"mean": (named["one"] + named["other"]) / 2, "difference": named["one"] - named["other"]}

    found = estimate(tallies, units, 1000, 0, derive)
    least = wilson(5, 5)[0]
    assert (found["one"].low, found["one"].high) == (pytest.approx(least), 1.0)
    assert (found["mean"].low, found["mean"].high) == (pytest.approx(least), 1.0)
    assert (found["difference"].low, found["difference"].high) == (0.0, 0.0)
