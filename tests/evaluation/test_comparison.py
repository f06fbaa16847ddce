"""Two models are compared on the same patients, and what no test can tell apart is not told apart."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

from historay.errors import DataError
from historay.evaluation.comparison import Judged, compare, mcnemar
from historay.evaluation.operating_point import OperatingPoint
from historay.evaluation.predictions import Predictions

POINT = OperatingPoint(positive_class="tumour", threshold=0.5, rule="a test")


def judged(score_N: np.ndarray, labels: np.ndarray, patients: np.ndarray | None = None) -> Judged:
    probability = 1 / (1 + np.exp(-score_N))
    ids = np.array([f"{number:05d}" for number in range(len(labels))])
    both = np.column_stack([1 - probability, probability])
    return Judged(Predictions(ids, labels, both, patients, ("normal", "tumour")), POINT)


def cohort(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    patients = np.repeat([f"p{number}" for number in range(40)], 15)
    labels = (generator.random(600) < 0.5).astype(np.int64)
    return labels, 2 * labels - 1 + np.repeat(generator.normal(size=40), 15) + generator.normal(size=600), patients


def test_a_better_model_is_told_from_a_worse_by_every_test() -> None:
    labels, score, patients = cohort(0)
    found = compare(
        judged(score, labels, patients), judged(score + np.random.default_rng(1).normal(0, 2, 600), labels, patients), 2000, 0
    )
    auc = found.figures["roc_auc"]
    assert (found.unit, found.num_units) == ("patient", 40)
    assert auc.a.value == pytest.approx(sklearn.metrics.roc_auc_score(labels, score))
    assert auc.difference.low is not None
    assert auc.difference.low > 0
    assert auc.p_value is not None
    assert auc.p_value < 0.01
    assert {test.name: test.p_value < 0.01 for test in found.tests} == {"McNemar, accuracy": True, "Obuchowski, ROC-AUC": True}


def test_a_model_does_not_differ_from_itself() -> None:
    labels, score, patients = cohort(1)
    found = compare(judged(score, labels, patients), judged(score, labels, patients), 200, 0)
    for figure in found.figures.values():
        assert (figure.difference.value, figure.p_value) == (0.0, 1.0)
    assert all(test.p_value == 1.0 for test in found.tests)


def test_swapping_the_models_turns_the_difference_round() -> None:
    labels, score, patients = cohort(2)
    other = score + np.random.default_rng(3).normal(size=600)
    one = compare(judged(score, labels, patients), judged(other, labels, patients), 500, 0).figures["roc_auc"].difference
    two = compare(judged(other, labels, patients), judged(score, labels, patients), 500, 0).figures["roc_auc"].difference
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low), abs=1e-9)  # type: ignore[operator]


def test_models_of_several_classes_are_compared_without_an_operating_point() -> None:
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 300)
    ids = np.array([f"{number:05d}" for number in range(300)])
    models = []
    for noise in (0.5, 2.0):
        logits = np.eye(3)[labels] * 2 + noise * generator.normal(size=(300, 3))
        probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        models.append(Judged(Predictions(ids, labels, probability, None, ("a", "b", "c")), None))
    found = compare(*models, 300, 0)
    assert found.unit == "tile"
    assert found.figures["roc_auc"].difference.low is not None
    assert found.figures["roc_auc"].difference.low > 0


def test_mcnemars_exact_test_is_that_of_statsmodels() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.random(200) < 0.8, generator.random(200) < 0.7
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert mcnemar(a, b) == pytest.approx(reference_mcnemar(table, exact=True).pvalue)


def test_models_judged_on_other_tiles_or_classes_are_refused() -> None:
    labels, score, patients = cohort(6)
    one = judged(score, labels, patients)
    fewer = judged(score[:-1], labels[:-1], patients[:-1])
    with pytest.raises(DataError, match="other tiles: 600 and 599, of which 599 are the same"):
        compare(one, fewer, 100, 0)
    renamed = Judged(dataclasses.replace(one.predictions, classes=("benign", "tumour")), POINT)
    with pytest.raises(DataError, match="only equal ones"):
        compare(one, renamed, 100, 0)
