"""The threshold is chosen on validation and does there what was asked."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_curve
from statsmodels.stats.proportion import proportion_confint

from historay.errors import DataError
from historay.evaluation.intervals import units_of
from historay.evaluation.operating_point import (
    Aim,
    OperatingPoint,
    choose_point,
    choose_threshold,
    decide,
    effective_number,
    tail_probability,
)

Binary = tuple[NDArray[np.bool_], NDArray[np.float64]]


@st.composite
def binary(draw: st.DrawFn) -> Binary:
    """Labels of both classes, with probabilities that often tie."""
    num = draw(st.integers(2, 40))
    positive = np.array(draw(st.lists(st.booleans(), min_size=num, max_size=num)))
    positive[:2] = [True, False]
    values = st.one_of(st.integers(0, 8).map(lambda eighths: eighths / 8), st.floats(0, 1))
    return positive, np.array(draw(st.lists(values, min_size=num, max_size=num)))


@settings(deadline=None)
@given(binary(), st.floats(0.01, 1.0))
def test_threshold_keeps_the_requested_sensitivity_on_validation(tiles: Binary, target: float) -> None:
    positive, probability = tiles
    threshold = choose_threshold(positive, probability, "sensitivity", target)
    assert (probability[positive] >= threshold).mean() >= target


@settings(deadline=None)
@given(binary(), st.floats(0.01, 1.0))
def test_no_higher_threshold_would_keep_the_requested_sensitivity(tiles: Binary, target: float) -> None:
    positive, probability = tiles
    threshold = choose_threshold(positive, probability, "sensitivity", target)
    at_or_above = probability[probability >= threshold]
    for candidate in np.unique(at_or_above)[1:]:
        assert (probability[positive] >= candidate).mean() < target


@settings(deadline=None)
@given(binary())
def test_youden_reaches_the_greatest_j_of_scikit_learns_roc_curve(tiles: Binary) -> None:
    positive, probability = tiles
    threshold = choose_threshold(positive, probability, "youden")
    false_rate, true_rate, _ = roc_curve(positive, probability, drop_intermediate=False)
    called = probability >= threshold
    assert called[positive].mean() - called[~positive].mean() == pytest.approx((true_rate - false_rate).max(), abs=1e-12)


@settings(deadline=None)
@given(binary(), st.floats(0.01, 1.0))
def test_threshold_keeps_the_requested_specificity_on_validation_and_no_lower_one_would(tiles: Binary, target: float) -> None:
    positive, probability = tiles
    probability = 0.99 * probability  # below 1, or no threshold clears a tile
    threshold = choose_threshold(positive, probability, "specificity", target)
    assert (probability[~positive] < threshold).mean() >= target
    for candidate in np.unique(probability[probability < threshold]):
        assert (probability[~positive] < candidate).mean() < target


@settings(deadline=None)
@given(binary(), st.floats(0.1, 20), st.floats(0.01, 0.99))
def test_no_threshold_costs_less_than_the_one_chosen_by_cost(tiles: Binary, ratio: float, prevalence: float) -> None:
    positive, probability = tiles
    probability = 0.99 * probability
    aim = Aim(rule="cost", cost_ratio=ratio, prevalence=prevalence)
    point = choose_point("tumour", positive, probability, aim, units_of(None, len(positive), 0))

    def cost(threshold: float) -> float:
        called = probability >= threshold
        return float(prevalence * ratio * (~called[positive]).mean() + (1 - prevalence) * called[~positive].mean())

    assert cost(point.threshold) <= min(cost(candidate) for candidate in (*probability, 1.0)) + 1e-12


@settings(deadline=None)
@given(binary())
def test_cost_at_even_odds_is_youden(tiles: Binary) -> None:
    positive, probability = tiles
    assert choose_threshold(positive, probability, "cost") == choose_threshold(positive, probability, "youden")


@settings(deadline=None)
@given(binary(), st.randoms(use_true_random=False))
def test_the_order_of_the_tiles_does_not_move_a_threshold(tiles: Binary, randomness: "np.random.Generator") -> None:
    positive, probability = tiles
    order = np.array(randomness.sample(range(len(positive)), len(positive)))  # type: ignore[attr-defined]
    for rule in ("youden", "sensitivity", "cost"):
        expected = choose_threshold(positive, probability, rule, 0.8, 3.0)
        assert choose_threshold(positive[order], probability[order], rule, 0.8, 3.0) == expected


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


def test_a_specificity_that_no_threshold_reaches_is_refused() -> None:
    with pytest.raises(DataError, match=r"50\.0% of the negative tiles of validation have a probability of exactly 1"):
        choose_threshold(np.array([True, False, False]), np.array([0.5, 1.0, 0.2]), "specificity", 0.9)


def test_without_confidence_the_guarantee_says_that_there_is_none() -> None:
    positive, probability, units = np.arange(10) < 5, np.arange(10) / 10, units_of(None, 10, 0)
    guarantees = [
        choose_point("tumour", positive, probability, Aim(rule=rule), units).guarantee
        for rule in ("youden", "cost", "specificity")
    ]
    assert all(text.startswith("none: ") for text in guarantees)
    assert "missed about as often as not" in guarantees[2]
    costly = Aim(rule="cost", cost_ratio=20, prevalence=0.01)
    assert (
        "a miss costing 20 false alarms, at a prevalence of 0.01"
        in choose_point("t", positive, probability, costly, units).rule
    )


@settings(deadline=None)
@given(right=st.integers(0, 200), wrong=st.integers(0, 200), target=st.floats(0.01, 0.99))
def test_a_target_is_kept_where_it_is_below_the_exact_bound_of_statsmodels(right: int, wrong: int, target: float) -> None:
    num = right + wrong + 1
    tail = tail_probability(np.array([float(right)]), num, target)[0]
    assert tail == pytest.approx(scipy.stats.binom.sf(right - 1, num, target), abs=1e-9)
    bound = np.nan_to_num(proportion_confint(right, num, alpha=0.1, method="beta")[0])
    assert (tail <= 0.05) == (bound >= target) or bound == pytest.approx(target, abs=1e-9)


def held(num_patients: int, tiles: int, likeness: float, rule: str, known: bool, runs: int) -> list[bool]:
    """Whether the target of 0.9 holds in the population, whose scores are normal, for thresholds of many validation sets."""
    found = []
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        positive = np.arange(num_patients * tiles) % 2 == 0
        of_patient = np.repeat(generator.normal(size=num_patients), tiles)
        logit = likeness * of_patient + generator.normal(size=len(positive)) + np.where(positive, 1, -1)
        patients = np.repeat(np.arange(num_patients).astype(str), tiles) if known else None
        aim = Aim.model_validate({"rule": rule, "target": 0.9, "confidence": 0.95})
        units = units_of(patients, len(positive), 0)
        point = choose_point("tumour", positive, scipy.special.expit(logit), aim, units)
        below = scipy.stats.norm(scale=np.hypot(1, likeness)).cdf
        cut = scipy.special.logit(point.threshold)
        found.append(bool((1 - below(cut - 1) if rule == "sensitivity" else below(cut + 1)) >= 0.9))
    return found


@pytest.mark.parametrize("rule", ["sensitivity", "specificity"])
def test_with_confidence_the_target_holds_in_the_population_95_times_in_100(rule: str) -> None:
    found = held(200, 1, 0.0, rule, known=False, runs=300)
    assert scipy.stats.binomtest(sum(found), 300, 0.95, alternative="less").pvalue > 0.01


def test_tiles_of_a_patient_break_the_exact_bound_and_their_effective_number_restores_it() -> None:
    naive, counted = (held(60, 20, 1.0, "sensitivity", known=known, runs=200) for known in (False, True))
    assert sum(naive) < 175
    assert sum(counted) > 0.9 * 200


def test_a_confident_threshold_is_below_the_plain_one_and_says_on_what_it_stands() -> None:
    generator = np.random.default_rng(0)
    positive = np.arange(1000) % 2 == 0
    probability = scipy.special.expit(generator.normal(size=1000) + positive)
    plain = choose_threshold(positive, probability, "sensitivity", 0.9)
    aim = Aim(rule="sensitivity", target=0.9, confidence=0.95)
    unknown = choose_point("tumour", positive, probability, aim, units_of(None, 1000, 0))
    known = choose_point("tumour", positive, probability, aim, units_of(np.repeat(np.arange(50).astype(str), 20), 1000, 0))
    assert known.threshold <= unknown.threshold < plain
    assert "with 0.95 confidence the sensitivity is at least 0.9" in unknown.guarantee
    assert "500 positive tiles if they are independent; patients are unknown" in unknown.guarantee
    assert "by how their patients differ; not exact" in known.guarantee


def test_too_few_tiles_or_patients_for_a_promise_are_refused_with_the_number_needed() -> None:
    positive = np.arange(100) % 2 == 0
    probability = np.where(positive, 0.9, 0.1)
    aim = Aim(rule="sensitivity", target=0.95, confidence=0.95)
    with pytest.raises(DataError, match="the 50 positive tiles of validation are too few, and at least 59 are needed"):
        choose_point("tumour", positive, probability, aim, units_of(None, 100, 0))
    many, sure = np.tile(positive, 10), np.tile(probability, 10)
    with pytest.raises(DataError, match="the 500 positive tiles of validation count as 10 independent ones"):
        choose_point("tumour", many, sure, aim, units_of(np.repeat(np.arange(10).astype(str), 100), 1000, 0))


def test_the_effective_number_is_that_of_tiles_alone_and_of_patients_whose_tiles_are_all_the_same() -> None:
    generator = np.random.default_rng(0)
    alone = generator.random(400) < 0.7
    assert effective_number(alone, np.arange(400)) == 400
    same = np.repeat(generator.random(100) < 0.7, 10)
    assert effective_number(same, np.repeat(np.arange(100), 10)) == pytest.approx(100, rel=0.05)
    mixed = generator.random(4000) < 0.7
    assert effective_number(mixed, np.repeat(np.arange(200), 20)) > 2500
    assert effective_number(np.ones(50, dtype=bool), np.repeat(np.arange(5), 10)) == 5
