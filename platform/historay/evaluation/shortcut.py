"""How far colour alone gets: a linear model on colour histograms, which sees neither nuclei nor glands.

A network that is not clearly better than this may have learned the stain or the scanner for the class.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from historay.errors import DataError
from historay.evaluation.metrics import Floats

NUM_BINS = 16
_STEP = 2  # every second row and column: a quarter of the time, and a histogram of 2,304 pixels differs little


def colour_histograms(tiles_BHWC: NDArray[np.uint8]) -> Floats:
    """Returns the share of pixels in each of 16 bins of R, G and B: (B, 48); blind to where a pixel stands."""
    pixels = tiles_BHWC[:, ::_STEP, ::_STEP]
    num, rows, columns, channels = pixels.shape
    bins = (pixels // (256 // NUM_BINS)).astype(np.int64)
    bins += NUM_BINS * (np.arange(num)[:, None, None, None] * channels + np.arange(channels))
    counts = np.bincount(bins.ravel(), minlength=num * channels * NUM_BINS)
    return np.asarray(counts.reshape(num, channels * NUM_BINS) / (rows * columns))


class ColourModel:
    """Standardised colour histograms into a logistic regression (scikit-learn, C=1): convex, so it needs no seed."""

    def __init__(self, features_NF: Floats, labels_N: NDArray[np.int64], num_classes: int) -> None:
        if len(np.unique(labels_N)) < 2:
            raise DataError(f"train has {len(labels_N)} tiles of one class only; the colour baseline needs two")
        self._num_classes = num_classes
        self._model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        self._model.fit(features_NF, labels_N)

    def probabilities(self, features_NF: Floats) -> Floats:
        """Returns (N, K) over all classes of the data set; 0 for one that train does not have."""
        probability_NK = np.zeros((len(features_NF), self._num_classes))
        probability_NK[:, self._model[-1].classes_] = self._model.predict_proba(features_NF)
        return probability_NK


def gather_histograms(
    batches: Iterable[tuple[list[str], NDArray[np.uint8], NDArray[np.int64]]], max_tiles: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Returns histograms (N, 48) and labels (N,) of the first ``max_tiles`` tiles; shards were shuffled at ingest."""
    features: list[Floats] = []
    labels: list[NDArray[np.int64]] = []
    num_tiles = 0
    for _, tiles_BHWC, labels_B in batches:
        wanted = min(len(labels_B), max_tiles - num_tiles)
        features.append(colour_histograms(tiles_BHWC[:wanted]))
        labels.append(labels_B[:wanted])
        num_tiles += wanted
        if num_tiles == max_tiles:
            break
    return np.concatenate(features), np.concatenate(labels)
