"""How far a class is told without looking at tissue: linear models on colour, compression, size and origin of a tile.

A network that is not clearly better than the best of these may have learned stain, scanner or archive for the class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from historay.evaluation.jpeg_artefacts import Header, jpeg_artefacts, read_header
from historay.evaluation.metrics import Floats

NUM_BINS = 16
MAX_TILES = 20_000  # to fit a baseline on; more do not change a linear model on so few numbers
_STEP = 2  # every second row and column: a quarter of the time, and a histogram of 2,304 pixels differs little
_ROUNDING = 1e-9  # batches of other sizes are summed in another order; standardised, that noise would count as a feature
_FORMATS = ("JPEG", "PNG", "TIFF")


class Metadata(NamedTuple):
    """What is known of B tiles beside their pixels and bytes."""

    mpp: list[float | None]  # micrometres per pixel
    site: list[str | None]
    sites: tuple[str, ...]  # all sites of the data set, the same for every batch; empty if none is known


class Tiles(NamedTuple):
    """What a family may look at."""

    pixels_BHWC: NDArray[np.uint8]
    encoded: list[bytes]
    headers: list[Header]
    metadata: Metadata


class Family(NamedTuple):
    """One kind of shortcut: its name in a sentence, and its features (B, F)."""

    words: str
    features: Callable[[Tiles], Floats]


@dataclass(frozen=True)
class Baseline:
    """A linear model on one family's features, or the class frequencies where these say nothing."""

    frequency_K: Floats  # in training
    informative_F: NDArray[np.bool_]  # which features differ between training tiles
    model: Pipeline | None
    nothing_to_say: str | None  # why the baseline gives the class frequencies; None if it does not

    def probabilities(self, features_NF: Floats) -> Floats:
        """Returns (N, K) over all classes of the data set; 0 for one that training does not have."""
        if self.model is None:
            return np.tile(self.frequency_K, (len(features_NF), 1))
        probability_NK = np.zeros((len(features_NF), len(self.frequency_K)))
        probability_NK[:, self.model[-1].classes_] = self.model.predict_proba(features_NF[:, self.informative_F])
        return probability_NK


def extract(tiles_BHWC: NDArray[np.uint8], encoded: list[bytes], metadata: Metadata) -> dict[str, Floats]:
    """Returns the features (B, F) of every family of RGB tiles, by the family's name."""
    tiles = Tiles(tiles_BHWC, encoded, [read_header(data) for data in encoded], metadata)
    return {name: family.features(tiles) for name, family in FAMILIES.items()}


def fit_baseline(features_NF: Floats, label_N: NDArray[np.int64], num_classes: int) -> Baseline:
    """Standardised features into a logistic regression (scikit-learn, C=1): convex, so it needs no seed."""
    frequency_K = np.bincount(label_N, minlength=num_classes) / len(label_N)
    informative_F = np.ptp(features_NF, axis=0) > _ROUNDING * (1 + np.abs(features_NF).max(axis=0))
    reason = _nothing_to_say(frequency_K, informative_F)
    if reason is not None:
        return Baseline(frequency_K, informative_F, None, reason)
    # Of two classes Newton's method is 5 times as fast as L-BFGS; of many its Hessian of (K F)^2 numbers is what is slow.
    solver = "newton-cholesky" if num_classes == 2 else "lbfgs"
    model = make_pipeline(StandardScaler(), LogisticRegression(solver=solver, max_iter=5000))
    return Baseline(frequency_K, informative_F, model.fit(features_NF[:, informative_F], label_N), None)


def colour_histograms(tiles_BHWC: NDArray[np.uint8]) -> Floats:
    """Returns the share of pixels in each of 16 bins of R, G and B: (B, 48); blind to where a pixel stands."""
    pixels = tiles_BHWC[:, ::_STEP, ::_STEP]
    num, rows, columns, channels = pixels.shape
    bins = (pixels // (256 // NUM_BINS)).astype(np.int64)
    bins += NUM_BINS * (np.arange(num)[:, None, None, None] * channels + np.arange(channels))
    counts = np.bincount(bins.ravel(), minlength=num * channels * NUM_BINS)
    return np.asarray(counts.reshape(num, channels * NUM_BINS) / (rows * columns))


def _nothing_to_say(frequency_K: Floats, informative_F: NDArray[np.bool_]) -> str | None:
    if np.count_nonzero(frequency_K) < 2:
        return "all training tiles are of one class"
    if not informative_F.any():
        return "it is the same for every training tile" if len(informative_F) else "it is not known"
    return None


def _channel_means(tiles: Tiles) -> Floats:
    return np.asarray(tiles.pixels_BHWC[:, ::_STEP, ::_STEP].mean(axis=(1, 2)))


def _size_and_metadata(tiles: Tiles) -> Floats:
    """Log width, height and bytes, log mpp with a flag where it is unknown, and one column a format: (B, 8)."""
    sizes = np.log([[header.width, header.height] for header in tiles.headers])
    num_bytes = np.log([[len(data)] for data in tiles.encoded])
    known = [mpp is not None and mpp > 0 for mpp in tiles.metadata.mpp]
    mpp = np.array([[np.log(mpp or 1.0) if ok else 0.0, not ok] for mpp, ok in zip(tiles.metadata.mpp, known, strict=True)])
    formats = np.array([[header.format == name for name in _FORMATS] for header in tiles.headers])
    return np.hstack([sizes, num_bytes, mpp, formats])


def _site(tiles: Tiles) -> Floats:
    """One column a site, from which the regression gives the frequencies of the classes there; none if no site is known."""
    sites = np.array(tiles.metadata.sites, dtype=object)
    return np.asarray(np.array(tiles.metadata.site, dtype=object)[:, None] == sites[None, :], dtype=np.float64)


FAMILIES: dict[str, Family] = {
    "colour_histogram": Family("a colour histogram", lambda tiles: colour_histograms(tiles.pixels_BHWC)),
    "channel_means": Family("the mean of each colour channel", _channel_means),
    "jpeg_artefacts": Family(
        "compression and noise", lambda tiles: jpeg_artefacts(tiles.pixels_BHWC, tiles.encoded, tiles.headers)
    ),
    "metadata": Family("size, format and resolution", _size_and_metadata),
    "site": Family("the site's name", _site),
}
