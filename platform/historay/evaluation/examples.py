"""Which test tiles a report shows: the surest errors, the surest hits, and the ones that the model was least sure of."""

import base64
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from historay.data.decode import encode_png
from historay.evaluation.metrics import Floats
from historay.evaluation.predictions import Predictions

_NUM_ERRORS, _NUM_HITS, _NUM_UNSURE = 16, 8, 8


class Example(NamedTuple):
    """One tile to show; the pictures are data URIs, encoded anew, so that no comment of the source travels along."""

    tile_id: str
    true: str
    named: str
    probability: float  # of the class named
    image: str
    heat: str  # the tile under its Grad-CAM of the class named


def pick_examples(
    predictions: Predictions, predicted_N: NDArray[np.int64], confidence_N: Floats
) -> dict[str, NDArray[np.int64]]:
    """Returns rows by title: errors and hits, the surest first and shared out over the true classes, and the least sure."""
    wrong_N = predicted_N != predictions.labels
    return {
        "Errors, the surest": surest(predictions, confidence_N, np.flatnonzero(wrong_N), _NUM_ERRORS),
        "Named rightly, the surest": surest(predictions, confidence_N, np.flatnonzero(~wrong_N), _NUM_HITS),
        "The least sure": surest(predictions, -confidence_N, np.arange(len(wrong_N)), _NUM_UNSURE),
    }


def surest(predictions: Predictions, confidence_N: Floats, row_M: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """Returns the ``num`` rows with the highest confidence, evenly over the true classes; ties by tile_id."""
    ordered = row_M[np.lexsort((predictions.tile_ids[row_M], -confidence_N[row_M]))]
    labels = predictions.labels[ordered]
    # The n-th surest of each class comes before the n+1-th of any.
    rank = np.zeros(len(ordered), dtype=np.int64)
    for k in np.unique(labels):
        rank[labels == k] = np.arange((labels == k).sum())
    chosen = ordered[np.argsort(rank, kind="stable")[:num]]
    return chosen[np.lexsort((-confidence_N[chosen], predictions.labels[chosen]))]


def describe(
    predictions: Predictions,
    predicted_N: NDArray[np.int64],
    row: int,
    tile_HWC: NDArray[np.uint8],
    heat_HWC: NDArray[np.uint8],
) -> Example:
    """Describes one tile for the page."""
    return Example(
        tile_id=str(predictions.tile_ids[row]),
        true=predictions.classes[predictions.labels[row]],
        named=predictions.classes[predicted_N[row]],
        probability=float(predictions.probabilities[row, predicted_N[row]]),
        image=data_uri(tile_HWC),
        heat=data_uri(heat_HWC),
    )


def data_uri(pixels_HWC: NDArray[np.uint8]) -> str:
    """Returns an image as a PNG data URI."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels_HWC)).decode()}"
