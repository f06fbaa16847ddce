"""Prediction sets that hold the true class as often as promised, by split-conformal prediction fitted on validation.

A class is in a tile's set where its score, 1 - probability, is at most a threshold (LAC; Sadinle, Lei and Wasserman 2019).
The threshold is a quantile of the true classes' scores on validation: of all tiles, of each class's, or of each site's.

Tiles of one patient are not exchangeable with a tile of the next. Where patients are known the quantile is that of
hierarchical conformal prediction (Lee, Barber and Willett 2023): each of P patients has the mass 1/(P + 1), shared evenly by
its tiles, and infinity has the rest. So the promise is kept for a tile of a new patient, and few patients give wide sets.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from historay.errors import DataError
from historay.evaluation.intervals import Estimate, Tally, Unit, Units, estimate, numbered
from historay.evaluation.metrics import Floats
from historay.evaluation.predictions import Predictions
from historay.evaluation.weighting import Weighted, patient_weights, weighted_means_tally

Kind = Literal["marginal", "class", "site"]
Bools = NDArray[np.bool_]

# Shares of patients are sums of fractions: this much below the wanted mass is rounding.
_ROUNDING = 1e-9
_REUSED = "Where validation also chose the checkpoint, the temperature or the threshold, coverage can fall a little short."


class Threshold(BaseModel):
    """The largest score (1 - probability) that is let into a set, and the validation tiles that it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str  # "all", or the name of a class or of a site
    score: float | None  # None: too few units for alpha, so that every class is let in
    num_units: int
    num_tiles: int


class ConformalRule(BaseModel):
    """Turns probabilities into sets of classes; ships in the bundle's model.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(gt=0.0, lt=1.0)  # promised share of sets without the true class
    kind: Kind
    thresholds: tuple[Threshold, ...]  # one; one a class, in the classes' order; or one a site
    fallback: Threshold | None = None  # for a site that validation had not; None: another kind
    num_calibration: int  # validation tiles
    unit: Unit
    guarantee: str

    def sets(self, probability_NK: Floats, sites: NDArray[np.str_] | None = None) -> Bools:
        """Returns which classes are in each tile's set (N, K); ``sites`` (N,) only matter to the kind ``site``."""
        return np.asarray(1 - probability_NK <= self._limits(probability_NK, sites))

    def _limits(self, probability_NK: Floats, sites: NDArray[np.str_] | None) -> Floats:
        if self.kind != "site":
            if len(self.thresholds) not in {1, probability_NK.shape[1]}:
                raise DataError(f"{probability_NK.shape[1]} classes, but the rule has a threshold for {len(self.thresholds)}")
            return np.array([_limit(threshold) for threshold in self.thresholds])
        assert self.fallback is not None
        fallback = _limit(self.fallback)
        if sites is None:
            return np.array([fallback])
        known = {threshold.group: _limit(threshold) for threshold in self.thresholds}
        names, of_tile = numbered(sites)
        return np.array([known.get(str(name), fallback) for name in names])[of_tile][:, None]


def fit_conformal(validation: Predictions, alpha: float, kind: Kind) -> ConformalRule:
    """Fits the thresholds on validation; DataError for the kind ``site`` where sites are unknown."""
    score_N = 1 - validation.probabilities[np.arange(len(validation.labels)), validation.labels]
    unit_N = np.arange(len(score_N)) if validation.patients is None else numbered(validation.patients)[1]
    every = _threshold("all", np.ones(len(score_N), dtype=bool), score_N, unit_N, alpha)
    thresholds: tuple[Threshold, ...] = (every,)
    fallback = None
    if kind != "marginal":
        members = _by_class(validation) if kind == "class" else _by_site(validation)
        thresholds = tuple(_threshold(name, kept, score_N, unit_N, alpha) for name, kept in members.items())
    if kind == "site":
        # No promise can be made for a site never seen, so it gets the most cautious threshold that was found.
        fallback = max([every, *(found for found in thresholds if found.score is not None)], key=_limit)
    unit: Unit = "tile" if validation.patients is None else "patient"
    return ConformalRule(
        alpha=alpha,
        kind=kind,
        thresholds=thresholds,
        fallback=fallback,
        num_calibration=len(score_N),
        unit=unit,
        guarantee=_guarantee(alpha, kind, unit, thresholds),
    )


def conformal_quantile(score_N: Floats, alpha: float, unit_N: NDArray[np.generic] | None = None) -> float | None:
    """Returns the smallest score with a mass of 1 - alpha at or below it; None where that is only infinity.

    Each unit has the mass 1 / (units + 1), shared evenly by its tiles. Without units each tile is one, and this is the
    ceil((N + 1)(1 - alpha))-th smallest score.
    """
    of_tile = np.arange(len(score_N)) if unit_N is None else np.unique(unit_N, return_inverse=True)[1]
    num_tiles = np.bincount(of_tile)
    order = np.argsort(score_N, kind="stable")
    mass = np.cumsum(1 / num_tiles[of_tile[order]])
    wanted = (len(num_tiles) + 1) * (1 - alpha - _ROUNDING)
    first = int(np.searchsorted(mass, wanted))
    return float(score_N[order[first]]) if first < len(order) else None


def judge_sets(rule: ConformalRule, test: Predictions, units: Units, num_resamples: int, seed: int) -> dict[str, Estimate]:
    """Estimates how the sets do on test: see ``sets_tally`` for the names."""
    tally = sets_tally(rule, test, units)
    found = estimate([tally], units, num_resamples, seed, undefined="no such tiles in this split")
    if test.patients is None:
        reason = "patients are unknown, so no mean over them exists"
        found["coverage_mean_of_patients"] = Estimate(value=None, low=None, high=None, reason=reason)
    return found


def sets_tally(rule: ConformalRule, test: Predictions, units: Units) -> Tally:
    """Tallies what the sets hold, all as means over tiles.

    ``coverage`` and ``coverage:class:<name>``, ``coverage:site:<name>`` are shares of sets with the true class;
    ``coverage_mean_of_patients``, of all and by group, weighs each patient alike, as the promise for a new patient does;
    ``mean_size`` counts
    classes; ``empty``, ``single``, ``full`` are shares of sets; ``abstained`` are those that are not one class, and
    ``accuracy_of_single`` is that of the others.
    """
    sets_NK = rule.sets(test.probabilities, test.sites)
    covered, size = sets_NK[np.arange(len(test.labels)), test.labels], sets_NK.sum(axis=1)
    every = np.ones(len(size))
    means: dict[str, Weighted] = {
        "coverage": (covered, every),
        "mean_size": (size, every),
        "empty": (size == 0, every),
        "single": (size == 1, every),
        "full": (size == sets_NK.shape[1], every),
        "abstained": (size != 1, every),
        "accuracy_of_single": (covered, size == 1),
    }
    groups = {f":class:{name}": kept for name, kept in _by_class(test).items()}
    if test.sites is not None:
        groups |= {f":site:{name}": kept for name, kept in _by_site(test).items()}
    means |= {f"coverage{group}": (covered, kept) for group, kept in groups.items()}
    if test.patients is not None:
        means["coverage_mean_of_patients"] = (covered, patient_weights(test.patients))
        for group, kept in groups.items():
            weight_N = np.zeros(len(size))
            weight_N[kept] = patient_weights(test.patients[kept])
            means[f"coverage_mean_of_patients{group}"] = (covered, weight_N)
    return weighted_means_tally(means, units)


def promised_coverage(rule: ConformalRule, found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Picks, of the figures of ``judge_sets``, those that the rule makes a promise about, by the group's name."""
    weighed = "coverage_mean_of_patients" if rule.unit == "patient" else "coverage"
    if rule.kind == "marginal":
        return {"all": found[weighed]}
    names = {threshold.group: f"{weighed}:{rule.kind}:{threshold.group}" for threshold in rule.thresholds}
    return {f"{rule.kind} {group}": found[name] for group, name in names.items() if name in found}


def _threshold(name: str, kept_N: Bools, score_N: Floats, unit_N: NDArray[np.int64], alpha: float) -> Threshold:
    score = conformal_quantile(score_N[kept_N], alpha, unit_N[kept_N])
    return Threshold(group=name, score=score, num_units=len(np.unique(unit_N[kept_N])), num_tiles=int(kept_N.sum()))


def _limit(threshold: Threshold) -> float:
    return np.inf if threshold.score is None else threshold.score


def _by_class(predictions: Predictions) -> dict[str, Bools]:
    return {name: predictions.labels == k for k, name in enumerate(predictions.classes)}


def _by_site(predictions: Predictions) -> dict[str, Bools]:
    if predictions.sites is None:
        raise DataError("sites are unknown, so sets by site cannot be fitted; give the manifest a site column")
    names, of_tile = numbered(predictions.sites)
    return {str(name): of_tile == number for number, name in enumerate(names)}


def _guarantee(alpha: float, kind: Kind, unit: Unit, thresholds: tuple[Threshold, ...]) -> str:
    """Says what is promised, on what condition, and where it is kept only by sets of all classes."""
    whose = {"marginal": "", "class": " of each class", "site": " of each site that validation had"}[kind]
    share = f"{1 - alpha:g}"
    if unit == "patient":
        promise = (
            f"Of the tiles{whose} of new patients, a share of at least {share} has its true class in the set, on average "
            "over patients, each weighing the same, if they are drawn as those of validation were."
        )
    else:
        promise = (
            f"Of the tiles{whose}, a share of at least {share} has its true class in the set, only if they are exchangeable "
            "with those of validation. Patients are unknown: for the tiles of a new patient nothing is promised."
        )
    few = [f"{found.group} ({found.num_units} {unit}s)" for found in thresholds if found.score is None]
    if few:
        needed = int(np.ceil(1 / alpha - _ROUNDING)) - 1
        promise += (
            f" Every class is let into the set for {', '.join(few)}: alpha = {alpha:g} needs at least {needed} {unit}s, "
            "so the promise is kept there by saying nothing."
        )
    unseen = " A site that validation had not gets the widest threshold of the known ones, with no promise."
    return f"{promise}{unseen if kind == 'site' else ''} {_REUSED}"
