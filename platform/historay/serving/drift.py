"""Watches whether the tiles of the last while still look like those that the model was validated on.

Suffixes: B tiles, Q quantities, K classes, S stain figures, D bins.
"""

import threading

import numpy as np
from pydantic import BaseModel, ConfigDict

from historay.evaluation.drift import NUM_BINS, DriftReference, stability
from historay.evaluation.metrics import Floats


class QuantityDrift(BaseModel):
    """One quantity's population stability index over the window."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    quantity: str
    """Such as ``probability of tumour`` or ``optical density red``."""
    value: float
    """The index; 0: spread over the bins exactly as validation is."""
    expected: float
    """What it would be on average without drift, from the numbers of tiles alone."""
    limit: float
    """An alert is raised above it."""
    alert: bool
    """Whether more than chance and more than a trifle has changed."""


class DriftSummary(BaseModel):
    """What the window says of all quantities."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    num_tiles: int
    """Tiles in the window; below 100 there is no alert."""
    window: int
    """Most tiles that it holds."""
    quantities: tuple[QuantityDrift, ...]
    """One per class, then one per stain figure."""


class DriftMonitor:
    """Counts the last ``window`` tiles by bins, in memory of a fixed size; may be used from several threads."""

    def __init__(self, reference: DriftReference, window: int = 5000) -> None:
        num_Q = len(reference.quantities)
        self._reference, self._window = reference, window
        self._lock = threading.Lock()
        self._bins = np.zeros((window, num_Q), np.uint8)  # a ring: the oldest tile is overwritten
        self._counts_QD = np.zeros((num_Q, NUM_BINS), np.int64)
        self._next, self._num_tiles = 0, 0

    def observe(self, probabilities_BK: Floats, stain_BS: Floats) -> None:
        """Takes in calibrated probabilities and stain figures (TileStatistics.stain_BS) of answered tiles."""
        bins_BQ = self._reference.bins(probabilities_BK, stain_BS)[-self._window :].astype(np.uint8)
        with self._lock:
            rows = (self._next + np.arange(len(bins_BQ))) % self._window
            forgotten = max(self._num_tiles + len(rows) - self._window, 0)
            # The ring is full from its start on before anything is overwritten, so the last rows are the old ones.
            self._count(self._bins[rows[len(rows) - forgotten :]], -1)
            self._bins[rows] = bins_BQ
            self._count(bins_BQ, +1)
            self._next = int(self._next + len(rows)) % self._window
            self._num_tiles = min(self._num_tiles + len(rows), self._window)

    def summary(self) -> DriftSummary:
        """Compares the window with the reference."""
        with self._lock:
            counts_QD, num_tiles = self._counts_QD.copy(), self._num_tiles
        reference, num_Q = self._reference, len(self._reference.quantities)
        found = [stability(usual, counts_QD[q, : len(usual)], num_Q) for q, usual in enumerate(reference.counts)]
        quantities = tuple(
            QuantityDrift(quantity=name, **one._asdict()) for name, one in zip(reference.quantities, found, strict=True)
        )
        return DriftSummary(num_tiles=num_tiles, window=self._window, quantities=quantities)

    def _count(self, bins_BQ: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], sign: int) -> None:
        np.add.at(self._counts_QD, (np.arange(bins_BQ.shape[1]), bins_BQ), sign)
