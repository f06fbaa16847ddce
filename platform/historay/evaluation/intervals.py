"""Percentile bootstrap over whole patients, since tiles of one patient resemble each other.

Where patients are unknown single tiles are drawn, and the report says that such an interval is too narrow.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.evaluation.metrics import Floats, Weights

Unit = Literal["patient", "tile"]
# (R, N) weights in, named results of the shape (R,) out.
Statistic = Callable[[Weights], dict[str, Floats]]

LEVEL = 0.95
# Weights of one chunk: 1 M integers of 8 bytes stay near the cache, and need not fit 2,000 x 1 M tiles in memory.
_CHUNK_WEIGHTS = 1_000_000
# An interval over the few resamples in which a metric happens to be defined would be of another quantity.
_MIN_DEFINED = 0.95


class Estimate(BaseModel):
    """One figure with its 95 % interval; where ``value`` or the interval is null, ``reason`` says why."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None


def clusters_of(patients: NDArray[np.str_] | None, num_tiles: int) -> tuple[NDArray[np.int64], Unit]:
    """Returns each tile's cluster (N,) in 0..C-1 and its unit: the patient, or the tile itself where patients are unknown."""
    if patients is None:
        return np.arange(num_tiles), "tile"
    return np.unique(patients, return_inverse=True)[1].astype(np.int64), "patient"


def resample_weights(cluster_N: NDArray[np.int64], num_resamples: int, seed: int) -> Iterator[Weights]:
    """Yields chunks (R, N) of tile weights; in each row as many clusters as there are were drawn with replacement.

    The first rows do not change with the number of resamples, nor with the size of a chunk.
    """
    generator = np.random.default_rng(seed)
    num_clusters = int(cluster_N.max()) + 1
    by_tile = num_clusters == len(cluster_N) and bool((cluster_N == np.arange(num_clusters)).all())
    rows = max(1, _CHUNK_WEIGHTS // len(cluster_N))
    for first in range(0, num_resamples, rows):
        num_rows = min(rows, num_resamples - first)
        drawn = generator.integers(num_clusters, size=(num_rows, num_clusters))
        drawn += np.arange(num_rows)[:, None] * num_clusters
        counts = np.bincount(drawn.ravel(), minlength=num_rows * num_clusters).reshape(num_rows, num_clusters)
        yield counts if by_tile else counts[:, cluster_N]


def estimate(
    statistic: Statistic, cluster_N: NDArray[np.int64], num_resamples: int, seed: int, undefined: str
) -> dict[str, Estimate]:
    """Computes every named result on the tiles as they are, and its percentile interval over the resamples.

    ``undefined`` is the reason to state for a result that is NaN.
    """
    points = {name: float(value[0]) for name, value in statistic(np.ones((1, len(cluster_N)), dtype=np.int64)).items()}
    if cluster_N.max() < 1:
        reason = "no interval: a single patient or tile cannot be resampled"
        return {name: _without_interval(value, undefined if np.isnan(value) else reason) for name, value in points.items()}
    chunks = [statistic(weights) for weights in resample_weights(cluster_N, num_resamples, seed)]
    draws = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in points}
    return {name: interval(value, draws[name], undefined) for name, value in points.items()}


def interval(value: float, draws: Floats, undefined: str) -> Estimate:
    """Joins a value and its bootstrap draws (R,), NaN where undefined, to an Estimate."""
    if np.isnan(value):
        return _without_interval(value, undefined)
    defined = draws[~np.isnan(draws)]
    if not len(defined) or len(defined) < _MIN_DEFINED * len(draws):
        reason = f"no interval: defined in only {len(defined)} of {len(draws)} resamples; a class has too few patients or tiles"
        return _without_interval(value, reason)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high))


def _without_interval(value: float, reason: str) -> Estimate:
    return Estimate(value=None if np.isnan(value) else value, low=None, high=None, reason=reason)
