"""What serving compares its input with, fitted on the validation split: the input gate, and the reference for drift."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from historay.data.dataset import Dataset
from historay.data.loading import iter_tiles
from historay.errors import DataError
from historay.evaluation.drift import DriftReference, fit_drift_reference
from historay.evaluation.predictions import Predictions
from historay.evaluation.tile_statistics import TileStatistics, join_statistics, tile_statistics
from historay.log import log_event
from historay.models.input_gate import FeatureSpace, InputGate, fit_input_gate

_BATCH = 256


class References(NamedTuple):
    """What goes into the bundle; no gate where validation has too few tiles for one."""

    gate: InputGate | None
    space: FeatureSpace | None
    drift: DriftReference


def fit_references(
    dataset: Dataset, calibrated: Predictions, features_NF: NDArray[np.float32], input_px: int, seed: int
) -> References:
    """Fits both to all validation tiles; probabilities are the calibrated ones, rows in the order of their tile_ids."""
    statistics = read_statistics(dataset, "val", input_px)
    drift = fit_drift_reference(calibrated.probabilities, statistics.stain_BS, calibrated.classes)
    try:
        gate, space = fit_input_gate(statistics, features_NF, calibrated.patients, seed=seed)
    except DataError as error:
        log_event("evaluate: no input gate", why=str(error))
        return References(None, None, drift)
    return References(gate, space, drift)


def read_statistics(dataset: Dataset, split: str, input_px: int) -> TileStatistics:
    """Decodes a split once and measures each tile, in the order of tile_ids."""
    parts, tile_ids = [], []
    for batch in iter_tiles(dataset, split, input_px, _BATCH):
        parts.append(tile_statistics(batch.tiles_BHWC))
        tile_ids += batch.tile_ids
    order = np.argsort(np.array(tile_ids))
    return TileStatistics(*(column[order] for column in join_statistics(parts)))
