"""The metrics of a classifier, numpy in and numpy out, over integer weights, so that a bootstrap is one call.

Weights have the shape (N,) or (R, N): how often each of N tiles counts in each of R resamples; each result has the shape
(...) of their leading axes. What is undefined is NaN in here, and null with its reason in the report. The definitions
are scikit-learn's, and the tests compare with it.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = NDArray[np.int64]

_ENOUGH_CLASSES = 0.5  # a mean over fewer of the classes would be of another quantity


def roc_auc(positive_N: NDArray[np.bool_], score_N: Floats, weights: Weights) -> Floats:
    """Area under the ROC curve: the share of pairs ranked rightly, ties as one half; NaN where a class has no weight."""
    return roc_auc_of_counts(*_by_descending_score(positive_N, score_N, weights))


def average_precision(positive_N: NDArray[np.bool_], score_N: Floats, weights: Weights) -> Floats:
    """Sum over thresholds of precision times the gain in recall, without interpolation; NaN without positives."""
    return average_precision_of_counts(*_by_descending_score(positive_N, score_N, weights))


def roc_auc_of_counts(positives: Weights | Floats, negatives: Weights | Floats) -> Floats:
    """Area under the ROC curve from the weights of positives and of negatives at each score, highest first: twice (..., G)."""
    negatives_below = negatives.sum(axis=-1, keepdims=True) - negatives.cumsum(axis=-1)
    pairs = (positives * (negatives_below + negatives / 2)).sum(axis=-1)
    return ratio(pairs, positives.sum(axis=-1) * negatives.sum(axis=-1))


def average_precision_of_counts(positives: Weights | Floats, negatives: Weights | Floats) -> Floats:
    """Average precision from the weights of positives and of negatives at each score, highest first: twice (..., G)."""
    true_positives = positives.cumsum(axis=-1)
    called = true_positives + negatives.cumsum(axis=-1)
    # Before the first weighted tile nothing is called, and no positive is gained either.
    precision = true_positives / np.maximum(called, 1)
    return ratio((precision * positives).sum(axis=-1), positives.sum(axis=-1))


def macro_roc_auc(labels_N: NDArray[np.int64], probability_NK: Floats, weights: Weights) -> Floats:
    """Mean over the classes of each class's ROC-AUC against all the others."""
    columns = [roc_auc(labels_N == k, probability_NK[:, k], weights) for k in range(probability_NK.shape[1])]
    return np.asarray(np.mean(columns, axis=0))


def macro_average_precision(labels_N: NDArray[np.int64], probability_NK: Floats, weights: Weights) -> Floats:
    """Mean over the classes of each class's average precision against all the others."""
    columns = [average_precision(labels_N == k, probability_NK[:, k], weights) for k in range(probability_NK.shape[1])]
    return np.asarray(np.mean(columns, axis=0))


def mean_over_classes(by_class: Sequence[Floats]) -> Floats:
    """Returns the mean over the classes (R,): a resample that lacks some has the mean over the others, if they are half.

    A single value, that of the split itself, is NaN where any class is undefined: what is judged must not depend on that.
    """
    stack_KR = np.stack(by_class)
    defined_KR = ~np.isnan(stack_KR)
    enough_R = defined_KR.all(axis=0) if stack_KR.shape[1] == 1 else defined_KR.mean(axis=0) >= _ENOUGH_CLASSES
    mean_R = np.where(defined_KR, stack_KR, 0).sum(axis=0) / np.maximum(defined_KR.sum(axis=0), 1)
    return np.asarray(np.where(enough_R, mean_R, np.nan))


def confusion_matrix(
    labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64], num_classes: int, weights: Weights
) -> NDArray[np.int64]:
    """Counts tiles by true class (rows) and predicted class (columns): (..., K, K)."""
    num = len(labels_N)
    cell_N = labels_N * num_classes + predicted_N
    members = scipy.sparse.csr_array(
        (np.ones(num, dtype=np.int64), (np.arange(num), cell_N)), shape=(num, num_classes * num_classes)
    )
    counts = np.atleast_2d(weights) @ members
    return np.asarray(counts).reshape(*weights.shape[:-1], num_classes, num_classes)


def accuracy(confusion: Weights | Floats) -> Floats:
    """Share of tiles whose class was named rightly."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def recall(confusion: Weights | Floats) -> Floats:
    """Share of each class's tiles that were named so, (..., K); of the positive class this is the sensitivity."""
    return ratio(_diagonal(confusion), confusion.sum(axis=-1))


def precision(confusion: Weights | Floats) -> Floats:
    """Share of the tiles named as each class that are of it, (..., K); NaN for a class that is never predicted."""
    return ratio(_diagonal(confusion), confusion.sum(axis=-2))


def f1(confusion: Weights | Floats) -> Floats:
    """Harmonic mean of precision and recall by class, (..., K); NaN for a class that is neither there nor predicted."""
    return ratio(2 * _diagonal(confusion), confusion.sum(axis=-1) + confusion.sum(axis=-2))


def balanced_accuracy(confusion: Weights | Floats) -> Floats:
    """Mean recall over the classes; NaN if one has no tiles (scikit-learn leaves it out, which flatters)."""
    return np.asarray(recall(confusion).mean(axis=-1))


def roc_curve(positive_N: NDArray[np.bool_], score_N: Floats) -> tuple[Floats, Floats]:
    """Returns false and true positive rates from (0, 0) to (1, 1), one point a distinct score."""
    ones = np.ones(len(score_N), dtype=np.int64)
    positives, negatives = _by_descending_score(positive_N, score_N, ones)
    rates = [np.concatenate([[0.0], part.cumsum() / max(part.sum(), 1)]) for part in (negatives, positives)]
    return rates[0], rates[1]


def precision_recall_curve(positive_N: NDArray[np.bool_], score_N: Floats) -> tuple[Floats, Floats]:
    """Returns recall and precision, one point a distinct score, by descending score."""
    ones = np.ones(len(score_N), dtype=np.int64)
    positives, negatives = _by_descending_score(positive_N, score_N, ones)
    found = positives.cumsum()
    return found / max(positives.sum(), 1), found / (found + negatives.cumsum())


def _by_descending_score(positive_N: NDArray[np.bool_], score_N: Floats, weights: Weights) -> tuple[Weights, Weights]:
    """Sums the weights of positives and of negatives at each distinct score, highest first: twice (..., G)."""
    order = np.argsort(-score_N, kind="stable")
    ordered = score_N[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sorted_weights = weights[..., order]
    at_positives = sorted_weights * positive_N[order]
    at_negatives = sorted_weights - at_positives
    if len(starts) == len(order):  # no ties: one tile a group, and reduceat would only copy
        return at_positives, at_negatives
    return np.add.reduceat(at_positives, starts, axis=-1), np.add.reduceat(at_negatives, starts, axis=-1)


def _diagonal(confusion: Weights | Floats) -> Floats:
    return np.asarray(np.diagonal(confusion, axis1=-2, axis2=-1), dtype=np.float64)


def ratio(part: NDArray[np.int64] | Floats, whole: NDArray[np.int64] | Floats) -> Floats:
    """Divides, with NaN for 0 / 0 and no warning."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0))
