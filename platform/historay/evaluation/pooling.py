"""From tiles to slides and patients: their labels, and one probability a class from those of their tiles.

How to pool is chosen on validation, never on test: the mean over tiles, the mean over the tenth with the greatest
probability, or a logistic regression on quantiles of the tiles' probabilities, by cross-validation over patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from historay.errors import DataError
from historay.evaluation import metrics
from historay.evaluation.intervals import Estimate, Named, Tally, auc_tally, estimate, mean_tally, numbered, units_of
from historay.evaluation.metrics import Floats
from historay.evaluation.operating_point import choose_threshold
from historay.evaluation.predictions import Predictions

Level = Literal["slide", "patient"]
Method = Literal["mean", "top-k mean", "learned"]
Integers = NDArray[np.int64]

TOP_SHARE = 0.1
# With fewer units the weights of a learned pooling say more of the folds than of patients.
MIN_TO_LEARN = 20
_QUANTILES = np.array([0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
_MAX_FOLDS = 5


class PoolingRule(BaseModel):
    """How the tiles' probabilities become one of the unit and its class, chosen on validation, and why so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Level
    positive: int | None  # the class that one tile suffices for; None: no class is
    method: Method
    reason: str
    # (K, D + 1) of the learned pooling: each class's weights of the features, then its intercept.
    weights: tuple[tuple[float, ...], ...] | None = None
    threshold: float | None = None  # of the positive class; None: the most probable class, or see ``no_threshold``
    no_threshold: str | None = None


@dataclass(frozen=True)
class PooledResult:
    """U slides or patients without their identifiers; empty where ``reason`` says why there is nothing to judge."""

    label_U: Integers
    probability_UK: Floats
    patient_U: Integers  # which patient each belongs to; itself where patients are unknown
    how: str  # how a unit got its label
    rule: PoolingRule
    reason: str | None


class _Labelled(NamedTuple):
    label_U: Integers
    unit_N: Integers  # which unit each tile belongs to
    patient_U: Integers
    how: str


def fit_pooling(validation: Predictions, level: Level, positive: int | None, seed: int) -> PoolingRule:
    """Chooses the method and, for two classes, the threshold (Youden) on validation.

    A method is taken over a simpler one only if its ROC-AUC is higher by more than a standard error over the folds.
    """
    try:
        units = _labelled(validation, level, positive)
        folds = _folds(units, len(validation.classes), seed)
    except DataError as error:
        why = f"not chosen: validation: {error}"
        return PoolingRule(level=level, positive=positive, method="mean", reason=why, no_threshold=str(error))
    num_units = len(units.label_U)
    methods: tuple[Method, ...] = ("mean", "top-k mean", "learned") if num_units >= MIN_TO_LEARN else ("mean", "top-k mean")
    probability_NK, label_U = validation.probabilities, units.label_U
    pooled_MUK = [_out_of_fold(method, probability_NK, units, positive, folds) for method in methods]
    chosen, reason = _choose(methods, pooled_MUK, label_U, folds)
    unlearned = "" if num_units >= MIN_TO_LEARN else f"; learned pooling is not tried with fewer than {MIN_TO_LEARN}"
    learned = methods[chosen] == "learned"
    return PoolingRule(
        level=level,
        positive=positive,
        method=methods[chosen],
        reason=f"ROC-AUC over {len(folds)} folds of {num_units} validation {level}s: {reason}{unlearned}",
        weights=_learn(_features(probability_NK, units.unit_N, positive), label_U) if learned else None,
        threshold=None
        if positive is None
        else choose_threshold(label_U == positive, pooled_MUK[chosen][:, positive], "youden"),
    )


def pool(predictions: Predictions, rule: PoolingRule) -> PooledResult:
    """Pools by the rule; without labels, or with the same one for all units, the result is empty and says why."""
    try:
        units = _labelled(predictions, rule.level, rule.positive)
    except DataError as error:
        nothing = np.zeros(0, dtype=np.int64)
        return PooledResult(nothing, np.zeros((0, len(predictions.classes))), nothing, "", rule, str(error))
    learned = None if rule.weights is None else np.array(rule.weights)
    probability_UK = _pooled(rule.method, predictions.probabilities, units.unit_N, rule.positive, learned)
    return PooledResult(units.label_U, probability_UK, units.patient_U, units.how, rule, None)


def judge_pooled(result: PooledResult, num_resamples: int, seed: int) -> dict[str, Estimate]:
    """Estimates ``roc_auc``, ``accuracy`` and, for two classes, ``sensitivity`` and ``specificity``, drawing patients.

    With more classes ``roc_auc`` is the mean over the classes of each against the rest.
    """
    rule, label_U, num_classes = result.rule, result.label_U, result.probability_UK.shape[1]
    at_threshold = ["accuracy"] + (["sensitivity", "specificity"] if rule.positive is not None else [])
    if result.reason is not None:
        return dict.fromkeys(["roc_auc", *at_threshold], _undefined(result.reason))
    units = units_of(result.patient_U.astype(np.str_), len(label_U), seed)
    ranked = range(num_classes) if rule.positive is None else [rule.positive]
    tallies: list[Tally] = [auc_tally(f"auc:{k}", label_U == k, result.probability_UK[:, k], units) for k in ranked]
    missing: dict[str, Estimate] = {}
    if rule.no_threshold is None:
        predicted_U = _decide(result.probability_UK, rule)
        subsets = {"accuracy": None, "sensitivity": label_U == rule.positive, "specificity": label_U != rule.positive}
        tallies += [mean_tally(name, predicted_U == label_U, units, subsets[name]) for name in at_threshold]
    else:
        missing = dict.fromkeys(at_threshold, _undefined(f"no threshold could be chosen on validation: {rule.no_threshold}"))

    def derive(named: Named) -> Named:
        return {"roc_auc": metrics.mean_over_classes([named[f"auc:{k}"] for k in ranked])}

    undefined = f"a class has no {rule.level}s in this split"
    found = estimate(tallies, units, num_resamples, seed, derive, undefined=undefined)
    return {name: value for name, value in found.items() if ":" not in name} | missing


def top_mean(value_N: Floats, unit_N: Integers, share: float) -> Floats:
    """Returns the mean of the greatest ``share`` of each unit's values (U,), at least of one."""
    order = np.lexsort((-value_N, unit_N))
    num_U = np.bincount(unit_N)
    rank_N = np.arange(len(order)) - np.repeat(num_U.cumsum() - num_U, num_U)
    kept_U = np.ceil(share * num_U - 1e-9)  # a tenth of 30 is 3, whatever the rounding
    kept_N = rank_N < np.repeat(kept_U, num_U)
    return np.asarray(np.bincount(unit_N[order][kept_N], weights=value_N[order][kept_N]) / kept_U)


def unit_quantiles(value_N: Floats, unit_N: Integers, quantiles: Floats) -> Floats:
    """Returns quantiles of each unit's values (U, Q), interpolated as by ``np.quantile``."""
    ordered = value_N[np.lexsort((value_N, unit_N))]
    num_U = np.bincount(unit_N)
    within_UQ = quantiles * (num_U[:, None] - 1)
    lower_UQ = np.floor(within_UQ).astype(np.int64)
    start_U1 = (num_U.cumsum() - num_U)[:, None]
    upper_UQ = np.minimum(lower_UQ + 1, num_U[:, None] - 1)
    low, high = ordered[start_U1 + lower_UQ], ordered[start_U1 + upper_UQ]
    return np.asarray(low + (high - low) * (within_UQ - lower_UQ))


def _labelled(predictions: Predictions, level: Level, positive: int | None) -> _Labelled:
    """Labels each unit with the class of its tiles, or with the positive class if any has it; DataError where it cannot."""
    ids = predictions.patients if level == "patient" else _slides(predictions)
    if ids is None:
        raise DataError(f"{level}s are unknown")
    names, unit_N = numbered(ids)
    first = np.unique(unit_N, return_index=True)[1]
    num_classes = len(predictions.classes)
    cells = np.bincount(unit_N * num_classes + predictions.labels, minlength=len(names) * num_classes)
    there_UK = cells.reshape(-1, num_classes) > 0
    label_U, num_mixed = there_UK.argmax(axis=1), int((there_UK.sum(axis=1) > 1).sum())
    how = f"each {level} has the class of all its tiles"
    if num_mixed:
        mixed = f"{num_mixed} of {len(names)} {level}s have tiles of several classes"
        if positive is None:
            raise DataError(f"{mixed}, and there is no positive class of which one tile suffices")
        label_U = np.where(there_UK[:, positive], positive, label_U)
        how = f"a {level} is {predictions.classes[positive]} if any of its tiles is; {mixed}"
    if len(np.unique(label_U)) < 2:
        raise DataError(f"all {len(names)} {level}s are {predictions.classes[label_U[0]]}, so nothing can be told apart")
    patients = ids if predictions.patients is None else predictions.patients
    patient_U = numbered(patients[first])[1]
    return _Labelled(label_U.astype(np.int64), unit_N, patient_U, how)


def _slides(predictions: Predictions) -> NDArray[np.str_] | None:
    """Slides by patient and id, as some archives number the slides of each patient anew."""
    if predictions.slides is None or predictions.patients is None:
        return predictions.slides
    (_, patient_N), (slides, slide_N) = numbered(predictions.patients), numbered(predictions.slides)
    return np.asarray((patient_N * len(slides) + slide_N).astype(np.str_))


def _folds(units: _Labelled, num_classes: int, seed: int) -> list[tuple[Integers, Integers]]:
    """Splits whole patients into the most folds, up to 5, whose both sides have each class; DataError if two do not."""
    counts = np.bincount(units.label_U, minlength=num_classes)
    num_patients = len(np.unique(units.patient_U))
    for num_folds in range(min(_MAX_FOLDS, int(counts.min()), num_patients), 1, -1):
        split = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        folds = list(split.split(units.label_U, units.label_U, units.patient_U))
        if all(len(np.unique(units.label_U[side])) == num_classes for fold in folds for side in fold):
            return folds
    raise DataError(f"too few of a class for cross-validation, the counts by class are {counts.tolist()}")


def _out_of_fold(
    method: Method, probability_NK: Floats, units: _Labelled, positive: int | None, folds: Sequence[tuple[Integers, Integers]]
) -> Floats:
    """Pools each unit (U, K), by weights learned on the other folds where any are."""
    if method != "learned":
        return _pooled(method, probability_NK, units.unit_N, positive, None)
    features_UD = _features(probability_NK, units.unit_N, positive)
    pooled_UK = np.zeros((len(units.label_U), probability_NK.shape[1]))
    for train, test in folds:
        pooled_UK[test] = _predict(features_UD[test], np.array(_learn(features_UD[train], units.label_U[train])))
    return pooled_UK


def _choose(
    methods: Sequence[Method], pooled_MUK: Sequence[Floats], label_U: Integers, folds: Sequence[tuple[Integers, Integers]]
) -> tuple[int, str]:
    """Returns the simplest method that none beats by more than a standard error of the difference, and all the AUCs."""

    def areas(pooled_UK: Floats) -> Floats:
        ones = np.ones(len(label_U), dtype=np.int64)
        return np.array([metrics.macro_roc_auc(label_U[test], pooled_UK[test], ones[test]) for _, test in folds])

    auc_MF = np.array([areas(pooled_UK) for pooled_UK in pooled_MUK])
    chosen = 0
    for m in range(1, len(methods)):
        gain_F = auc_MF[m] - auc_MF[chosen]
        if gain_F.mean() > gain_F.std(ddof=1) / np.sqrt(len(gain_F)):
            chosen = m
    return chosen, ", ".join(f"{name} {auc:.3f}" for name, auc in zip(methods, auc_MF.mean(axis=1), strict=True))


def _pooled(
    method: Method, probability_NK: Floats, unit_N: Integers, positive: int | None, weights_KD: Floats | None
) -> Floats:
    """One row a unit (U, K) that sums to 1."""
    if weights_KD is not None:
        return _predict(_features(probability_NK, unit_N, positive), weights_KD)
    share = TOP_SHARE if method == "top-k mean" else 1.0
    if positive is not None:
        greatest = top_mean(probability_NK[:, positive], unit_N, share)
        return np.column_stack([greatest if k == positive else 1 - greatest for k in range(2)])
    mean_UK = np.column_stack([top_mean(column, unit_N, share) for column in probability_NK.T])
    return np.asarray(mean_UK / mean_UK.sum(axis=1, keepdims=True))


def _features(probability_NK: Floats, unit_N: Integers, positive: int | None) -> Floats:
    columns = probability_NK.T if positive is None else probability_NK.T[[positive]]
    return np.concatenate([unit_quantiles(column, unit_N, _QUANTILES) for column in columns], axis=1)


def _learn(features_UD: Floats, label_U: Integers) -> tuple[tuple[float, ...], ...]:
    """Weights and intercept by class; of two classes the first has zeros."""
    model = LogisticRegression(solver="newton-cholesky").fit(features_UD, label_U)
    rows = np.column_stack([model.coef_, model.intercept_])
    if len(rows) == 1:
        rows = np.concatenate([np.zeros_like(rows), rows])
    return tuple(tuple(float(weight) for weight in row) for row in rows)


def _predict(features_UD: Floats, weights_KD: Floats) -> Floats:
    return np.asarray(scipy.special.softmax(features_UD @ weights_KD[:, :-1].T + weights_KD[:, -1], axis=1))


def _decide(probability_UK: Floats, rule: PoolingRule) -> Integers:
    if rule.positive is None or rule.threshold is None:
        return np.asarray(probability_UK.argmax(axis=1), dtype=np.int64)
    return np.where(probability_UK[:, rule.positive] >= rule.threshold, rule.positive, 1 - rule.positive)


def _undefined(reason: str) -> Estimate:
    return Estimate(value=None, low=None, high=None, reason=reason)
