"""The error rate of what is accepted stays below the target as often as promised, and the curve is what it is defined to be."""

from itertools import permutations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from historay.evaluation.intervals import draw, numbered, resample_weights, units_of
from historay.evaluation.operating_point import OperatingPoint
from historay.evaluation.predictions import Predictions
from historay.evaluation.selective import (
    SelectiveRule,
    aurc_tally,
    betting_p_values,
    binomial_p_values,
    confidence,
    fit_selective,
    judge_selective,
    risk_coverage,
    units_needed,
)

Answers = tuple[NDArray[np.float64], NDArray[np.bool_]]


def predictions(
    probability_N: NDArray[np.float64], wrong_N: NDArray[np.bool_], patients: NDArray[np.str_] | None
) -> Predictions:
    """Tiles whose first class is named, with this probability, and is wrong where said."""
    ids = np.arange(len(wrong_N)).astype(str)
    return Predictions(ids, wrong_N.astype(np.int64), np.column_stack([probability_N, 1 - probability_N]), patients, ("a", "b"))


def calibrated(
    generator: np.random.Generator, num_patients: int, tiles: int, multiples: tuple[float, ...] = (1.0,)
) -> Predictions:
    """Probabilities uniform in 0.7 to 1, each right as often as it says on average; but a patient multiplies its errors.

    So the error rate among the tiles with at least the confidence c is (1 - c) / 2.
    """
    patient = np.repeat(np.arange(num_patients), tiles)
    probability = generator.uniform(0.7, 1, size=len(patient))
    errors = generator.choice(multiples, size=num_patients)[patient] * (1 - probability)
    return predictions(probability, generator.random(len(patient)) < errors, patient.astype(str))


def alone(found: Predictions) -> Predictions:
    return Predictions(found.tile_ids, found.labels, found.probabilities, None, found.classes)


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    num = draw(st.integers(1, 30))
    levels = draw(st.lists(st.integers(0, 8), min_size=num, max_size=num))
    return np.array(levels) / 8, np.array(draw(st.lists(st.booleans(), min_size=num, max_size=num)))


def violations(rules: list[SelectiveRule], target: float) -> float:
    return float(np.mean([rule.threshold is not None and (1 - rule.threshold) / 2 > target + 1e-9 for rule in rules]))


def test_independent_tiles_break_the_bound_no_oftener_than_delta_and_the_threshold_is_of_use() -> None:
    generator = np.random.default_rng(0)
    rules = [fit_selective(alone(calibrated(generator, 4000, 1)), None, 0.05, 0.1) for _ in range(150)]
    assert violations(rules, 0.05) <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 150)
    assert np.mean([rule.threshold or 1.0 for rule in rules]) < 0.95  # 0.9 is the lowest that would do


def test_patients_break_the_bound_no_oftener_than_delta_and_the_threshold_is_of_use() -> None:
    """120 patients of 30 tiles; one in five errs six times as often as the others."""
    generator = np.random.default_rng(1)
    cohorts = [calibrated(generator, 120, 30, multiples=(0.5, 0.5, 0.5, 0.5, 3.0)) for _ in range(100)]
    rules = [fit_selective(cohort, None, 0.1, 0.1) for cohort in cohorts]
    assert violations(rules, 0.1) <= 0.1
    assert np.mean([rule.threshold is not None for rule in rules]) > 0.9
    assert np.mean([rule.threshold or 1.0 for rule in rules]) < 0.92  # 0.8 is the lowest that would do


def test_taking_clustered_tiles_for_independent_ones_breaks_the_bound_far_too_often() -> None:
    """20 patients of 100 tiles, where a third of the patients make all errors."""
    generator = np.random.default_rng(2)
    cohorts = [calibrated(generator, 20, 100, multiples=(0.0, 0.0, 3.0)) for _ in range(150)]
    assert violations([fit_selective(alone(cohort), None, 0.1, 0.1) for cohort in cohorts], 0.1) > 0.1 + 3 * np.sqrt(0.09 / 150)
    assert violations([fit_selective(cohort, None, 0.1, 0.1) for cohort in cohorts], 0.1) <= 0.1


@pytest.mark.parametrize("shape", [(0.05, 0.95), (0.5, 9.5), (20.0, 380.0)])
def test_a_bet_against_a_true_null_wins_no_oftener_than_its_p_value(shape: tuple[float, float]) -> None:
    """Losses with a mean of exactly 0.05: nearly all or nothing, skewed, and narrow."""
    loss = np.random.default_rng(2).beta(*shape, size=(40, 5000))
    p_value = betting_p_values(loss, 0.05)
    for level in (0.01, 0.05, 0.2):
        assert (p_value <= level).mean() <= level + 3 * np.sqrt(level / 5000)


def test_a_bet_finds_a_mean_that_is_below_the_target() -> None:
    loss = np.random.default_rng(3).beta(1, 49, size=(90, 500))  # mean 0.02
    assert (betting_p_values(loss, 0.1) < 0.01).mean() > 0.95


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.01, 0.5))
def test_the_binomial_test_is_scipys_and_the_clopper_pearson_bound_of_statsmodels(wrong: int, right: int, risk: float) -> None:
    num = wrong + right
    p_value = float(binomial_p_values(np.array([float(wrong)]), np.array([float(num)]), risk)[0])
    assert p_value == pytest.approx(scipy.stats.binomtest(wrong, num, risk, alternative="less").pvalue, abs=1e-12)
    if abs(p_value - 0.05) > 1e-6:
        assert (p_value <= 0.05) == (proportion_confint(wrong, num, alpha=0.1, method="beta")[1] <= risk)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(40)))
def test_the_order_of_patients_and_tiles_changes_nothing(order: list[int]) -> None:
    found = calibrated(np.random.default_rng(4), 40, 1)
    turned = predictions(found.probabilities[order, 0], found.labels[order] == 1, np.asarray(found.patients)[order])
    for target in (0.3, 0.02):
        ours, theirs = fit_selective(found, None, target), fit_selective(turned, None, target)
        assert ours.threshold == theirs.threshold
        assert ours.guarantee == theirs.guarantee


@pytest.mark.parametrize("by_patient", [True, False])
@pytest.mark.parametrize("target", [0.02, 0.1, 0.3])
def test_as_many_units_as_are_needed_certify_the_target_without_an_error_and_one_fewer_do_not(
    by_patient: bool, target: float
) -> None:
    needed = units_needed(target, 0.05, "patient" if by_patient else "tile")

    def perfect(num: int) -> SelectiveRule:
        patients = np.arange(num).astype(str) if by_patient else None
        return fit_selective(predictions(np.full(num, 0.999), np.zeros(num, dtype=bool), patients), None, target, 0.05)

    enough, short = perfect(needed), perfect(needed - 1)
    assert (enough.threshold, enough.coverage, enough.risk) == (0.0, 1.0, 0.0)
    assert (short.threshold, short.coverage, short.risk) == (None, None, None)
    assert f"it takes at least {needed} {'patient' if by_patient else 'tile'}s without an error" in short.guarantee
    assert not short.accepts(np.array([0.5, 1.0])).any()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_a_laxer_target_never_accepts_less(seed: int) -> None:
    found = calibrated(np.random.default_rng(seed), 30, 5)
    thresholds = [fit_selective(found, None, target, 0.2).threshold for target in (0.05, 0.15, 0.3, 0.6)]
    lowest = [np.inf if threshold is None else threshold for threshold in thresholds]
    assert lowest == sorted(lowest, reverse=True)


def test_the_guarantee_says_whom_it_is_for() -> None:
    found = calibrated(np.random.default_rng(5), 100, 5)
    rule = fit_selective(found, None, 0.3)
    assert rule.unit == "patient"
    assert rule.num_units == 100
    assert "an error rate of at most 0.3 among the accepted tiles of new patients" in rule.guarantee
    assert "only if tiles are independent. Patients are unknown" in fit_selective(alone(found), None, 0.3).guarantee
    assert SelectiveRule.model_validate_json(rule.model_dump_json()) == rule


def test_confidence_grows_from_the_operating_point_to_both_ends() -> None:
    point = OperatingPoint(positive_class="b", threshold=0.2, rule="a test")
    probability = np.array([0.0, 0.1, 0.2, 0.6, 1.0])
    both = np.column_stack([1 - probability, probability])
    np.testing.assert_allclose(confidence(both, ("a", "b"), point), [1, 0.5, 0, 0.5, 1])
    np.testing.assert_allclose(confidence(both, ("a", "b"), None), [1, 0.9, 0.8, 0.6, 1])
    for threshold, expected in ((0.0, [0, 0.1, 0.2, 0.6, 1.0]), (1.0, [1, 0.9, 0.8, 0.4, 0])):
        extreme = OperatingPoint(positive_class="b", threshold=threshold, rule="a test")
        np.testing.assert_allclose(confidence(both, ("a", "b"), extreme), expected)


@settings(deadline=None, max_examples=40)
@given(answers())
def test_each_point_of_the_curve_is_the_error_rate_of_what_is_accepted_there(found: Answers) -> None:
    sure, wrong = found
    curve = risk_coverage(sure, wrong)
    for share, risk, threshold in zip(curve.coverage_T, curve.risk_T, curve.threshold_T, strict=True):
        accepted = sure >= threshold
        assert share == pytest.approx(accepted.mean())
        assert risk == pytest.approx(wrong[accepted].mean())
    assert curve.coverage_T[-1] == 1.0


def naive_aurc(wrong_in_order: NDArray[np.bool_]) -> float:
    return float(np.mean([wrong_in_order[: num + 1].mean() for num in range(len(wrong_in_order))]))


@settings(deadline=None, max_examples=40)
@given(st.permutations([True] * 4 + [False] * 9))
def test_the_area_without_ties_is_the_mean_risk_over_all_coverages(wrong: list[bool]) -> None:
    curve = risk_coverage(np.linspace(1, 0, 13), np.array(wrong))
    assert curve.aurc == pytest.approx(naive_aurc(np.array(wrong)))
    assert curve.excess_aurc == pytest.approx(curve.aurc - naive_aurc(np.array(sorted(wrong))))
    assert curve.excess_aurc >= -1e-12


def test_the_area_with_ties_is_the_mean_over_their_orders() -> None:
    sure, wrong = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.1]), np.array([True, False, False, True, False, True])
    orders = [naive_aurc(wrong[[*top, *middle, 5]]) for top in permutations([0, 1]) for middle in permutations([2, 3, 4])]
    assert risk_coverage(sure, wrong).aurc == pytest.approx(np.mean(orders))


@settings(deadline=None, max_examples=40)
@given(answers())
def test_the_area_depends_on_the_ranking_alone(found: Answers) -> None:
    sure, wrong = found
    assert risk_coverage(np.exp(3 * sure), wrong).aurc == pytest.approx(risk_coverage(sure, wrong).aurc)
    assert risk_coverage(sure[::-1], wrong[::-1]).aurc == pytest.approx(risk_coverage(sure, wrong).aurc)


def test_each_draw_of_the_area_is_that_of_the_tiles_drawn() -> None:
    generator = np.random.default_rng(6)
    sure, wrong = generator.integers(20, size=90) / 20, generator.random(90) < 0.3
    units = units_of(np.repeat(np.arange(15), 6).astype(str), 90, 0)
    drawn = draw([aurc_tally("aurc", sure, wrong, units)], units, 5, seed=1).resampled["aurc"]
    for row, weights in enumerate(next(resample_weights(units, 5, 1, 5))):
        times = weights[units.group_N].astype(int)
        assert drawn[row] == pytest.approx(risk_coverage(np.repeat(sure, times), np.repeat(wrong, times)).aurc)


def test_more_confidences_than_bins_leave_the_area_exact_and_the_curve_short() -> None:
    generator = np.random.default_rng(7)
    sure = generator.random(5000)
    wrong = generator.random(5000) > sure
    units = units_of(None, 5000, 0)
    drawn = draw([aurc_tally("aurc", sure, wrong, units)], units, 3, 2)
    assert drawn.point["aurc"][0] == pytest.approx(risk_coverage(sure, wrong).aurc, abs=1e-12)
    assert len(risk_coverage(sure, wrong).coverage_T) == 200
    for row, weights in enumerate(next(resample_weights(units, 3, 2, 3))):
        times = weights[units.group_N].astype(int)
        exact = risk_coverage(np.repeat(sure, times), np.repeat(wrong, times)).aurc
        assert drawn.resampled["aurc"][row] == pytest.approx(exact, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=3), min_size=1, max_size=30))
def test_ids_are_numbered_as_numpy_does(ids: list[str]) -> None:
    array = np.array([text.replace("\0", "") for text in ids], dtype=np.str_)
    for ours, theirs in zip(numbered(array), np.unique(array, return_inverse=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_figures_on_test_are_the_shares_that_their_names_say() -> None:
    generator = np.random.default_rng(8)
    rule = fit_selective(calibrated(generator, 200, 5), None, 0.2)
    test = calibrated(generator, 30, 7)
    units = units_of(test.patients, 210, 0)
    found = {name: figure.value for name, figure in judge_selective(rule, test, None, units, 50, 0).items()}
    accepted, wrong = rule.accepts(test.probabilities[:, 0]), test.labels == 1
    by_patient = zip(accepted.reshape(30, 7), wrong.reshape(30, 7), strict=True)
    of_patients = [(part.mean(), bad[part].mean() if part.any() else np.nan) for part, bad in by_patient]
    assert found == pytest.approx(
        {
            "aurc": risk_coverage(test.probabilities[:, 0], wrong).aurc,
            "coverage": accepted.mean(),
            "risk": wrong[accepted].mean(),
            "coverage_mean_of_patients": np.mean([share for share, _ in of_patients]),
            "risk_mean_of_patients": np.nanmean([risk for _, risk in of_patients]),
        }
    )
