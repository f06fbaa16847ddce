"""Kinds of tiles on which a model errs more than elsewhere, found in its own feature space without being told.

Tiles are put into clusters by their features alone, so that the errors may be tested afterwards: they had no say in it.
"""

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from historay.evaluation.intervals import Estimate, Units, units_of, wilson
from historay.evaluation.judgement import wilson_of_clusters
from historay.evaluation.metrics import Floats
from historay.evaluation.subgroups import kish_number

NUM_EXAMPLES = 6
_MIN_TILES = 20  # of a cluster that is tested
_MAX_DIMENSIONS = 32
_MAX_CLUSTERS = 50
_MAX_FIT = 20_000  # tiles from which axes and centres are learned; more move neither
_CHUNK = 50_000  # tiles projected at a time
_FALSE_SHARE = 0.05  # of the slices found, expected to be chance (Benjamini and Hochberg 1995)


class ErrorSlice(BaseModel):
    """One kind of tile on which the model errs more often than on the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_tiles: int
    num_patients: int | None  # None: unknown
    error_rate: Estimate  # Wilson, over the effective number of tiles where patients are known
    rest_error_rate: float
    p_adjusted: float  # one-sided, Benjamini and Hochberg over all clusters
    mistake: tuple[int, int]  # the commonest: true class, predicted class
    num_mistakes: int  # of that kind
    typical_rows: tuple[int, ...]  # nearest the centre first
    wrong_rows: tuple[int, ...]  # likewise, of the errors


class SliceSearch(BaseModel):
    """What was looked at and what was found, the worst first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_clusters: int
    num_tested: int  # clusters of at least 20 tiles and effectively 2 patients
    false_share: float = _FALSE_SHARE  # of the slices, expected to be chance
    slices: tuple[ErrorSlice, ...]


def find_slices(
    features_NF: NDArray[np.float32],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    patients: NDArray[np.str_] | None,
    seed: int,
) -> SliceSearch:
    """Clusters tiles by features and keeps the clusters where errors are significantly more frequent than in the rest.

    Standardised features, at most 32 principal axes, k-means with about sqrt(N / 50) clusters. The test is Fisher's exact
    one; where patients are known, a slice must also pass one in which whole patients vary, since tiles of one patient
    cluster in feature space and err together.
    """
    wrong_N = predicted != labels
    units = None if patients is None else units_of(patients, len(labels), seed)
    cluster_N, distance_N = cluster_tiles(features_NF, seed)
    num_clusters = int(cluster_N.max()) + 1
    p_values = {k: _p_value(wrong_N, cluster_N == k, units) for k in range(num_clusters)}
    tested = {k: p for k, p in p_values.items() if p is not None}
    if not tested:
        return SliceSearch(num_clusters=num_clusters, num_tested=0, slices=())
    adjusted = dict(zip(tested, scipy.stats.false_discovery_control(list(tested.values())), strict=True))
    nearest = np.argsort(distance_N, kind="stable")
    found = []
    for k, p in adjusted.items():
        if p < _FALSE_SHARE:
            rows = nearest[cluster_N[nearest] == k]
            rate = _error_rate(wrong_N, cluster_N == k, units)
            num_patients = None if patients is None else len(np.unique(patients[rows]))
            found.append(_slice(labels, predicted, rows, rate, num_patients, float(p)))
    ordered = sorted(found, key=lambda one: (-(one.error_rate.value or 0.0), one.typical_rows))
    return SliceSearch(num_clusters=num_clusters, num_tested=len(tested), slices=tuple(ordered))


def cluster_tiles(features_NF: NDArray[np.float32], seed: int) -> tuple[NDArray[np.int64], Floats]:
    """Returns each tile's cluster (N,) and its distance from the centre (N,)."""
    num, num_features = features_NF.shape
    fitted = np.sort(np.random.default_rng(seed).permutation(num)[:_MAX_FIT])
    sample = features_NF[fitted].astype(np.float64)
    mean, deviation = sample.mean(axis=0), sample.std(axis=0)
    varies = deviation > 1e-6 * np.abs(mean)  # beyond the rounding of float32
    if not varies.any():
        return np.zeros(num, dtype=np.int64), np.zeros(num)
    scale = np.where(varies, deviation, np.inf)  # a feature that is the same everywhere tells nothing
    standard = (sample - mean) / scale
    axes = PCA(min(_MAX_DIMENSIONS, num_features, len(sample)), svd_solver="covariance_eigh").fit(standard)
    place = axes.transform(standard)
    num_clusters = min(max(2, round(np.sqrt(num / 50))), _MAX_CLUSTERS, len(np.unique(place[:, 0])))
    centres = KMeans(num_clusters, n_init=3, random_state=seed).fit(place)
    clusters, distances = [], []
    for start in range(0, num, _CHUNK):
        place = axes.transform((features_NF[start : start + _CHUNK] - mean) / scale)
        clusters.append(centres.predict(place))
        distances.append(np.linalg.norm(place - centres.cluster_centers_[clusters[-1]], axis=1))
    return np.concatenate(clusters).astype(np.int64), np.concatenate(distances)


def _p_value(wrong_N: NDArray[np.bool_], member_N: NDArray[np.bool_], units: Units | None) -> float | None:
    """Tests whether errors are more frequent among members; None where a cluster is too small to be tested."""
    num_members, num = int(member_N.sum()), len(member_N)
    if num_members < _MIN_TILES or num - num_members < _MIN_TILES:
        return None
    # Fisher's exact test, one-sided, is the tail of the hypergeometric distribution.
    among_tiles = float(scipy.stats.hypergeom.sf(int(wrong_N[member_N].sum()) - 1, num, int(wrong_N.sum()), num_members))
    if units is None:
        return among_tiles
    among_patients = _p_value_of_patients(wrong_N, member_N, units.group_N)
    return None if among_patients is None else max(among_tiles, among_patients)


def _p_value_of_patients(wrong_N: NDArray[np.bool_], member_N: NDArray[np.bool_], patient_N: NDArray[np.int64]) -> float | None:
    """Student's t of the difference in error rate, its variance between patients (Liang and Zeger 1986).

    None below two effective patients in the cluster.
    """
    num_patients = kish_number(np.bincount(patient_N[member_N]))
    if num_patients < 2:
        return None
    rates = [wrong_N[side].mean() for side in (member_N, ~member_N)]
    residual_N = np.where(member_N, (wrong_N - rates[0]) / member_N.sum(), -(wrong_N - rates[1]) / (~member_N).sum())
    variance = np.sum(np.bincount(patient_N, residual_N) ** 2) * num_patients / (num_patients - 1)
    if variance == 0:
        # Every patient alike: as likely as heads in a row.
        return 0.5**num_patients if rates[0] > rates[1] else 1.0
    return float(scipy.stats.t.sf((rates[0] - rates[1]) / np.sqrt(variance), num_patients - 1))


def _slice(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    rows: NDArray[np.int64],
    error_rate: Estimate,
    num_patients: int | None,
    p_adjusted: float,
) -> ErrorSlice:
    """Describes the slice of some rows, nearest its centre first."""
    wrong_N = predicted != labels
    errors = rows[wrong_N[rows]]
    pairs, counts = np.unique(np.stack([labels[errors], predicted[errors]]), axis=1, return_counts=True)
    return ErrorSlice(
        num_tiles=len(rows),
        num_patients=num_patients,
        error_rate=error_rate,
        rest_error_rate=float((wrong_N.sum() - len(errors)) / (len(labels) - len(rows))),
        p_adjusted=p_adjusted,
        mistake=(int(pairs[0, counts.argmax()]), int(pairs[1, counts.argmax()])),
        num_mistakes=int(counts.max()),
        typical_rows=tuple(rows[:NUM_EXAMPLES].tolist()),
        wrong_rows=tuple(errors[:NUM_EXAMPLES].tolist()),
    )


def _error_rate(wrong_N: NDArray[np.bool_], member_N: NDArray[np.bool_], units: Units | None) -> Estimate:
    if units is not None:
        return wilson_of_clusters(wrong_N, units, member_N)
    num_wrong, num = int(wrong_N[member_N].sum()), int(member_N.sum())
    low, high = wilson(num_wrong, num)
    return Estimate(value=num_wrong / num, low=low, high=high)
