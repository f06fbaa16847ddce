"""Means over tiles that do not all weigh the same, tallied together."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from historay.evaluation import metrics
from historay.evaluation.intervals import Columns, Named, Tally, Units, group_sums, numbered
from historay.evaluation.metrics import Floats

Weighted = tuple[NDArray[np.bool_] | NDArray[np.int64] | Floats, NDArray[np.bool_] | Floats]  # values (N,), weights (N,)


def weighted_means_tally(means: Mapping[str, Weighted], units: Units) -> Tally:
    """Tallies weighted means by name; NaN where all weights are 0."""
    # One column after the other: all of a million tiles at once would be some hundred MB.
    columns = (np.asarray(part, dtype=np.float64) for value, weight in means.values() for part in (weight * value, weight))

    def figures(sums_RD: Floats) -> Named:
        return {name: metrics.ratio(sums_RD[:, 2 * k], sums_RD[:, 2 * k + 1]) for k, name in enumerate(means)}

    weights: dict[str, list[Columns]] = {name: [slice(2 * k + 1, 2 * k + 2)] for k, name in enumerate(means)}
    return Tally(group_sums(columns, units), figures, borne_by=weights)


def patient_weights(patients: NDArray[np.str_]) -> Floats:
    """Returns weights (N,) under which each patient weighs the same: one over its number of tiles."""
    of_tile = numbered(patients)[1]
    return np.asarray(1 / np.bincount(of_tile)[of_tile])
