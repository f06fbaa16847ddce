"""The tiles that a report shows, each beside where in it the network found its evidence."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from historay.data.dataset import Dataset
from historay.data.loading import load_tiles
from historay.evaluation.assessment import Assessment
from historay.evaluation.examples import Example, describe, pick_examples
from historay.evaluation.page import Pictures
from historay.evaluation.slices import NUM_EXAMPLES, ErrorSlice
from historay.models.gradcam import grad_cam, overlay
from historay.training.run import RunRecord

_BATCH = 64  # Grad-CAM keeps what the backward pass needs


def take_pictures(
    model: nn.Module, record: RunRecord, dataset: Dataset, assessment: Assessment, slices: Sequence[ErrorSlice]
) -> Pictures:
    """Reads and describes the example tiles, and those typical of each error slice with some of its errors."""
    examples = pick_examples(assessment.test, assessment.judgement.predicted, assessment.confidence_N)
    of_slices = [
        list(dict.fromkeys([*one.typical_rows[: NUM_EXAMPLES // 2], *one.wrong_rows[:NUM_EXAMPLES]])) for one in slices
    ]
    of_examples = [chosen.tolist() for chosen in examples.values()]
    rows = sorted({int(row) for chosen in [*of_examples, *of_slices] for row in chosen})
    found = _describe(model, record, dataset, assessment, rows)
    return Pictures(
        examples={title: [found[int(row)] for row in chosen] for title, chosen in examples.items()},
        slices=[[found[row] for row in chosen] for chosen in of_slices],
    )


def _describe(
    model: nn.Module, record: RunRecord, dataset: Dataset, assessment: Assessment, rows: list[int]
) -> dict[int, Example]:
    test, predicted = assessment.test, assessment.judgement.predicted
    tiles = load_tiles(dataset, "test", test.tile_ids[rows].tolist(), record.preprocessing.input_px)
    tiles_BHWC = np.stack([tiles[str(test.tile_ids[row])] for row in rows])
    heat_BHW = _heat(model, record, tiles_BHWC, predicted[rows])
    return {
        row: describe(test, predicted, row, tiles_BHWC[number], overlay(tiles_BHWC[number], heat_BHW[number]))
        for number, row in enumerate(rows)
    }


def _heat(
    model: nn.Module, record: RunRecord, tiles_BHWC: NDArray[np.uint8], class_B: NDArray[np.int64]
) -> NDArray[np.float32]:
    starts = range(0, len(tiles_BHWC), _BATCH)
    parts = [
        grad_cam(model, tiles_BHWC[start : start + _BATCH], record.preprocessing, class_B[start : start + _BATCH])
        for start in starts
    ]
    return np.concatenate(parts)
