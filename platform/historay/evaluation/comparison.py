"""Two models on the same test tiles: their differences, drawn on the same patients, with tests beside them."""

from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.errors import DataError
from historay.evaluation.delong import delong, difference_by_delong
from historay.evaluation.intervals import Draws, Estimate, Named, Unit, Units, draw, intervals_of, units_of
from historay.evaluation.judgement import chosen_classes, macro_means, tallies_of
from historay.evaluation.operating_point import OperatingPoint, decide
from historay.evaluation.predictions import Predictions
from historay.evaluation.reliability import calibration_tally


class Judged(NamedTuple):
    """A model's predictions on a split, and where it decides."""

    predictions: Predictions
    point: OperatingPoint | None


class PairedFigure(BaseModel):
    """One figure of both models, and the first's less the second's on the same resamples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: Estimate
    b: Estimate
    difference: Estimate
    p_value: float | None  # two-sided, of no difference, from the resamples; None where undefined


class PairedTest(BaseModel):
    """One closed-form test of no difference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    difference: Estimate | None
    p_value: float
    assumes: str


class Comparison(BaseModel):
    """What can be said of two models on one test split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_tiles: int
    unit: Unit
    num_units: int
    num_resamples: int
    figures: dict[str, PairedFigure]
    tests: tuple[PairedTest, ...]


def compare(a: Judged, b: Judged, num_resamples: int, seed: int) -> Comparison:
    """Compares two models tile by tile; DataError if they were not judged on the same tiles, labels and classes."""
    _refuse_other_tiles(a.predictions, b.predictions)
    # Rows in the same order: those of a split are sorted by tile_id wherever they are written.
    units = units_of(a.predictions.patients, len(a.predictions.labels), seed)
    both = [_drawn(judged, units, num_resamples, seed) for judged in (a, b)]
    names = [name for name in both[0].point if ":" not in name]

    def less_of(a: Named, b: Named) -> Named:
        return {name: a[name] - b[name] for name in names}

    less = Draws(
        point=less_of(both[0].point, both[1].point),
        resampled=less_of(both[0].resampled, both[1].resampled),
        left_out=less_of(both[0].left_out, both[1].left_out),
        num_bearing={},
        derive=None,
    )
    of_a, of_b, differences = (intervals_of(drawn, units) for drawn in (*both, less))
    figures = {
        name: PairedFigure(
            a=of_a[name], b=of_b[name], difference=found, p_value=_p_value(less.resampled[name], len(less.resampled[name]))
        )
        for name, found in differences.items()
    }
    return Comparison(
        num_tiles=len(a.predictions.labels),
        unit=units.unit,
        num_units=units.num_units,
        num_resamples=num_resamples,
        figures=figures,
        tests=_tests(a, b, units),
    )


def mcnemar(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> float:
    """Returns the exact two-sided p-value that two models err equally often on independent tiles (McNemar 1947)."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _refuse_other_tiles(a: Predictions, b: Predictions) -> None:
    if a.classes != b.classes:
        raise DataError(f"the first model's classes are {a.classes}, the second's {b.classes}; only equal ones can be compared")
    if not np.array_equal(a.tile_ids, b.tile_ids) or not np.array_equal(a.labels, b.labels):
        shared = len(np.intersect1d(a.tile_ids, b.tile_ids))
        raise DataError(
            f"the models were judged on other tiles: {len(a.tile_ids)} and {len(b.tile_ids)}, of which {shared} are the same; "
            "evaluate both on the same data set version"
        )


def _drawn(judged: Judged, units: Units, num_resamples: int, seed: int) -> Draws:
    """Equal units and seed draw the same patients, whatever is tallied."""
    predictions, point = judged
    predicted = decide(predictions.probabilities, predictions.classes, point)
    positive = None if point is None else predictions.classes.index(point.positive_class)
    tallies = [
        *tallies_of(predictions, predicted, point, units),
        calibration_tally(predictions.probabilities, predictions.labels, positive, units),
    ]
    return draw(tallies, units, num_resamples, seed, derive=lambda named: macro_means(named, len(predictions.classes), point))


def _p_value(differences: NDArray[np.float64], num_resamples: int) -> float | None:
    """Twice the share of resamples on the rarer side of 0, at least 1 / (R + 1): none of R draws does not mean never."""
    if np.isnan(differences).any():
        return None
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (num_resamples + 1))


def _tests(a: Judged, b: Judged, units: Units) -> tuple[PairedTest, ...]:
    labels, classes = a.predictions.labels, a.predictions.classes
    right = [decide(judged.predictions.probabilities, classes, judged.point) == labels for judged in (a, b)]
    found = [
        PairedTest(
            name="McNemar, accuracy",
            difference=None,
            p_value=mcnemar(*right),
            assumes="tiles are independent; too small a p-value where they are not",
        )
    ]
    if a.point is not None and b.point is not None and a.point.positive_class == b.point.positive_class:
        (k,) = chosen_classes(classes, a.point)
        scores = np.stack([judged.predictions.probabilities[:, k] for judged in (a, b)])
        by_patient = units.unit == "patient"
        difference, p_value = difference_by_delong(delong(labels == k, scores, units.group_N if by_patient else None))
        name, assumes = (
            ("Obuchowski, ROC-AUC", "patients are independent") if by_patient else ("DeLong, ROC-AUC", "tiles are independent")
        )
        found.append(PairedTest(name=name, difference=difference, p_value=p_value, assumes=assumes))
    return tuple(found)
