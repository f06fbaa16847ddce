"""Tiles numbered by patient or site, and means over tiles that do not all weigh the same, tallied together."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from historay.evaluation import metrics
from historay.evaluation.intervals import Columns, Named, Tally, Units, group_sums
from historay.evaluation.metrics import Floats

Weighted = tuple[NDArray[np.bool_] | NDArray[np.int64] | Floats, NDArray[np.bool_] | Floats]  # values (N,), weights (N,)


def weighted_means_tally(means: Mapping[str, Weighted], units: Units) -> Tally:
    """Tallies weighted means by name; NaN where all weights are 0."""
    columns = [np.asarray(part, dtype=np.float64) for value, weight in means.values() for part in (weight * value, weight)]

    def figures(sums_RD: Floats) -> Named:
        return {name: metrics.ratio(sums_RD[:, 2 * k], sums_RD[:, 2 * k + 1]) for k, name in enumerate(means)}

    weights: dict[str, list[Columns]] = {name: [slice(2 * k + 1, 2 * k + 2)] for k, name in enumerate(means)}
    return Tally(group_sums(np.column_stack(columns), units), figures, borne_by=weights)


def numbered(ids_N: NDArray[np.str_]) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Returns the distinct ids in order and each tile's index into them (N,), as ``np.unique`` does, which sorts all N.

    Of a million ids of 500 patients this takes 0.15 s instead of 0.5.
    """
    encoded = pa.array(ids_N.tolist(), pa.string()).dictionary_encode()
    names, order = np.unique(np.array(encoded.dictionary.to_pylist(), dtype=np.str_), return_inverse=True)
    return names, order.astype(np.int64)[encoded.indices.to_numpy()]


def patient_weights(patients: NDArray[np.str_]) -> Floats:
    """Returns weights (N,) under which each patient weighs the same: one over its number of tiles."""
    of_tile = numbered(patients)[1]
    return np.asarray(1 / np.bincount(of_tile)[of_tile])
