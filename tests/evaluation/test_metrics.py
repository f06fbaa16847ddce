"""Every metric equals scikit-learn's, with ties, two classes or more, and with weights; and keeps the field's laws."""

import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from historay.evaluation import metrics

Case = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Labels of 2 to 4 classes, probabilities that often tie, weights with zeros; each class keeps some weight."""
    num_classes = draw(st.integers(2, 4))
    num = draw(st.integers(num_classes, 30))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=num - num_classes)])
    # Few levels: ties are the rule.
    levels = draw(st.sampled_from([2, 4, 1000]))
    raw = generator.integers(1, levels + 1, size=(num, num_classes)).astype(np.float64)
    weights = np.concatenate([np.ones(num_classes, dtype=np.int64), generator.integers(0, 4, size=num - num_classes)])
    return labels, raw / raw.sum(axis=1, keepdims=True), weights


@given(cases())
def test_roc_auc_is_scikit_learns(case: Case) -> None:
    labels, probability, weights = case
    for k in range(probability.shape[1]):
        expected = sklearn.metrics.roc_auc_score(labels == k, probability[:, k], sample_weight=weights)
        assert metrics.roc_auc(labels == k, probability[:, k], weights) == pytest.approx(expected, abs=1e-12)


@given(cases())
def test_macro_roc_auc_is_scikit_learns_one_against_the_rest(case: Case) -> None:
    labels, probability, weights = case
    if probability.shape[1] == 2:
        expected = sklearn.metrics.roc_auc_score(labels, probability[:, 1], sample_weight=weights)
    else:
        expected = sklearn.metrics.roc_auc_score(labels, probability, multi_class="ovr", sample_weight=weights)
    assert metrics.macro_roc_auc(labels, probability, weights) == pytest.approx(expected, abs=1e-12)


@given(cases())
def test_average_precision_is_scikit_learns(case: Case) -> None:
    labels, probability, weights = case
    one_hot = np.eye(probability.shape[1], dtype=int)[labels]
    expected = sklearn.metrics.average_precision_score(one_hot, probability, average=None, sample_weight=weights)
    for k in range(probability.shape[1]):
        assert metrics.average_precision(labels == k, probability[:, k], weights) == pytest.approx(expected[k], abs=1e-12)
    assert metrics.macro_average_precision(labels, probability, weights) == pytest.approx(np.mean(expected), abs=1e-12)


@given(cases())
def test_confusion_and_all_that_follows_from_it_are_scikit_learns(case: Case) -> None:
    labels, probability, weights = case
    num_classes, predicted = probability.shape[1], probability.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predicted, num_classes, weights)
    names = np.arange(num_classes)
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=names, sample_weight=weights)
    np.testing.assert_array_equal(confusion, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn.exceptions.UndefinedMetricWarning)
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        by_class = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, labels=names, sample_weight=weights, zero_division=np.nan
        )
        balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted, sample_weight=weights)
    for ours, theirs in zip((metrics.precision, metrics.recall, metrics.f1), by_class, strict=False):
        np.testing.assert_allclose(ours(confusion), theirs, atol=1e-12)
    accuracy = sklearn.metrics.accuracy_score(labels, predicted, sample_weight=weights)
    assert metrics.accuracy(confusion) == pytest.approx(accuracy, abs=1e-12)
    assert metrics.balanced_accuracy(confusion) == pytest.approx(balanced, abs=1e-12)


@given(cases())
def test_weights_count_as_repeated_tiles(case: Case) -> None:
    labels, probability, weights = case
    again = np.repeat(np.arange(len(labels)), weights)
    ones = np.ones(len(again), dtype=np.int64)
    for metric in (metrics.roc_auc, metrics.average_precision):
        expected = metric(labels[again] == 0, probability[again, 0], ones)
        assert metric(labels == 0, probability[:, 0], weights) == pytest.approx(float(expected), abs=1e-12)


@given(cases())
def test_many_weightings_at_once_give_what_each_gives_alone(case: Case) -> None:
    labels, probability, weights = case
    both = np.stack([weights, np.ones_like(weights)])
    for metric in (metrics.macro_roc_auc, metrics.macro_average_precision):
        # The order in which numpy adds depends on the shape, so the last bit may differ.
        alone = [metric(labels, probability, row) for row in both]
        np.testing.assert_allclose(metric(labels, probability, both), alone, rtol=1e-14)
    predicted = probability.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predicted, probability.shape[1], both)
    np.testing.assert_array_equal(
        confusion, [metrics.confusion_matrix(labels, predicted, probability.shape[1], row) for row in both]
    )


@given(cases())
def test_roc_auc_keeps_under_a_rising_map_and_turns_over_with_the_sign(case: Case) -> None:
    labels, probability, weights = case
    positive, score = labels == 0, probability[:, 0]
    auc = float(metrics.roc_auc(positive, score, weights))
    assert float(metrics.roc_auc(positive, np.exp2(score), weights)) == pytest.approx(auc, abs=1e-12)
    assert float(metrics.roc_auc(positive, -score, weights)) == pytest.approx(1 - auc, abs=1e-12)
    assert float(metrics.roc_auc(~positive, -score, weights)) == pytest.approx(auc, abs=1e-12)


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_tiles_does_not_matter(case: Case, randomness: "np.random.Generator") -> None:
    labels, probability, weights = case
    order = np.array(randomness.sample(range(len(labels)), len(labels)))  # type: ignore[attr-defined]
    for metric in (metrics.macro_roc_auc, metrics.macro_average_precision):
        shuffled = metric(labels[order], probability[order], weights[order])
        assert float(shuffled) == pytest.approx(float(metric(labels, probability, weights)), abs=1e-12)


@given(cases())
def test_curves_are_scikit_learns(case: Case) -> None:
    labels, probability, _ = case
    positive, score = labels == 0, probability[:, 0]
    false_rate, true_rate = metrics.roc_curve(positive, score)
    expected_false, expected_true, _ = sklearn.metrics.roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, expected_false)
    np.testing.assert_allclose(true_rate, expected_true)
    found, share = metrics.precision_recall_curve(positive, score)
    expected_share, expected_found, _ = sklearn.metrics.precision_recall_curve(positive, score)
    np.testing.assert_allclose(found, expected_found[-2::-1])  # theirs ascends and ends in the point (0, 1)
    np.testing.assert_allclose(share, expected_share[-2::-1])


def test_what_is_undefined_is_nan_and_not_zero() -> None:
    ones = np.ones(3, dtype=np.int64)
    assert np.isnan(metrics.roc_auc(np.ones(3, dtype=bool), np.array([0.1, 0.2, 0.3]), ones))
    assert np.isnan(metrics.average_precision(np.zeros(3, dtype=bool), np.array([0.1, 0.2, 0.3]), ones))
    confusion = metrics.confusion_matrix(np.array([0, 0, 1]), np.array([0, 0, 0]), 3, ones)
    assert np.isnan(metrics.precision(confusion)).tolist() == [False, True, True]
    assert np.isnan(metrics.f1(confusion)).tolist() == [False, False, True]
    assert np.isnan(metrics.balanced_accuracy(confusion))


def test_a_mean_over_classes_bears_a_resample_that_lacks_one_but_not_a_split_that_does() -> None:
    half = np.array([[0.9, np.nan, np.nan], [0.7, 0.8, np.nan], [0.8, 0.6, 0.5]])
    found = metrics.mean_over_classes(list(half))
    assert found[:2].tolist() == pytest.approx([0.8, 0.7])
    assert np.isnan(found[2]), "one class of three is too few"
    assert np.isnan(metrics.mean_over_classes([np.array([0.9]), np.array([np.nan])])[0])
