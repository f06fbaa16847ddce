"""The rule that turns probabilities into a class: for two classes a threshold chosen on validation, else the most probable."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from historay.errors import DataError

ThresholdRule = Literal["youden", "sensitivity"]


class OperatingPoint(BaseModel):
    """A two-class model calls a tile positive where ``probability(positive_class) >= threshold``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive_class: str
    threshold: float = Field(ge=0.0, le=1.0)
    rule: str  # how and on what the threshold was chosen, in words for a reader


def choose_threshold(
    positive_N: NDArray[np.bool_], probability_N: NDArray[np.float64], rule: ThresholdRule, target_sensitivity: float = 0.95
) -> float:
    """Chooses the threshold on validation tiles; DataError where one of the two classes has none.

    ``youden`` maximises sensitivity + specificity - 1 (Youden 1950), and of equals takes the lowest threshold, since a
    missed cancer weighs more than a second look. ``sensitivity`` takes the highest threshold that keeps the target.
    """
    num_positive, num_negative = int(positive_N.sum()), int((~positive_N).sum())
    if not num_positive or not num_negative:
        raise DataError(
            f"validation has {num_positive} positive and {num_negative} negative tiles; "
            "a threshold needs both, so split the data set so that each class stands in val"
        )
    candidates, position_N = np.unique(probability_N, return_inverse=True)  # ascending
    true_positives = _at_or_above(position_N[positive_N], len(candidates))
    false_positives = _at_or_above(position_N[~positive_N], len(candidates))
    if rule == "sensitivity":
        # The last that keeps the target; the first candidate always does, with a sensitivity of 1.
        chosen = int(np.flatnonzero(true_positives / num_positive >= target_sensitivity)[-1])
    else:
        # J over the common denominator, in integers: rounding cannot break a tie.
        chosen = int(np.argmax(true_positives * num_negative - false_positives * num_positive))
    return _between(candidates, chosen)


def decide(probability_NK: NDArray[np.float64], classes: tuple[str, ...], point: OperatingPoint | None) -> NDArray[np.int64]:
    """Returns the class index of each row: at the operating point, or the most probable where there is none."""
    if point is None:
        return np.asarray(probability_NK.argmax(axis=1), dtype=np.int64)
    positive = classes.index(point.positive_class)
    return np.where(probability_NK[:, positive] >= point.threshold, positive, 1 - positive)


def _at_or_above(position: NDArray[np.intp], num_candidates: int) -> NDArray[np.int64]:
    """Counts, for each candidate in ascending order, how many stand at or above it."""
    counts = np.bincount(position, minlength=num_candidates)
    return np.asarray(counts[::-1].cumsum()[::-1], dtype=np.int64)


def _between(candidates: NDArray[np.float64], chosen: int) -> float:
    """Moves halfway to the next lower probability: decisions stay, and the last bit of a logit no longer flips one."""
    if chosen == 0:
        return float(candidates[0])
    middle = float((candidates[chosen - 1] + candidates[chosen]) / 2)
    return middle if middle > candidates[chosen - 1] else float(candidates[chosen])
