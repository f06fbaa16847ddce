"""Whether what is served still looks like validation: probabilities and stains, compared by the population stability index.

The index (PSI; Siddiqi 2006) of n tiles with a reference of m is above 0 even without drift: about (bins - 1)(1/n + 1/m),
and divided by 1/n + 1/m it is near to chi-squared with bins - 1 degrees of freedom (Yurdakul and Naranjo 2020). Both are
taken into account here; what is not is that the tiles of one slide are alike, so that a window of few slides drifts by itself.

Suffixes: N tiles of the reference, B tiles served, Q quantities, K classes, S stain figures, D bins.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.evaluation.metrics import Floats
from historay.evaluation.tile_statistics import STAIN_NAMES

NUM_BINS = 10
MIN_TILES = 100  # served; below, chi-squared is no good approximation: 10 tiles a bin
_FALSE_ALARMS = 0.001  # chance of any alert at one look, without drift and with independent tiles
_NOTABLE = 0.1  # index beyond the expected one from which a change matters (Siddiqi 2006: 0.1 some, 0.25 much)
_PRIOR = 0.5  # added to each count, so that an empty bin is not infinite (Jeffreys)


class DriftReference(BaseModel):
    """How validation spreads over the bins of each quantity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantities: tuple[str, ...]  # probability of each class, then the stain figures
    edges: tuple[tuple[float, ...], ...]  # inner edges of each quantity's bins: deciles, fewer where values repeat
    counts: tuple[tuple[int, ...], ...]  # of validation tiles in each bin

    def bins(self, probabilities_BK: Floats, stain_BS: Floats) -> NDArray[np.int64]:
        """Returns each tile's bin of each quantity (B, Q)."""
        value_BQ = np.concatenate([probabilities_BK, stain_BS], axis=1)
        found = [np.searchsorted(edges, value_BQ[:, q], side="right") for q, edges in enumerate(self.edges)]
        return np.stack(found, axis=1)


class Stability(NamedTuple):
    """One quantity's index beside what it would be without drift."""

    value: float
    expected: float
    limit: float  # beyond it there is an alert
    alert: bool


def fit_drift_reference(probabilities_NK: Floats, stain_NS: Floats, classes: tuple[str, ...]) -> DriftReference:
    """Bins the calibrated probabilities and the stain figures of the validation split."""
    value_NQ = np.concatenate([probabilities_NK, stain_NS], axis=1)
    inner = np.arange(1, NUM_BINS) / NUM_BINS
    edges = [np.unique(np.quantile(column, inner)) for column in value_NQ.T]
    counts = [
        np.bincount(np.searchsorted(edge, column, side="right"), minlength=len(edge) + 1)
        for edge, column in zip(edges, value_NQ.T, strict=True)
    ]
    return DriftReference(
        quantities=(*(f"probability of {name}" for name in classes), *STAIN_NAMES),
        edges=tuple(tuple(edge.tolist()) for edge in edges),
        counts=tuple(tuple(count.tolist()) for count in counts),
    )


def stability(reference: tuple[int, ...], served_D: NDArray[np.int64], num_quantities: int) -> Stability:
    """Compares the counts of one quantity; ``num_quantities`` that are looked at share the chance of a false alarm."""
    reference_D, num_D = np.array(reference), len(reference)
    num_reference, num_served = int(reference_D.sum()), int(served_D.sum())
    scale = 1 / max(num_served, 1) + 1 / num_reference
    share_D = (served_D + _PRIOR) / (num_served + _PRIOR * num_D)
    usual_D = (reference_D + _PRIOR) / (num_reference + _PRIOR * num_D)
    value = float(((share_D - usual_D) * np.log(share_D / usual_D)).sum())
    expected = (num_D - 1) * scale
    limit = max(float(scipy.stats.chi2.isf(_FALSE_ALARMS / num_quantities, num_D - 1)) * scale, expected + _NOTABLE)
    return Stability(value, expected, limit, num_served >= MIN_TILES and value > limit)
