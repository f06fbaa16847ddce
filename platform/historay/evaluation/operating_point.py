"""The rule that turns probabilities into a class: for two classes a threshold chosen on validation, else the most probable."""

from typing import Literal, NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from historay.errors import DataError
from historay.evaluation.intervals import Units
from historay.evaluation.metrics import Floats

ThresholdRule = Literal["youden", "sensitivity", "specificity", "cost"]
_OTHER = {"sensitivity": "positive", "specificity": "negative"}  # which tiles a target is about


class OperatingPoint(BaseModel):
    """A two-class model calls a tile positive where ``probability(positive_class) >= threshold``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive_class: str
    threshold: float = Field(ge=0.0, le=1.0)
    rule: str  # how and on what the threshold was chosen, in words for a reader
    guarantee: str = "none was stated when the threshold was chosen"  # what holds beyond validation, in words


class Aim(BaseModel):
    """What a threshold is chosen for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: ThresholdRule = "youden"
    target: float = Field(default=0.95, gt=0, le=1)  # of sensitivity or specificity
    confidence: float | None = Field(default=None, gt=0, lt=1)  # that the target holds beyond validation; None: only on it
    cost_ratio: float = Field(default=1.0, gt=0)  # for cost: what a missed positive costs, in false alarms
    prevalence: float | None = Field(default=None, gt=0, lt=1)  # for cost: of positives in use; None: as in validation


class _Candidates(NamedTuple):
    """Thresholds in ascending order, the last may call nothing positive, and how many tiles stand at or above each."""

    threshold: Floats
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]


def choose_point(
    positive_class: str, positive_N: NDArray[np.bool_], probability_N: Floats, aim: Aim, units: Units
) -> OperatingPoint:
    """Chooses the threshold on validation tiles and says how, and what of it holds on others; ``units`` are of these tiles."""
    if aim.confidence is not None and aim.rule in _OTHER:
        return _guaranteed(positive_class, positive_N, probability_N, aim, aim.confidence, units)
    share = float(positive_N.mean())
    prevalence = share if aim.prevalence is None else aim.prevalence
    # With one class alone choose_threshold refuses before the weight is used.
    weight = aim.cost_ratio * prevalence / (1 - prevalence) if aim.rule == "cost" and prevalence < 1 else 1.0
    threshold = choose_threshold(positive_N, probability_N, aim.rule, aim.target, weight)
    stated = f"{prevalence:.3g}" + (" (that of validation)" if aim.prevalence is None else "")
    rules = {
        "youden": "largest sensitivity + specificity on validation",
        "sensitivity": f"sensitivity of at least {aim.target:.3g} on validation",
        "specificity": f"specificity of at least {aim.target:.3g} on validation",
        "cost": f"least cost on validation, a miss costing {aim.cost_ratio:.3g} false alarms, at a prevalence of {stated}",
    }
    guarantee = "none: it is the best on validation, so it is somewhat worse on other tiles"
    if aim.rule in _OTHER:
        guarantee = f"none: the {aim.rule} is reached on validation, and on other tiles missed about as often as not"
    return OperatingPoint(positive_class=positive_class, threshold=threshold, rule=rules[aim.rule], guarantee=guarantee)


def choose_threshold(
    positive_N: NDArray[np.bool_], probability_N: Floats, rule: ThresholdRule, target: float = 0.95, weight: float = 1.0
) -> float:
    """Chooses the threshold on validation tiles; DataError where one of the two classes has none.

    ``youden`` maximises sensitivity + specificity - 1 (Youden 1950), ``cost`` maximises weight * sensitivity + specificity,
    where the weight is the cost of a miss over that of a false alarm, times the odds of a positive; of equals both take the
    lowest threshold, since a missed cancer weighs more than a second look. ``sensitivity`` takes the highest threshold that
    keeps the target, ``specificity`` the lowest.
    """
    found = _candidates(positive_N, probability_N)
    num_positive, num_negative = int(positive_N.sum()), int((~positive_N).sum())
    if rule == "sensitivity":
        # The last that keeps the target; the first candidate always does, with a sensitivity of 1.
        chosen = int(np.flatnonzero(found.positives / num_positive >= target)[-1])
    elif rule == "specificity":
        keeps = np.flatnonzero((num_negative - found.negatives) / num_negative >= target)
        if not len(keeps):
            raise _unreachable("specificity", target, found.negatives[-1] / num_negative)
        chosen = int(keeps[0])
    else:
        # Over the common denominator, for youden in integers: rounding cannot break a tie.
        gain = (weight if rule == "cost" else 1) * found.positives * num_negative - found.negatives * num_positive
        chosen = int(np.argmax(gain))
    return _between(found.threshold, chosen)


def decide(probability_NK: Floats, classes: tuple[str, ...], point: OperatingPoint | None) -> NDArray[np.int64]:
    """Returns the class index of each row: at the operating point, or the most probable where there is none."""
    if point is None:
        return np.asarray(probability_NK.argmax(axis=1), dtype=np.int64)
    positive = classes.index(point.positive_class)
    return np.where(probability_NK[:, positive] >= point.threshold, positive, 1 - positive)


def effective_number(right_N: NDArray[np.bool_], group_N: NDArray[np.int64], confidence: float = 0.95) -> float:
    """Returns how many independent tiles would tell a proportion as well as these, whose groups' tiles resemble each other.

    The variance of independent tiles over that between groups, and less where few groups tell that variance, by Student's t
    (Korn and Graubard 1998). It is never more than the tiles, and with all right or all wrong, which tells nothing of how
    groups differ, never more than the groups.
    """
    groups, of_tile = np.unique(group_N, return_inverse=True)
    num, num_groups, share = len(right_N), len(groups), float(right_N.mean())
    if num_groups == num:
        return float(num)
    if num_groups < 2:
        return 1.0
    residual = np.bincount(of_tile, weights=right_N - share)
    between = float((residual**2).sum()) * num_groups / (num_groups - 1) / num**2
    if not 0 < share < 1:
        return float(num_groups)
    if between == 0:
        return float(num)
    reach = scipy.stats.t.ppf(confidence, num - 1) / scipy.stats.t.ppf(confidence, num_groups - 1)
    return float(min(num, share * (1 - share) / between * reach**2))


def tail_probability(num_right: NDArray[np.floating], num: float, target: float) -> Floats:
    """Returns how likely so many of ``num`` or more are right where ``target`` of all are; the numbers need not be whole.

    It is below 1 - confidence exactly where Clopper and Pearson's lower bound (1934) is above the target.
    """
    tail = scipy.special.betainc(np.maximum(num_right, 1e-300), np.maximum(num - num_right, 0) + 1, target)
    return np.where(num_right > 0, tail, 1.0)


def _guaranteed(
    positive_class: str, positive_N: NDArray[np.bool_], probability_N: Floats, aim: Aim, confidence: float, units: Units
) -> OperatingPoint:
    """Takes the furthest threshold whose exact lower bound keeps the target.

    Thresholds are tested in a fixed sequence, from where the target surely holds to where it does not, up to the first that
    fails: so all tests together err with 1 - confidence (Learn then Test, Angelopoulos et al. 2021). As the rate moves one
    way along the sequence, this is a tolerance bound (Wilks 1941), and its steps may be probabilities of the same tiles.
    """
    found = _candidates(positive_N, probability_N)
    about_N = positive_N if aim.rule == "sensitivity" else ~positive_N
    num = int(about_N.sum())
    right = found.positives if aim.rule == "sensitivity" else num - found.negatives
    effective, chosen = float(num), 0
    # What patients differ in depends on the threshold, and the threshold on it: smaller numbers until both agree.
    for _ in range(5):
        keeps = np.flatnonzero(tail_probability(right * (effective / num), effective, aim.target) <= 1 - confidence)
        if not len(keeps):
            raise _too_few(aim, confidence, num, effective)
        chosen = int(keeps[-1] if aim.rule == "sensitivity" else keeps[0])
        is_right = (probability_N[about_N] >= found.threshold[chosen]) == (aim.rule == "sensitivity")
        now = min(effective, effective_number(is_right, units.group_N[about_N], confidence))
        if units.unit == "tile" or now == effective:
            break
        effective = now
    kind, sure = _OTHER[aim.rule], f"with {confidence:.3g} confidence the {aim.rule} is at least {aim.target:.3g}"
    if units.unit == "tile":
        basis = f"exact over {num} {kind} tiles if they are independent; patients are unknown, so whether they are is not known"
    else:
        basis = f"the {num} {kind} tiles of validation count as {effective:.0f} independent ones, by how their patients differ"
        basis += "; not exact, as that is itself estimated"
    return OperatingPoint(
        positive_class=positive_class,
        threshold=_between(found.threshold, chosen),
        rule=f"{aim.rule} of at least {aim.target:.3g} with {confidence:.3g} confidence",
        guarantee=f"{sure} on patients and tiles like those of validation ({basis})",
    )


def _candidates(positive_N: NDArray[np.bool_], probability_N: Floats) -> _Candidates:
    num_positive, num_negative = int(positive_N.sum()), int((~positive_N).sum())
    if not num_positive or not num_negative:
        raise DataError(
            f"validation has {num_positive} positive and {num_negative} negative tiles; "
            "a threshold needs both, so split the data set so that each class stands in val"
        )
    ends = [1.0] if probability_N.max() < 1 else []
    threshold = np.unique(np.concatenate([probability_N, ends]))
    position_N = np.searchsorted(threshold, probability_N)
    return _Candidates(
        threshold,
        _at_or_above(position_N[positive_N], len(threshold)),
        _at_or_above(position_N[~positive_N], len(threshold)),
    )


def _at_or_above(position: NDArray[np.intp], num_candidates: int) -> NDArray[np.int64]:
    """Counts, for each candidate in ascending order, how many stand at or above it."""
    counts = np.bincount(position, minlength=num_candidates)
    return np.asarray(counts[::-1].cumsum()[::-1], dtype=np.int64)


def _between(candidates: Floats, chosen: int) -> float:
    """Moves halfway to the next lower probability: decisions stay, and the last bit of a logit no longer flips one."""
    if chosen == 0:
        return float(candidates[0])
    middle = float((candidates[chosen - 1] + candidates[chosen]) / 2)
    return middle if middle > candidates[chosen - 1] else float(candidates[chosen])


def _unreachable(name: str, target: float, at_one: float) -> DataError:
    return DataError(
        f"no threshold reaches a {name} of {target:.3g}: {at_one:.1%} of the negative tiles of validation have a probability "
        "of exactly 1; calibrate the model or lower the target"
    )


def _too_few(aim: Aim, confidence: float, num: int, effective: float) -> DataError:
    kind = _OTHER[aim.rule]
    needed = "infinitely many" if aim.target == 1 else f"{int(np.ceil(np.log(1 - confidence) / np.log(aim.target)))}"
    counted = f"count as {effective:.0f} independent ones" if effective < num else "are too few"
    return DataError(
        f"no threshold keeps a {aim.rule} of {aim.target:.3g} with {confidence:.3g} confidence: the {num} {kind} tiles of "
        f"validation {counted}, and at least {needed} are needed; add patients to val, lower the target or drop the confidence"
    )
