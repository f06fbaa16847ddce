"""What a decision is worth where positives are as common as in practice, and not as in the data set.

All of it moves prevalence alone: tiles of each class are taken to look as they do in the data set (label shift). Where the
positives in practice are also harder, as in a screened population, sensitivity and all that follows are worse than here.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.evaluation.intervals import Estimate, Named, Tally, Units, cell_counts
from historay.evaluation.metrics import Floats, ratio

_NET_BENEFIT = "net_benefit:"  # prefix of the figures of one threshold: net_benefit:<index>
THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))  # threshold probabilities of a curve


class DecisionCurve(BaseModel):
    """Net benefit in true positives a tile, over threshold probabilities (Vickers and Elkin 2006); treating none is 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prevalence: float
    thresholds: tuple[float, ...]
    model: tuple[Estimate, ...]
    treat_all: tuple[float, ...]


class PredictiveValues(NamedTuple):
    """Positive and negative predictive value, of any one shape; NaN where nothing is called so."""

    ppv: Floats
    npv: Floats


def predictive_values(sensitivity: Floats | float, specificity: Floats | float, prevalence: float) -> PredictiveValues:
    """Applies Bayes' rule; on the resampled rates (R,) of a bootstrap it gives the resampled values, so their interval."""
    found, missed = prevalence * np.asarray(sensitivity), prevalence * (1 - np.asarray(sensitivity))
    cleared, alarmed = (1 - prevalence) * np.asarray(specificity), (1 - prevalence) * (1 - np.asarray(specificity))
    return PredictiveValues(ratio(found, found + alarmed), ratio(cleared, cleared + missed))


def move_prevalence(probability_N: Floats, prevalence: float, to: float) -> Floats:
    """Turns calibrated probabilities at one prevalence into those at another: the odds are multiplied (Saerens et al. 2002)."""
    factor = to / (1 - to) * (1 - prevalence) / prevalence
    return np.asarray(factor * probability_N / (factor * probability_N + 1 - probability_N))


def decision_tally(positive_N: NDArray[np.bool_], probability_N: Floats, prevalence: float, units: Units) -> Tally:
    """Tallies the net benefit of treating where ``probability >= threshold``, as net_benefit:<index into THRESHOLDS>.

    sensitivity * prevalence - (1 - specificity) * (1 - prevalence) * odds of the threshold. The probabilities are to be
    those at this prevalence already, see ``move_prevalence``; the class balance of the tiles has no influence.
    """
    num, odds_T = len(THRESHOLDS), np.array(THRESHOLDS) / (1 - np.array(THRESHOLDS))
    # How many thresholds a tile reaches: 0 to num.
    reached_N = np.searchsorted(np.array(THRESHOLDS), probability_N, side="right")
    cell_N = reached_N + (num + 1) * ~positive_N

    def figures(sums_RD: Floats) -> Named:
        counts = sums_RD.reshape(-1, 2, num + 1)
        called = counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
        rates = ratio(called[:, :, 1:], np.broadcast_to(called[:, :, :1], (len(called), 2, num)))
        benefit_RT = prevalence * rates[:, 0] - (1 - prevalence) * odds_T * rates[:, 1]
        return {f"{_NET_BENEFIT}{t}": benefit_RT[:, t] for t in range(num)}

    return Tally(cell_counts(cell_N, 2 * (num + 1), units), figures)


def decision_curve(estimates: Mapping[str, Estimate], prevalence: float) -> DecisionCurve:
    """Collects the figures of ``decision_tally`` beside those of treating all."""
    thresholds = np.array(THRESHOLDS)
    treat_all = prevalence - (1 - prevalence) * thresholds / (1 - thresholds)
    return DecisionCurve(
        prevalence=prevalence,
        thresholds=THRESHOLDS,
        model=tuple(estimates[f"{_NET_BENEFIT}{t}"] for t in range(len(THRESHOLDS))),
        treat_all=tuple(treat_all.tolist()),
    )
