"""Predictive values and net benefit follow from the rates by their definitions, at any prevalence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from historay.evaluation import metrics
from historay.evaluation.decision import (
    THRESHOLDS,
    decision_curve,
    decision_tally,
    move_prevalence,
    predictive_values,
)
from historay.evaluation.intervals import Resampling, draw, estimate, units_of, wilson
from historay.evaluation.operating_point import OperatingPoint
from historay.evaluation.predictions import Predictions
from historay.evaluation.sections import decision_section

rates = st.floats(0.01, 0.99)


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 500), min_size=4, max_size=4))
def test_at_the_prevalence_of_the_tiles_they_are_the_precisions_of_the_confusion_matrix(counts: list[int]) -> None:
    confusion = np.array(counts).reshape(2, 2)
    recall, precision = metrics.recall(confusion), metrics.precision(confusion)
    found = predictive_values(recall[1], recall[0], confusion[1].sum() / confusion.sum())
    assert (found.npv, found.ppv) == pytest.approx(tuple(precision), abs=1e-12)


@settings(deadline=None)
@given(sensitivity=rates, specificity=rates, prevalence=rates)
def test_swapping_the_classes_swaps_the_predictive_values(sensitivity: float, specificity: float, prevalence: float) -> None:
    found = predictive_values(sensitivity, specificity, prevalence)
    turned = predictive_values(specificity, sensitivity, 1 - prevalence)
    np.testing.assert_allclose([turned.npv, turned.ppv], [found.ppv, found.npv], atol=1e-12)


def test_a_good_test_for_a_rare_disease_is_mostly_wrong_when_it_alarms() -> None:
    found = predictive_values(0.9, 0.9, 0.01)
    assert found.ppv == pytest.approx(0.009 / (0.009 + 0.099))
    assert found.npv > 0.998
    assert np.isnan(predictive_values(0.0, 1.0, 0.1).ppv)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), prevalence=rates)
def test_net_benefit_is_that_of_the_definition_on_tiles_that_are_weighted_to_the_prevalence(
    seed: int, prevalence: float
) -> None:
    generator = np.random.default_rng(seed)
    positive = np.arange(80) % 4 == 0
    probability = generator.integers(0, 101, size=80) / 100  # on the thresholds themselves, too
    units = units_of(None, 80, 0)
    found = draw([decision_tally(positive, probability, prevalence, units)], units, 1, 0).point
    weight = np.where(positive, prevalence / positive.mean(), (1 - prevalence) / (~positive).mean()) / 80
    for t, threshold in enumerate(THRESHOLDS):
        called = probability >= threshold
        expected = weight[called & positive].sum() - weight[called & ~positive].sum() * threshold / (1 - threshold)
        assert found[f"net_benefit:{t}"][0] == pytest.approx(expected, abs=1e-9)


def test_a_model_that_calls_all_is_treating_all_and_one_that_calls_nothing_is_treating_none() -> None:
    positive, units = np.arange(50) % 5 == 0, units_of(None, 50, 0)
    everything, nothing = (
        decision_curve(estimate([decision_tally(positive, np.full(50, p), 0.3, units)], units, 100, 0, undefined="-"), 0.3)
        for p in (1.0, 0.0)
    )
    np.testing.assert_allclose([one.value for one in everything.model], everything.treat_all, atol=1e-12)
    assert [one.value for one in nothing.model] == [0.0] * len(THRESHOLDS)
    assert everything.treat_all[29] == pytest.approx(0, abs=1e-12)  # at the threshold 0.3, the prevalence


def test_moved_probabilities_of_a_calibrated_model_are_calibrated_at_the_other_prevalence_and_benefit_the_most() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random(200_000)
    positive = generator.random(200_000) < probability
    thinned = ~positive | (generator.random(200_000) < 1 / 9)  # a half becomes a tenth
    moved = move_prevalence(probability[thinned], 0.5, 0.1)
    assert moved.mean() == pytest.approx(positive[thinned].mean(), abs=0.003)
    units = units_of(np.arange(200_000).astype(str), 200_000, 0)
    benefit = [
        draw([decision_tally(positive, claimed, 0.1, units)], units, 1, 0).point
        for claimed in (move_prevalence(probability, 0.5, 0.1), probability)
    ]
    for t in (4, 9, 29):
        assert benefit[0][f"net_benefit:{t}"][0] > max(benefit[1][f"net_benefit:{t}"][0], 0)


@settings(deadline=None)
@given(probability=rates, here=rates, there=rates)
def test_moving_there_and_back_changes_nothing(probability: float, here: float, there: float) -> None:
    moved = move_prevalence(np.array([probability]), here, there)
    assert move_prevalence(moved, there, here)[0] == pytest.approx(probability, abs=1e-9)


def test_no_false_alarm_among_eight_patients_promises_little_where_positives_are_rare() -> None:
    """Wilson's bound is of the specificity; at a prevalence of 1 % it is far below that of the predictive value itself."""
    patient = np.repeat(np.arange(16), 10)
    labels = np.repeat(np.arange(16) % 2, 10)
    positive_N = np.where((labels == 1) & (np.arange(160) % 10 > 0), 0.9, 0.1)
    test = Predictions(
        tile_ids=np.arange(160).astype(str),
        labels=labels,
        probabilities=np.column_stack([1 - positive_N, positive_N]),
        patients=patient.astype(str),
        classes=("normal", "tumour"),
    )
    point = OperatingPoint(positive_class="tumour", threshold=0.5, rule="a test")
    found = decision_section(test, point, 0.5, 0.01, Resampling(units_of(test.patients, 160, 0), 200, 0))
    ppv = next(row.ppv for row in found.predictive if row.prevalence == 0.01)
    specificity = wilson(8, 8)[0]
    assert ppv.value == 1.0
    assert ppv.low == pytest.approx(0.01 * 0.9 / (0.01 * 0.9 + 0.99 * (1 - specificity)))
    assert ppv.reason == "from Wilson's bounds of its parts"
