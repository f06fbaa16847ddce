"""The same figures for each site, scanner, magnification and stain, the worst of each, and how patients differ.

With many groups one is bad by chance alone. So the intervals of a column's m groups are at 1 - 0.05/m (Bonferroni: all hold
together 95 % of the time), and of the tests of each group against the rest the p-values are adjusted (Holm 1979).
Sites and scanners are named; patients never are.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.evaluation import metrics
from historay.evaluation.intervals import LEVEL, Estimate, Named, Tally, draw, estimate, mean_tally, units_of, wilson
from historay.evaluation.metrics import Floats
from historay.evaluation.operating_point import OperatingPoint, decide
from historay.evaluation.predictions import UNKNOWN, Predictions

Criterion = Literal["roc_auc", "accuracy"]

MIN_TILES = 30  # below, an interval is wider than the question
MIN_PATIENT_TILES = 10  # of a patient whose accuracy enters the spread: steps of at most a tenth
MAX_GROUPS = 20  # of a column, the largest; a hundred sites would make every interval useless
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Draws move a subgroup's AUC by less than 1e-4 where 256 bins stand for the probabilities; its value is exact.
_NUM_BINS = 256
# A p-value from resamples where the difference is seldom defined would be of another difference.
_MIN_DEFINED = 0.95


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Subgroup(_Result):
    """The tiles of one site, scanner, magnification or stain cluster."""

    name: str
    num_tiles: int
    num_patients: int | None  # None: unknown
    roc_auc: Estimate
    accuracy: Estimate
    sensitivity: Estimate | None  # at the operating point; None: there is none
    gap: Estimate  # of the column's criterion: this group less the rest, on the same resamples
    p_adjusted: float | None  # that there is no gap; Holm over the column


class FurtherGroup(_Result):
    """A group beyond the 20 largest: its figures alone, neither interval nor comparison."""

    name: str
    num_tiles: int
    roc_auc: float | None  # None: it lacks a class
    accuracy: float


class SubgroupColumn(_Result):
    """All large enough groups of one column, the worst first."""

    column: str
    criterion: Criterion  # by which they are ordered: ROC-AUC where every group has one
    level: float  # of each interval, so that all hold together
    groups: tuple[Subgroup, ...]
    further: tuple[FurtherGroup, ...] = ()  # beyond the 20 largest; in the rest of every comparison
    num_small: int  # groups of too few tiles; in the rest of every comparison
    num_unknown: int  # tiles of which the column knows nothing; in no comparison
    worst: str | None  # None: fewer than two groups
    worst_differs: bool  # from the rest, at 5 % after Holm

    @property
    def worse(self) -> tuple[str, ...]:
        """Groups shown to be worse than the rest, at 5 % after Holm; a noisier one may rank below them."""
        return tuple(group.name for group in self.groups if _is_worse(group))


class PatientSpread(_Result):
    """How patients differ: quantiles over patients, none of whom is named."""

    num_patients: int
    tiles: dict[str, float]  # tiles of a patient, by quantile such as ``0.5``
    num_judged: int  # patients of at least 10 tiles
    accuracy: dict[str, float] | None  # of the judged, by quantile; None: nobody has 10 tiles
    worst: Estimate | None = None  # the lowest accuracy of the judged; None: nobody was judged, or it was not yet kept


class SubgroupJudgement(_Result):
    """Every column that the data set has, and the spread over patients where they are known."""

    columns: tuple[SubgroupColumn, ...]
    patients: PatientSpread | None


class _Ranking(NamedTuple):
    """One class against the rest."""

    positive_N: NDArray[np.bool_]
    probability_N: Floats
    bin_N: NDArray[np.int64]  # 0 for the most probable

    def of(self, rows: NDArray[np.int64]) -> "_Ranking":
        """Takes some tiles; bins stay those of all."""
        return _Ranking(self.positive_N[rows], self.probability_N[rows], self.bin_N[rows])


class _Case(NamedTuple):
    """What the figures are made of."""

    predictions: Predictions
    rankings: tuple[_Ranking, ...]  # of the positive class, or of each
    right_N: NDArray[np.bool_]
    sensitive_N: NDArray[np.bool_] | None  # the positives; None: there is no operating point
    num_resamples: int
    seed: int


class _Gap(NamedTuple):
    """One group less the rest."""

    estimate: Estimate
    p_value: float | None


def judge_subgroups(
    predictions: Predictions,
    point: OperatingPoint | None,
    further: Mapping[str, NDArray[np.str_]],
    num_resamples: int,
    seed: int,
) -> SubgroupJudgement:
    """Judges each site, scanner and magnification that the predictions know, and each value of ``further`` columns (N,)."""
    labels, classes = predictions.labels, predictions.classes
    chosen = range(len(classes)) if point is None else [classes.index(point.positive_class)]
    case = _Case(
        predictions,
        tuple(_ranking(labels == k, predictions.probabilities[:, k]) for k in chosen),
        decide(predictions.probabilities, classes, point) == labels,
        None if point is None else labels == classes.index(point.positive_class),
        num_resamples,
        seed,
    )
    columns = {"site": predictions.sites, "scanner": predictions.scanners, "magnification": magnifications(predictions.mpps)}
    given = {name: values for name, values in (columns | dict(further)).items() if values is not None}
    patients = None if predictions.patients is None else patient_spread(predictions.patients, case.right_N)
    return SubgroupJudgement(
        columns=tuple(_judge_column(case, name, value_N) for name, value_N in given.items()), patients=patients
    )


def magnifications(mpps: NDArray[np.float64] | None) -> NDArray[np.str_] | None:
    """Names micrometres per pixel to two digits, since scanners of one magnification differ in the third."""
    if mpps is None:
        return None
    return np.array([UNKNOWN if np.isnan(mpp) else f"{mpp:.2g} µm/px" for mpp in mpps])


def patient_spread(patients: NDArray[np.str_], right_N: NDArray[np.bool_]) -> PatientSpread:
    """Returns quantiles over patients of their number of tiles and, of those with at least 10, of their accuracy."""
    _, patient_N, num_tiles = np.unique(patients, return_inverse=True, return_counts=True)
    accuracy = np.bincount(patient_N, right_N) / num_tiles
    judged = accuracy[num_tiles >= MIN_PATIENT_TILES]
    return PatientSpread(
        num_patients=len(num_tiles),
        tiles=_quantiles(num_tiles),
        num_judged=len(judged),
        accuracy=_quantiles(judged) if len(judged) else None,
        worst=_worst_patient(judged, num_tiles[num_tiles >= MIN_PATIENT_TILES]) if len(judged) else None,
    )


def holm(p_values: list[float | None]) -> list[float | None]:
    """Adjusts p-values for their number (Holm 1979); None, which is no test, stays None and does not count."""
    tested = sorted((p, row) for row, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, row) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[row] = largest
    return adjusted


def kish_number(tiles_G: NDArray[np.int64]) -> float:
    """Returns the effective number of patients where those with many tiles weigh more (Kish 1965), from tiles of each."""
    return float(tiles_G.sum() ** 2 / (tiles_G**2).sum())


def _judge_column(case: _Case, column: str, value_N: NDArray[np.str_]) -> SubgroupColumn:
    known_N = value_N != UNKNOWN
    values, counts = np.unique(value_N[known_N], return_counts=True)
    large = [str(values[row]) for row in np.argsort(-counts, kind="stable") if counts[row] >= MIN_TILES]
    names, others = large[:MAX_GROUPS], large[MAX_GROUPS:]
    level = 1 - (1 - LEVEL) / max(len(names), 1)
    members = [value_N == name for name in names]
    own = [_own_figures(case, member_N, level) for member_N in members]
    criterion: Criterion = "roc_auc" if all(found["roc_auc"].value is not None for found in own) else "accuracy"
    gaps = [_gap(case, criterion, member_N, known_N & ~member_N, level) for member_N in members]
    adjusted = holm([gap.p_value for gap in gaps])
    groups = [
        Subgroup(
            name=name,
            num_tiles=int(member_N.sum()),
            num_patients=_num_patients(case.predictions, member_N),
            roc_auc=found["roc_auc"],
            accuracy=found["accuracy"],
            sensitivity=found.get("sensitivity"),
            gap=gap.estimate,
            p_adjusted=p,
        )
        for name, member_N, found, gap, p in zip(names, members, own, gaps, adjusted, strict=True)
    ]
    ordered = sorted(groups, key=lambda group: (getattr(group, criterion).value, group.name))
    return SubgroupColumn(
        column=column,
        criterion=criterion,
        level=level,
        groups=tuple(ordered),
        further=tuple(_further(case, name, value_N == name) for name in others),
        num_small=len(values) - len(large),
        num_unknown=int((~known_N).sum()),
        worst=ordered[0].name if len(ordered) > 1 else None,
        worst_differs=len(ordered) > 1 and _is_worse(ordered[0]),
    )


def _worst_patient(accuracy_P: Floats, num_tiles_P: NDArray[np.int64]) -> Estimate:
    """Wilson's interval at a level at which those of all patients hold together, as the worst of many is bad by chance."""
    row, level = int(accuracy_P.argmin()), 1 - (1 - LEVEL) / len(accuracy_P)
    value, num = float(accuracy_P[row]), int(num_tiles_P[row])
    low, high = wilson(value * num, num, level)
    reason = f"Wilson's interval over {num} tiles at {100 * level:.3g} %: it holds for all {len(accuracy_P)} patients together"
    return Estimate(value=value, low=low, high=high, reason=reason)


def _is_worse(group: Subgroup) -> bool:
    return group.p_adjusted is not None and group.p_adjusted < 1 - LEVEL and (group.gap.value or 0.0) < 0


def _further(case: _Case, name: str, member_N: NDArray[np.bool_]) -> FurtherGroup:
    rows = np.flatnonzero(member_N)
    one_n = np.ones(len(rows), dtype=np.int64)
    parts = [metrics.roc_auc(ranking.positive_N[rows], ranking.probability_N[rows], one_n) for ranking in case.rankings]
    auc = float(np.mean(parts))  # of no meaning where one class is undefined
    return FurtherGroup(
        name=name,
        num_tiles=len(rows),
        roc_auc=None if np.isnan(auc) else auc,
        accuracy=float(case.right_N[rows].mean()),
    )


def _own_figures(case: _Case, member_N: NDArray[np.bool_], level: float) -> dict[str, Estimate]:
    """Figures of one group from its own patients alone, whose number decides how wide the intervals are."""
    rows, predictions = np.flatnonzero(member_N), case.predictions
    units = units_of(None if predictions.patients is None else predictions.patients[rows], len(rows), case.seed)
    tallies = [
        *_auc_tallies(case, rows, units.group_N, units.num_groups, ""),
        mean_tally("accuracy", case.right_N[rows], units),
    ]
    if case.sensitive_N is not None:
        tallies.append(mean_tally("sensitivity", case.right_N[rows], units, case.sensitive_N[rows]))
    absent = sorted(set(range(len(predictions.classes))) - set(predictions.labels[rows].tolist()))
    undefined = f"undefined: no tiles of class {', '.join(predictions.classes[k] for k in absent)} in this group"
    num, seed = case.num_resamples, case.seed
    return estimate(tallies, units, num, seed, lambda named: {"roc_auc": _macro(named, "")}, undefined=undefined, level=level)


def _gap(case: _Case, criterion: Criterion, member_N: NDArray[np.bool_], rest_N: NDArray[np.bool_], level: float) -> _Gap:
    """Compares a group with the rest on the same resamples of all patients, by Student's t on the bootstrap's deviation.

    The degrees of freedom are those of the side with effectively fewer patients, as for the difference of two means of
    unequal variance, where that is the careful choice; a percentile of the draws would be too sure of five patients.
    """
    if rest_N.sum() < MIN_TILES:
        return _Gap(Estimate(value=None, low=None, high=None, reason="fewer than 30 tiles in the rest"), None)
    units = units_of(case.predictions.patients, len(member_N), case.seed)
    sides = {"group:": member_N, "rest:": rest_N}
    if criterion == "accuracy":
        tallies = [mean_tally(f"{prefix}accuracy", case.right_N, units, side_N) for prefix, side_N in sides.items()]
    else:
        rows = {prefix: np.flatnonzero(side_N) for prefix, side_N in sides.items()}
        parts = [_auc_tallies(case, rows[p], units.group_N[rows[p]], units.num_groups, p) for p in sides]
        tallies = [tally for part in parts for tally in part]
    draws = draw(tallies, units, case.num_resamples, case.seed)
    point, drawn = (_difference(named, criterion) for named in (draws.point, draws.resampled))
    num_units = min(kish_number(np.bincount(units.group_N[side_N])) for side_N in sides.values())
    return _tested(float(point[0]), drawn, num_units, units.unit, level)


def _tested(value: float, drawn_R: Floats, num_units: float, unit: str, level: float) -> _Gap:
    defined = drawn_R[~np.isnan(drawn_R)]
    if np.isnan(value) or num_units < 2 or len(defined) < _MIN_DEFINED * len(drawn_R):
        drawn = f"defined in {len(defined)} of {len(drawn_R)} resamples"
        reason = f"not tested: effectively {num_units:.3g} {unit}s on one side, and {drawn}"
        return _Gap(Estimate(value=None if np.isnan(value) else value, low=None, high=None, reason=reason), None)
    # The bootstrap's variance lacks a factor n / (n - 1). Where all units agree it is 0, but half a unit may be wrong.
    deviation = max(float(defined.std()) * np.sqrt(num_units / (num_units - 1)), 0.5 / num_units * (np.ptp(defined) == 0))
    student = scipy.stats.t(num_units - 1)
    reach = float(student.ppf((1 + level) / 2)) * deviation
    low, high = max(value - reach, -1.0), min(value + reach, 1.0)
    return _Gap(Estimate(value=value, low=low, high=high), float(2 * student.sf(abs(value) / deviation)))


def _difference(named: Named, criterion: Criterion) -> Floats:
    if criterion == "accuracy":
        return named["group:accuracy"] - named["rest:accuracy"]
    return _macro(named, "group:") - _macro(named, "rest:")


def _ranking(positive_N: NDArray[np.bool_], probability_N: Floats) -> _Ranking:
    """Puts tiles into 256 bins of equal share by descending probability; ties stay together."""
    ranks = scipy.stats.rankdata(-probability_N)  # from 1, the mean of the tied
    return _Ranking(positive_N, probability_N, ((ranks - 0.5) * _NUM_BINS / len(ranks)).astype(np.int64))


def _auc_tallies(case: _Case, rows: NDArray[np.int64], group_n: NDArray[np.int64], num_groups: int, prefix: str) -> list[Tally]:
    """Tallies the AUC of each ranking on some rows; ``group_n`` are their units."""
    return [_auc_tally(f"{prefix}auc:{k}", ranking.of(rows), group_n, num_groups) for k, ranking in enumerate(case.rankings)]


def _auc_tally(name: str, ranking: _Ranking, group_n: NDArray[np.int64], num_groups: int) -> Tally:
    """Counts positives and negatives by bin, densely: a product of small matrices draws them all at once."""
    cell_n = ranking.bin_N + _NUM_BINS * ~ranking.positive_N
    num_cells = 2 * _NUM_BINS
    counts = np.bincount(group_n * num_cells + cell_n, minlength=num_groups * num_cells).reshape(num_groups, num_cells)
    exact = metrics.roc_auc(ranking.positive_N, ranking.probability_N, np.ones(len(group_n), dtype=np.int64))
    return Tally(
        counts.astype(np.float64),
        lambda sums_RD: {name: metrics.roc_auc_of_counts(sums_RD[:, :_NUM_BINS], sums_RD[:, _NUM_BINS:])},
        {name: float(exact)},
        {name: [slice(0, _NUM_BINS), slice(_NUM_BINS, None)]},
    )


def _macro(named: Named, prefix: str) -> Floats:
    return metrics.mean_over_classes([value for name, value in named.items() if name.startswith(f"{prefix}auc:")])


def _num_patients(predictions: Predictions, member_N: NDArray[np.bool_]) -> int | None:
    return None if predictions.patients is None else len(np.unique(predictions.patients[member_N]))


def _quantiles(values: NDArray[np.int64] | Floats) -> dict[str, float]:
    return {f"{level:g}": float(value) for level, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
