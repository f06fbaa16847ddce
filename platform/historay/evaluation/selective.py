"""Answering only where confident: the risk-coverage curve, and a threshold with a bound on the error of what is answered.

The threshold is the lowest confidence at which the error rate among accepted tiles is at most the target with probability
1 - delta over the draw of validation. It is found by fixed-sequence testing (Learn then Test; Angelopoulos et al. 2021): from
five fixed starting points, each with delta / 5, the thresholds of a fixed grid are tested downwards until one fails. That is
tighter than the union bound over log2(N) thresholds of SGR (Geifman and El-Yaniv 2017), and a grid fixed beforehand keeps each
test valid, as thresholds taken from the tiles would not.

Single tiles are tested by the exact binomial tail, as SGR does. Tiles of one patient err together, so where patients are known
each gives its own error rate, and their mean is tested by betting on it (Waudby-Smith and Ramdas 2024): a mixture of fixed
bets, so that the order of the patients does not matter.
"""

from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from historay.evaluation import metrics
from historay.evaluation.intervals import Estimate, Named, Tally, Unit, Units, cell_counts, estimate, numbered
from historay.evaluation.metrics import Floats
from historay.evaluation.operating_point import OperatingPoint, decide
from historay.evaluation.predictions import Predictions
from historay.evaluation.weighting import Weighted, patient_weights, weighted_means_tally

Bools = NDArray[np.bool_]

_STARTS = (0.99, 0.95, 0.9, 0.75, 0.5)
# Doubts from 0.001 to 1 in 60 equal steps of the logarithm, 12 % each, and the starting points.
_GRID = np.unique(np.concatenate([1 - np.geomspace(1e-3, 1, 61), _STARTS]))[::-1]
# Shares of the largest bet that cannot lose more than all; 20 cost a factor of at most 20, mostly 5, in the p-value.
_BETS = np.linspace(0.05, 1, 20)
# A tie is resolved as the mean over its orders, so bins of equal share change the AURC of a draw by less than 1e-4.
_MAX_BINS = 512
_CURVE_POINTS = 200  # as many as a plot can show

_METHODS = {
    "tile": "fixed-sequence testing with the exact binomial tail over tiles",
    "patient": "fixed-sequence testing by betting on the means of patients",
}
_REUSED = "Where validation also chose the checkpoint, the temperature or the operating point, it is a little too hopeful."
_CONDITIONS = {
    "tile": "of the same origin, only if tiles are independent. Patients are unknown: where tiles of a patient err together "
    f"the bound is too hopeful. {_REUSED}",
    "patient": "of new patients, as the mean of the patients' own error rates, if they are drawn as those of validation were. "
    f"{_REUSED}",
}


class RiskCoverage(NamedTuple):
    """The error rate among the accepted tiles (T,) by the share accepted (T,), from the most confident tile to all."""

    coverage_T: Floats
    risk_T: Floats
    threshold_T: Floats  # accepted is what is at least so confident
    aurc: float  # mean risk over all numbers of accepted tiles
    excess_aurc: float  # over that of a confidence which ranks all errors last


class SelectiveRule(BaseModel):
    """Accepts a tile where its confidence is at least ``threshold``, with a bound on the error rate of what is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_risk: float = Field(gt=0.0, lt=1.0)
    delta: float = Field(gt=0.0, lt=1.0)
    threshold: float | None  # None: no threshold can be promised, see ``guarantee``
    coverage: float | None  # share accepted on validation, of tiles, or the mean over patients
    risk: float | None  # error rate among those, of tiles, or the mean over patients with any
    unit: Unit
    num_units: int
    method: str
    guarantee: str  # or why there is none

    def accepts(self, confidence_N: Floats) -> Bools:
        """Returns which tiles are answered (N,); none without a threshold."""
        return np.asarray(confidence_N >= (np.inf if self.threshold is None else self.threshold))


def confidence(probability_NK: Floats, classes: tuple[str, ...], point: OperatingPoint | None) -> Floats:
    """Returns how sure each decision is (N,), 0 to 1: the greatest probability, or the distance to the operating point.

    The distance is the share of the way from the threshold to 0 or to 1, whichever the probability lies towards.
    """
    if point is None:
        return np.asarray(probability_NK.max(axis=1))
    probability_N, threshold = probability_NK[:, classes.index(point.positive_class)], point.threshold
    above = metrics.ratio(probability_N - threshold, np.full(len(probability_N), 1 - threshold))
    below = metrics.ratio(threshold - probability_N, np.full(len(probability_N), threshold))
    # At a threshold of 1 (or 0) all that lies above (below) it is on it, so nothing is sure.
    return np.nan_to_num(np.where(probability_N >= threshold, above, below))


def risk_coverage(confidence_N: Floats, wrong_N: Bools) -> RiskCoverage:
    """Computes the curve, one point a distinct confidence, thinned to 200; AURC with ties as the mean over their orders."""
    distinct, of_tile = np.unique(-confidence_N, return_inverse=True)
    wrong_T = np.bincount(of_tile, weights=wrong_N).astype(np.float64)
    tiles_T = np.bincount(of_tile).astype(np.float64)
    aurc = float(aurc_of_counts(wrong_T, tiles_T))
    num_wrong, num_right = float(wrong_T.sum()), float(len(wrong_N) - wrong_T.sum())
    least = float(aurc_of_counts(np.array([0.0, num_wrong]), np.array([num_right, num_wrong])))
    accepted_T = tiles_T.cumsum()
    shown = np.unique(np.linspace(0, len(distinct) - 1, _CURVE_POINTS).round().astype(np.int64))
    risk_T = wrong_T.cumsum() / accepted_T
    return RiskCoverage(accepted_T[shown] / len(wrong_N), risk_T[shown], -distinct[shown], aurc, aurc - least)


def aurc_of_counts(wrong: Floats, tiles: Floats) -> Floats:
    """Area under the risk-coverage curve from wrong and all tiles at each confidence, highest first: twice (..., T) to (...).

    Within a tie of m tiles, e of them wrong, after n with w wrong, the j-th adds (w + e j / m) / (n + j) on average; their
    sum is e + (w - e n / m) times the sum of 1 / (n + j).
    """
    before, wrong_before = tiles.cumsum(axis=-1) - tiles, wrong.cumsum(axis=-1) - wrong
    after = scipy.special.digamma(tiles.cumsum(axis=-1) + 1)
    harmonic = np.diff(after, axis=-1, prepend=scipy.special.digamma(1))
    share = np.divide(wrong, tiles, out=np.zeros_like(wrong), where=tiles > 0)
    area = (wrong + (wrong_before - share * before) * harmonic).sum(axis=-1)
    return metrics.ratio(area, tiles.sum(axis=-1))


def aurc_tally(name: str, confidence_N: Floats, wrong_N: Bools, units: Units) -> Tally:
    """Tallies the area under the risk-coverage curve over at most 512 bins of confidence, exact on all tiles."""
    num_bins = min(len(confidence_N), _MAX_BINS)
    # Equal confidences have equal ranks, so they share a bin.
    rank_N = scipy.stats.rankdata(-confidence_N) - 0.5
    bin_N = (rank_N * num_bins / len(rank_N)).astype(np.int64)
    sums = cell_counts(bin_N + num_bins * ~wrong_N, 2 * num_bins, units)

    def figures(sums_RD: Floats) -> Named:
        wrong, right = sums_RD[:, :num_bins], sums_RD[:, num_bins:]
        return {name: aurc_of_counts(wrong, wrong + right)}

    return Tally(sums, figures, {name: risk_coverage(confidence_N, wrong_N).aurc}, {name: [slice(None)]})


def fit_selective(
    validation: Predictions, point: OperatingPoint | None, target_risk: float = 0.05, delta: float = 0.05
) -> SelectiveRule:
    """Chooses the lowest threshold whose error rate among accepted tiles is at most ``target_risk``, but for ``delta``."""
    wrong_N = decide(validation.probabilities, validation.classes, point) != validation.labels
    accepted_NT = confidence(validation.probabilities, validation.classes, point)[:, None] >= _GRID
    patient_N = None if validation.patients is None else numbered(validation.patients)[1]
    accepted_UT, erred_UT = (_by_unit(part, patient_N) for part in (accepted_NT, accepted_NT & wrong_N[:, None]))
    unit: Unit = "tile" if validation.patients is None else "patient"
    # A unit without accepted tiles has no loss, and the target in its place neither wins nor loses a bet.
    loss_UT = np.divide(erred_UT, accepted_UT, out=np.full_like(erred_UT, target_risk), where=accepted_UT > 0)
    if unit == "tile":
        p_value_T = binomial_p_values(erred_UT.sum(axis=0), accepted_UT.sum(axis=0), target_risk)
    else:
        p_value_T = betting_p_values(loss_UT, target_risk)
    chosen = _lowest_certified(p_value_T, delta)
    asked = f"an error rate of at most {target_risk:g} among the accepted tiles"
    found = {"target_risk": target_risk, "delta": delta, "unit": unit, "num_units": len(accepted_UT), "method": _METHODS[unit]}
    if chosen is None:
        needed = units_needed(target_risk, delta, unit)
        guarantee = (
            f"No threshold: {asked} cannot be shown with confidence {1 - delta:g} by {len(accepted_UT)} validation {unit}s; "
            f"it takes at least {needed} {unit}s without an error, and more with some."
        )
        return SelectiveRule(threshold=None, coverage=None, risk=None, guarantee=guarantee, **found)
    answered = accepted_UT[:, chosen] > 0
    coverage, risk = float(accepted_UT[:, chosen].mean()), float(loss_UT[answered, chosen].mean())
    guarantee = f"With confidence {1 - delta:g}, {asked} {_CONDITIONS[unit]}"
    threshold = float(_GRID[chosen])
    return SelectiveRule(threshold=threshold, coverage=coverage, risk=risk, guarantee=guarantee, **found)


def judge_selective(
    rule: SelectiveRule, test: Predictions, point: OperatingPoint | None, units: Units, num_resamples: int, seed: int
) -> dict[str, Estimate]:
    """Estimates on test the ``aurc`` and, of the rule's threshold, ``coverage`` and ``risk``: of tiles, and of patients.

    ``coverage_mean_of_patients`` and ``risk_mean_of_patients`` weigh each patient alike, as the promise does.
    """
    wrong_N = decide(test.probabilities, test.classes, point) != test.labels
    confidence_N = confidence(test.probabilities, test.classes, point)
    accepted_N = rule.accepts(confidence_N)
    means: dict[str, Weighted] = {"coverage": (accepted_N, np.ones(len(wrong_N))), "risk": (wrong_N, accepted_N)}
    if test.patients is not None:
        means["coverage_mean_of_patients"] = (accepted_N, patient_weights(test.patients))
        weight_N = np.zeros(len(wrong_N))
        # Each patient's accepted tiles weigh one together.
        weight_N[accepted_N] = patient_weights(test.patients[accepted_N])
        means["risk_mean_of_patients"] = (wrong_N, weight_N)
    tallies = [aurc_tally("aurc", confidence_N, wrong_N, units), weighted_means_tally(means, units)]
    return estimate(tallies, units, num_resamples, seed, undefined="no tile is accepted")


def binomial_p_values(num_wrong_T: Floats, num_T: Floats, risk: float) -> Floats:
    """Chance of so few errors or fewer among ``num`` independent tiles if the error rate were ``risk``."""
    return np.asarray(scipy.stats.binom.cdf(num_wrong_T, num_T, risk))


def betting_p_values(loss_UT: Floats, risk: float) -> Floats:
    """P-values (T,) of "the mean loss is at least ``risk``" for independent units with losses in 0 to 1.

    Under it no bet on lower losses can be expected to gain: the product of 1 + bet (risk - loss) has a mean of at most 1, and
    so has a mixture; by Markov it exceeds 1 / p with a chance of at most p. The largest bet loses all on a loss of 1.
    """
    bet_B = _BETS / (1 - risk)
    with np.errstate(divide="ignore"):  # the log of nothing left
        capital_BT = np.array([np.log1p(np.maximum(bet * (risk - loss_UT), -1)).sum(axis=0) for bet in bet_B])
    return np.asarray(np.minimum(1, np.exp(-scipy.special.logsumexp(capital_BT, axis=0) + np.log(len(bet_B)))))


def units_needed(target_risk: float, delta: float, unit: Unit) -> int:
    """Returns the fewest units, all accepted and without an error, that certify the target."""
    level = delta / len(_STARTS)
    # The largest bet alone, one of 20 in the mixture, would do with so many.
    num_U = np.arange(1, 2 + int(np.log(len(_BETS) / level) / -np.log1p(-target_risk)))
    if unit == "tile":
        p_value_U = (1 - target_risk) ** num_U
    else:
        p_value_U = 1 / np.mean((1 + _BETS[:, None] * target_risk / (1 - target_risk)) ** num_U, axis=0)
    return int(num_U[p_value_U <= level][0])


def _lowest_certified(p_value_T: Floats, delta: float) -> int | None:
    """Tests the grid downwards from each starting point until a test fails; returns the last that passed anywhere."""
    passed_T = p_value_T <= delta / len(_STARTS)
    firsts = [int(np.flatnonzero(start == _GRID)[0]) for start in _STARTS]
    lengths = [int(np.cumprod(passed_T[first:]).sum()) for first in firsts]
    return max((first + length - 1 for first, length in zip(firsts, lengths, strict=True) if length), default=None)


def _by_unit(value_NT: Bools, patient_N: NDArray[np.int64] | None) -> Floats:
    """Means over the tiles of each patient (U, T); without patients each tile is a unit."""
    if patient_N is None:
        return value_NT.astype(np.float64)
    sums_UT = np.column_stack([np.bincount(patient_N, weights=column) for column in value_NT.T])
    return np.asarray(sums_UT / np.bincount(patient_N)[:, None], dtype=np.float64)
