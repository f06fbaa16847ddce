"""Tiles become slides and patients: labels by rule, probabilities by a method that validation chose, figures over patients."""

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from historay.evaluation.pooling import (
    MIN_TO_LEARN,
    PoolingRule,
    fit_pooling,
    judge_pooled,
    pool,
    top_mean,
    unit_quantiles,
)
from historay.evaluation.predictions import Predictions

MEAN = PoolingRule(level="patient", positive=1, method="mean", reason="a test", threshold=0.5)


def cohort(
    seed: int, num_patients: int = 40, tiles: int = 20, affected: float = 1.0, strength: float = 1.0, num_classes: int = 2
) -> Predictions:
    """Every patient of class k > 0 has that class in a share ``affected`` of the tiles, and class 0 in the others."""
    generator = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), tiles)
    reached = np.tile(np.arange(tiles) < np.ceil(affected * tiles), num_patients)
    labels = np.where(reached, patient % num_classes, 0)
    raw = np.exp(generator.normal(size=(len(patient), num_classes)) + strength * (labels[:, None] == np.arange(num_classes)))
    return Predictions(
        tile_ids=np.arange(len(patient)).astype(str),
        labels=labels,
        probabilities=raw / raw.sum(axis=1, keepdims=True),
        patients=np.array([f"P-{number:03d}" for number in patient]),
        classes=("normal", "tumour", "stroma")[:num_classes],
        slides=np.array([f"slide {number % 2}" for number in range(len(patient))]),
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 1.0]))
def test_the_top_mean_and_quantiles_of_each_unit_are_numpys(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    unit = generator.permutation(np.repeat(np.arange(6), [1, 2, 5, 10, 30, 11]))
    value = generator.integers(12, size=len(unit)) / 12
    quantiles = np.array([0.0, 0.1, 0.5, 0.75, 1.0])
    top, found = top_mean(value, unit, share), unit_quantiles(value, unit, quantiles)
    for number in range(6):
        own = np.sort(value[unit == number])[::-1]
        assert top[number] == pytest.approx(own[: max(1, int(np.ceil(round(share * len(own), 6))))].mean())
        np.testing.assert_allclose(found[number], np.quantile(own, quantiles), atol=1e-12)


def test_a_patient_has_the_class_of_all_its_tiles_and_a_probability_of_their_mean() -> None:
    test = cohort(0)
    result = pool(test, MEAN)
    assert result.label_U.tolist() == [0, 1] * 20
    assert result.how == "each patient has the class of all its tiles"
    np.testing.assert_allclose(result.probability_UK, test.probabilities.reshape(40, 20, 2).mean(axis=1))


def test_a_single_positive_tile_makes_the_patient_positive() -> None:
    result = pool(cohort(0, affected=0.05), MEAN)
    assert result.label_U.tolist() == [0, 1] * 20
    assert result.how == ("a patient is tumour if any of its tiles is; 20 of 40 patients have tiles of several classes")


def test_what_cannot_be_labelled_is_empty_with_its_reason() -> None:
    mixed = pool(cohort(0, num_classes=3, affected=0.5), MEAN.model_copy(update={"positive": None}))
    assert mixed.label_U.size == 0
    assert mixed.reason == (
        "26 of 40 patients have tiles of several classes, and there is no positive class of which one tile suffices"
    )
    found = cohort(0)
    only = replace(found, labels=np.ones_like(found.labels))
    assert pool(only, MEAN).reason == "all 40 patients are tumour, so nothing can be told apart"
    assert pool(replace(found, patients=None), MEAN).reason == "patients are unknown"
    for name, figure in judge_pooled(pool(only, MEAN), 10, 0).items():
        assert name in {"roc_auc", "accuracy", "sensitivity", "specificity"}
        assert figure.value is None
        assert figure.reason == "all 40 patients are tumour, so nothing can be told apart"


def test_no_identifier_is_left_in_the_result() -> None:
    test = cohort(0)
    assert "P-0" not in str(pool(test, fit_pooling(test, "patient", 1, 0)))


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(60)))
def test_the_order_of_the_tiles_changes_nothing(order: list[int]) -> None:
    found = cohort(1, num_patients=6, tiles=10)
    turned = replace(
        found,
        tile_ids=found.tile_ids[order],
        labels=found.labels[order],
        probabilities=found.probabilities[order],
        patients=np.asarray(found.patients)[order],
        slides=np.asarray(found.slides)[order],
    )
    for level in ("patient", "slide"):
        rule = MEAN.model_copy(update={"level": level, "method": "top-k mean"})
        ours, theirs = pool(found, rule), pool(turned, rule)
        np.testing.assert_array_equal(ours.label_U, theirs.label_U)
        np.testing.assert_array_equal(ours.patient_U, theirs.patient_U)
        np.testing.assert_allclose(ours.probability_UK, theirs.probability_UK, atol=1e-12)


def test_slides_of_one_number_but_of_two_patients_are_two_slides() -> None:
    result = pool(cohort(0), MEAN.model_copy(update={"level": "slide"}))
    assert len(result.label_U) == 80
    assert np.bincount(result.patient_U).tolist() == [2] * 40
    without = pool(replace(cohort(0), patients=None), MEAN.model_copy(update={"level": "slide"}))
    assert without.reason == "all 2 slides are tumour, so nothing can be told apart"


def test_the_mean_is_kept_where_all_tiles_of_a_patient_tell_the_same() -> None:
    rule = fit_pooling(cohort(2, strength=0.2), "patient", 1, 0)
    assert rule.method == "mean"
    assert rule.weights is None
    assert rule.reason.startswith("ROC-AUC over 5 folds of 40 validation patients: mean ")


def test_the_top_tenth_is_chosen_where_few_tiles_of_a_patient_are_affected() -> None:
    rule = fit_pooling(cohort(3, tiles=50, affected=0.1, strength=1.5), "patient", 1, 0)
    assert rule.method == "top-k mean"


def spread_out(seed: int, num_patients: int) -> Predictions:
    """Affected patients have as high probabilities on average as the others, but lower and higher ones: extremes cancel."""
    generator = np.random.default_rng(seed)
    affected = np.repeat(np.arange(num_patients) % 2, 20)
    middle = generator.uniform(0.4, 0.6, size=num_patients).repeat(20)
    # The greatest tile of a patient tells nothing, as one in ten is near 1 in all of them.
    near_one = np.tile(np.arange(20) < 3, num_patients)
    sign = np.tile([1, -1], 10 * num_patients)
    probability = np.where(near_one, 0.99, np.clip(middle + sign * np.where(affected == 1, 0.3, 0.1), 0.01, 0.95))
    return Predictions(
        tile_ids=np.arange(len(affected)).astype(str),
        labels=affected,
        probabilities=np.column_stack([1 - probability, probability]),
        patients=np.repeat(np.arange(num_patients).astype(str), 20),
        classes=("normal", "tumour"),
    )


def test_learned_pooling_is_chosen_where_neither_mean_nor_top_tell_and_pools_as_scikit_learn_would() -> None:
    validation, test = spread_out(0, 60), spread_out(1, 40)
    rule = fit_pooling(validation, "patient", 1, 0)
    assert rule.method == "learned"
    result = pool(test, PoolingRule.model_validate_json(rule.model_dump_json()))

    def features(found: Predictions) -> NDArray[np.float64]:
        of_patient = [found.probabilities[found.patients == name, 1] for name in np.unique(np.asarray(found.patients))]
        return np.array([np.quantile(own, [0.1, 0.25, 0.5, 0.75, 0.9, 1.0]) for own in of_patient])

    model = LogisticRegression(tol=1e-8).fit(features(validation), pool(validation, rule).label_U)
    np.testing.assert_allclose(result.probability_UK, model.predict_proba(features(test)), atol=1e-5)
    value = judge_pooled(result, 200, 0)["roc_auc"].value
    assert value is not None
    assert value > 0.9
    assert (judge_pooled(pool(test, MEAN), 200, 0)["roc_auc"].value or 1) < 0.8


def test_learned_pooling_is_not_tried_with_few_patients() -> None:
    rule = fit_pooling(spread_out(0, MIN_TO_LEARN - 1), "patient", 1, 0)
    assert rule.method != "learned"
    assert rule.reason.endswith("learned pooling is not tried with fewer than 20")


def test_learned_pooling_of_noise_is_not_chosen_and_its_score_is_of_unseen_patients() -> None:
    chosen = [fit_pooling(cohort(seed, num_patients=30, strength=0.0), "patient", 1, 0).method for seed in range(12)]
    assert chosen.count("mean") >= 6  # chance alone beats it by a standard error in one of three


def test_three_pure_classes_are_pooled_and_judged_each_against_the_rest() -> None:
    validation, test = cohort(4, num_classes=3, num_patients=60, strength=0.4), cohort(5, num_classes=3, strength=0.4)
    rule = fit_pooling(validation, "patient", None, 0)
    assert rule.threshold is None
    result = pool(test, rule)
    np.testing.assert_allclose(result.probability_UK.sum(axis=1), 1)
    found = judge_pooled(result, 100, 0)
    assert set(found) == {"roc_auc", "accuracy"}
    expected = sklearn.metrics.roc_auc_score(result.label_U, result.probability_UK, multi_class="ovr")
    assert found["roc_auc"].value == pytest.approx(expected)
    assert found["accuracy"].value == pytest.approx((result.probability_UK.argmax(axis=1) == result.label_U).mean())


def test_figures_are_those_of_scikit_learn_at_the_threshold_of_validation() -> None:
    rule = fit_pooling(cohort(6, strength=0.3), "patient", 1, 0)
    result = pool(cohort(7, strength=0.3), rule)
    assert rule.threshold is not None
    called = result.probability_UK[:, 1] >= rule.threshold
    found = judge_pooled(result, 300, 0)
    expected = {
        "roc_auc": sklearn.metrics.roc_auc_score(result.label_U, result.probability_UK[:, 1]),
        "accuracy": sklearn.metrics.accuracy_score(result.label_U, called),
        "sensitivity": sklearn.metrics.recall_score(result.label_U, called),
        "specificity": sklearn.metrics.recall_score(result.label_U, called, pos_label=0),
    }
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(expected)
    for figure in found.values():
        assert figure.low is not None
        assert figure.low < (figure.value or 0)


def test_the_class_that_counts_may_be_the_first() -> None:
    rule = MEAN.model_copy(update={"positive": 0})
    turned = pool(cohort(7, strength=0.3), rule)
    straight = pool(cohort(7, strength=0.3), MEAN)
    np.testing.assert_allclose(turned.probability_UK, straight.probability_UK)
    ours, theirs = judge_pooled(turned, 50, 0), judge_pooled(straight, 50, 0)
    assert ours["roc_auc"].value == pytest.approx(theirs["roc_auc"].value)
    assert ours["sensitivity"].value == pytest.approx(theirs["specificity"].value)


def test_slides_of_a_patient_are_drawn_together() -> None:
    slides = pool(cohort(8, strength=0.1), MEAN.model_copy(update={"level": "slide"}))
    alone = replace(slides, patient_U=np.arange(80))
    twice = replace(
        alone, **{name: np.repeat(getattr(alone, name), 4, axis=0) for name in ("label_U", "probability_UK", "patient_U")}
    )
    once, again = (judge_pooled(found, 300, 0)["accuracy"] for found in (alone, twice))
    assert (again.low, again.high) == pytest.approx((once.low, once.high))


def test_a_validation_split_that_cannot_choose_leaves_the_mean_and_no_threshold_and_says_so() -> None:
    found = cohort(9)
    rule = fit_pooling(replace(found, labels=np.zeros_like(found.labels)), "patient", 1, 0)
    assert (rule.method, rule.threshold) == ("mean", None)
    assert rule.reason == "not chosen: validation: all 40 patients are normal, so nothing can be told apart"
    figures = judge_pooled(pool(found, rule), 50, 0)
    assert figures["roc_auc"].value is not None
    assert figures["accuracy"].value is None
    assert "no threshold could be chosen on validation: all 40 patients are normal" in str(figures["accuracy"].reason)
    few = fit_pooling(cohort(9, num_patients=3), "patient", 1, 0)
    assert "too few of a class for cross-validation, the counts by class are [2, 1]" in few.reason
