"""How far a tile lies from those of a reference: Mahalanobis distances, with limits that keep a stated share of the reference.

Suffixes: N reference tiles, B tiles to be judged, F features, K principal axes.
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from historay.evaluation.metrics import Floats

_NUM_FOLDS = 5


class Familiarity(NamedTuple):
    """A normal distribution of reference features, as probabilistic PCA keeps it (Tipping and Bishop 1999).

    The covariance is Ledoit and Wolf's (2004), so that it exists even with fewer tiles than features; of its directions
    the K widest are kept, and the others share their mean variance.
    """

    mean_F: Floats
    axes_FK: Floats  # orthonormal columns
    variance_K: Floats
    rest: float  # variance along every other direction

    @classmethod
    def fit(cls, features_NF: Floats, num_axes: int) -> Self:
        """Fits to the reference; features that never vary are let be."""
        mean_F = features_NF.mean(axis=0)
        covariance_FF, _ = ledoit_wolf(features_NF)
        num_F = len(mean_F)
        num_K = min(num_axes, num_F)
        # All of them: LAPACK's search for the largest fails where many are equal, as with fewer tiles than features.
        variance_F, axes_FF = np.linalg.eigh(covariance_FF)
        variance_K, axes_FK = variance_F[num_F - num_K :], axes_FF[:, num_F - num_K :]
        floor = max(float(variance_K[-1]) * 1e-9, np.finfo(float).tiny)
        unexplained = float(np.trace(covariance_FF) - variance_K.sum())
        return cls(mean_F, axes_FK, np.maximum(variance_K, floor), max(unexplained / max(num_F - num_K, 1), floor))

    def distance(self, features_BF: Floats) -> Floats:
        """Returns the Mahalanobis distance of each tile (B,), divided by the root of F: about 1 for the reference.

        Lee et al. 2018 detect unfamiliar input so; one distribution for all classes detects no less here.
        """
        centred_BF = features_BF - self.mean_F
        along_BK = centred_BF @ self.axes_FK
        beside_B = np.maximum((centred_BF**2).sum(axis=1) - (along_BK**2).sum(axis=1), 0)
        squared_B = (along_BK**2 / self.variance_K).sum(axis=1)
        if len(self.mean_F) > len(self.variance_K):
            squared_B = squared_B + beside_B / self.rest
        return np.asarray(np.sqrt(squared_B / len(self.mean_F)))


def held_out_distance(features_NF: Floats, groups_N: NDArray[np.str_] | None, num_axes: int, seed: int) -> Floats:
    """Returns each reference tile's distance (N,) to a fit without its fold, since tiles lie too near to their own fit.

    A fold holds whole groups, such as patients, where there are enough of them.
    """
    fold_N = _folds(len(features_NF), groups_N, seed)
    distance_N = np.empty(len(features_NF))
    for fold in np.unique(fold_N):
        held_out = fold_N == fold
        distance_N[held_out] = Familiarity.fit(features_NF[~held_out], num_axes).distance(features_NF[held_out])
    return distance_N


def joint_limits(value_NM: Floats, share: float) -> Floats:
    """Returns one limit for each of M checks (M,), so that at most ``share`` of like tiles exceed any of them.

    The checks are made equally strict: a tile's rank is its least tail over the checks, and the most extreme
    floor(share (N + 1)) tiles are given up, as in split-conformal prediction. With fewer than 1 / share tiles a limit is the
    largest value, and the chance of a further tile at most M / (N + 1). A check that does not apply to a tile is -inf.
    """
    num = len(value_NM)
    tail_NM = np.stack([num - np.searchsorted(np.sort(column), column) for column in value_NM.T], axis=1)
    num_given_up = int(share * (num + 1) + 1e-9)
    strictness = np.sort(tail_NM.min(axis=1))[min(num_given_up, num - 1)]
    return np.asarray(np.where(tail_NM >= strictness, value_NM, -np.inf).max(axis=0))


def _folds(num_tiles: int, groups_N: NDArray[np.str_] | None, seed: int) -> NDArray[np.int64]:
    """Numbers each tile's fold; groups are dealt out from the largest on, to the fold that has least."""
    generator = np.random.default_rng(seed)
    if groups_N is None or len(np.unique(groups_N)) < _NUM_FOLDS:
        return generator.permutation(num_tiles) % min(_NUM_FOLDS, num_tiles)
    _, group_N, count_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    fold_G, size = np.empty(len(count_G), dtype=np.int64), np.zeros(_NUM_FOLDS, dtype=np.int64)
    for group in np.argsort(-count_G, kind="stable"):
        fold_G[group] = size.argmin()
        size[fold_G[group]] += count_G[group]
    return fold_G[group_N]
