"""The variance of a ROC-AUC in closed form, for single tiles and for tiles that cluster in patients; two models compared.

DeLong, DeLong and Clarke-Pearson 1988, by midranks (Sun and Xu 2014); for clusters Obuchowski 1997. It draws nothing, so it
checks the bootstrap's interval by another way.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from historay.evaluation.intervals import LEVEL, Estimate
from historay.evaluation.metrics import Floats


class Areas(NamedTuple):
    """ROC-AUCs of M models on the same tiles (M,), and the covariance of their errors (M, M)."""

    auc_M: Floats
    covariance_MM: Floats


def delong(positive_N: NDArray[np.bool_], score_MN: Floats, group_N: NDArray[np.int64] | None = None) -> Areas:
    """Computes AUCs and their covariance; ``group_N`` numbers each tile's patient, None takes tiles as independent.

    The covariance is NaN with fewer than two positives, negatives or patients.
    """
    positive_MP, negative_MQ = score_MN[:, positive_N], score_MN[:, ~positive_N]
    num_positive, num_negative = positive_MP.shape[1], negative_MQ.shape[1]
    if not num_positive or not num_negative:
        nan = np.full(len(score_MN), np.nan)
        return Areas(nan, np.full((len(nan), len(nan)), np.nan))
    # How often each positive beats a negative, and each negative is beaten, ties as one half.
    beats_MP = (_midranks(score_MN)[:, positive_N] - _midranks(positive_MP)) / num_negative
    beaten_MQ = 1 - (_midranks(score_MN)[:, ~positive_N] - _midranks(negative_MQ)) / num_positive
    auc_M = beats_MP.mean(axis=1)
    of_tile_MN = np.zeros_like(score_MN, dtype=np.float64)
    of_tile_MN[:, positive_N] = (beats_MP - auc_M[:, None]) / num_positive
    of_tile_MN[:, ~positive_N] = (beaten_MQ - auc_M[:, None]) / num_negative
    if group_N is None:
        parts = (of_tile_MN[:, positive_N], of_tile_MN[:, ~positive_N])
        return Areas(auc_M, np.asarray(sum(_sum_of_squares(part, part) for part in parts)))
    return Areas(auc_M, _clustered(of_tile_MN, positive_N, group_N))


def auc_by_delong(positive_N: NDArray[np.bool_], score_N: Floats, group_N: NDArray[np.int64] | None = None) -> Estimate:
    """Returns one model's AUC with its interval, symmetric in the logit so that it stays within 0 and 1."""
    areas = delong(positive_N, score_N[None], group_N)
    auc, deviation = float(areas.auc_M[0]), float(np.sqrt(areas.covariance_MM[0, 0]))
    if np.isnan(auc):
        return Estimate(value=None, low=None, high=None, reason="one class has no tiles")
    if not deviation > 0 or not 0 < auc < 1:
        return Estimate(
            value=auc, low=None, high=None, reason="no variance: the classes are told apart without error, or too few"
        )
    half = scipy.stats.norm.ppf((1 + LEVEL) / 2) * deviation / (auc * (1 - auc))
    low, high = 1 / (1 + np.exp(-(np.log(auc / (1 - auc)) + np.array([-half, half]))))
    return Estimate(value=auc, low=float(low), high=float(high))


def difference_by_delong(areas: Areas) -> tuple[Estimate, float]:
    """Returns the first model's AUC less the second's, with its interval, and the two-sided p-value of no difference."""
    difference = float(areas.auc_M[0] - areas.auc_M[1])
    variance = float(areas.covariance_MM[0, 0] + areas.covariance_MM[1, 1] - 2 * areas.covariance_MM[0, 1])
    if np.isnan(difference) or not variance > 0:
        same = difference == 0
        reason = "the two models rank alike" if same else "no variance: too few tiles or patients"
        return Estimate(value=None if np.isnan(difference) else difference, low=None, high=None, reason=reason), 1.0
    half = scipy.stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
    p_value = 2 * scipy.stats.norm.sf(abs(difference) / np.sqrt(variance))
    return Estimate(value=difference, low=difference - float(half), high=difference + float(half)), float(p_value)


def _clustered(of_tile_MN: Floats, positive_N: NDArray[np.bool_], group_N: NDArray[np.int64]) -> Floats:
    """Obuchowski 1997, equation 4: positives and negatives of one patient vary together."""
    num_groups = int(group_N.max()) + 1
    sums = [
        np.stack([np.bincount(group_N[kept], row[kept], num_groups) for row in of_tile_MN]).astype(np.float64)
        for kept in (positive_N, ~positive_N)
    ]
    present = [np.bincount(group_N[kept], minlength=num_groups) > 0 for kept in (positive_N, ~positive_N)]
    own = [_sum_of_squares(part[:, there], part[:, there]) for part, there in zip(sums, present, strict=True)]
    cross = _sum_of_squares(*sums)
    return np.asarray(own[0] + own[1] + cross + cross.T)


def _sum_of_squares(a_MI: Floats, b_MI: Floats) -> Floats:
    """Sum over items of products, times n / (n - 1); NaN for a single item."""
    num = a_MI.shape[1]
    return np.asarray(a_MI @ b_MI.T * num / (num - 1)) if num > 1 else np.full((len(a_MI), len(b_MI)), np.nan)


def _midranks(values_MN: Floats) -> Floats:
    return np.asarray(scipy.stats.rankdata(values_MN, axis=1))
