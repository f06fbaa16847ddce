"""Every figure of the headline, with its interval, from predictions on the test split; pure arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from historay.evaluation import metrics
from historay.evaluation.delong import auc_by_delong
from historay.evaluation.intervals import (
    Columns,
    Estimate,
    Named,
    Tally,
    Unit,
    Units,
    cell_counts,
    estimate,
    ranking_tally,
    units_of,
    wilson,
)
from historay.evaluation.metrics import Floats
from historay.evaluation.operating_point import OperatingPoint, decide, effective_number
from historay.evaluation.predictions import Predictions

_BY_CLASS = "class:"  # prefix of the figures of one class: class:<index>:<metric>
_SHORTCUT = "shortcut:"  # of a shortcut's ROC-AUC
_GAIN = "gain:"  # of the model's ROC-AUC less a shortcut's


@dataclass(frozen=True)
class Judgement:
    """What can be said of a classifier on one split."""

    headline: dict[str, Estimate]
    by_class: dict[str, dict[str, Estimate]]  # by class name, then metric
    shortcuts: dict[str, Estimate]  # ROC-AUC of each shortcut on the same tiles
    gains: dict[str, Estimate]  # the model's ROC-AUC less each shortcut's, on the same resamples (paired)
    checks: dict[str, Estimate]  # some of the headline again, without a bootstrap
    confusion: NDArray[np.int64]  # (K, K), rows are the true classes
    predicted: NDArray[np.int64]  # (N,)
    unit: Unit
    num_units: int


def judge(
    predictions: Predictions,
    point: OperatingPoint | None,
    shortcuts: Mapping[str, Floats],
    num_resamples: int,
    seed: int,
    further: Sequence[Tally] = (),
) -> Judgement:
    """Computes all figures on the tiles and on ``num_resamples`` resamples of patients (of tiles, if one is unknown).

    ``shortcuts`` are the probabilities (N, K) of baselines on the same tiles in the same order, by name; the figures of
    ``further`` tallies over the same units join the headline.
    """
    labels, classes = predictions.labels, predictions.classes
    predicted = decide(predictions.probabilities, classes, point)
    units = units_of(predictions.patients, len(labels), seed)
    tallies = [*tallies_of(predictions, predicted, point, units), *further]
    for name, probability_NK in shortcuts.items():
        tallies += _one_against_rest(labels, probability_NK, chosen_classes(classes, point), units, f"{_SHORTCUT}{name}:")

    def derive(named: Named) -> Named:
        found = macro_means(named, len(classes), point)
        for name in shortcuts:
            chosen = chosen_classes(classes, point)
            found[f"{_SHORTCUT}{name}"] = metrics.mean_over_classes([named[f"{_SHORTCUT}{name}:{k}:roc_auc"] for k in chosen])
            found[f"{_GAIN}{name}"] = (named | found)["roc_auc"] - found[f"{_SHORTCUT}{name}"]
        return found

    confusion = metrics.confusion_matrix(labels, predicted, len(classes), np.ones(len(labels), dtype=np.int64))
    estimates = estimate(tallies, units, num_resamples, seed, derive, undefined=why_undefined(confusion, classes))
    return Judgement(
        headline={name: found for name, found in estimates.items() if ":" not in name},
        by_class={name: _below(estimates, f"{_BY_CLASS}{k}:") for k, name in enumerate(classes)},
        shortcuts={name: estimates[f"{_SHORTCUT}{name}"] for name in shortcuts},
        gains={name: estimates[f"{_GAIN}{name}"] for name in shortcuts},
        checks=_checks(predictions, predicted, point, units),
        confusion=confusion,
        predicted=predicted,
        unit=units.unit,
        num_units=units.num_units,
    )


def tallies_of(
    predictions: Predictions, predicted: NDArray[np.int64], point: OperatingPoint | None, units: Units
) -> list[Tally]:
    """Returns the tallies of every figure of a model, to be completed by ``macro_means``."""
    return [
        _decisions(predictions.labels, predicted, predictions.classes, point, units),
        *_rankings(predictions, point, units),
    ]


def macro_means(named: Named, num_classes: int, point: OperatingPoint | None) -> Named:
    """Returns the mean over the classes of each figure without a threshold; nothing where a positive class has its own."""
    if point is not None:
        return {}
    return {
        name: metrics.mean_over_classes([named[f"{_BY_CLASS}{k}:{name}"] for k in range(num_classes)])
        for name in ("roc_auc", "average_precision")
    }


def chosen_classes(classes: tuple[str, ...], point: OperatingPoint | None) -> list[int]:
    """Returns the classes whose ranking counts: the positive one, or each against the rest."""
    return list(range(len(classes))) if point is None else [classes.index(point.positive_class)]


def why_undefined(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """Says in words why a figure of this confusion matrix can be undefined; empty if none can."""
    absent = [name for name, count in zip(classes, confusion.sum(axis=1), strict=True) if not count]
    never = [name for name, count in zip(classes, confusion.sum(axis=0), strict=True) if not count]
    reasons = [f"no tiles of class {', '.join(absent)} in this split"] if absent else []
    reasons += [f"class {', '.join(never)} is never predicted"] if never else []
    return "undefined: " + " and ".join(reasons) if reasons else ""


def _decisions(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: tuple[str, ...],
    point: OperatingPoint | None,
    units: Units,
) -> Tally:
    """Figures of the classes as named, from the cells of the confusion matrix."""
    num = len(classes)

    def figures(sums_RD: Floats) -> Named:
        confusion = sums_RD.reshape(-1, num, num)
        by_class = {
            "precision": metrics.precision(confusion),
            "recall": metrics.recall(confusion),
            "f1": metrics.f1(confusion),
        }
        found = {"accuracy": metrics.accuracy(confusion), "balanced_accuracy": metrics.balanced_accuracy(confusion)}
        if point is not None:
            positive = classes.index(point.positive_class)
            found["sensitivity"] = by_class["recall"][:, positive]
            found["specificity"] = by_class["recall"][:, 1 - positive]
        found |= {f"macro_{name}": values.mean(axis=-1) for name, values in by_class.items()}
        return found | {f"{_BY_CLASS}{k}:{name}": values[:, k] for k in range(num) for name, values in by_class.items()}

    borne_by = _borne_by(num, None if point is None else classes.index(point.positive_class))
    return Tally(cell_counts(labels * num + predicted, num * num, units), figures, borne_by=borne_by)


def _borne_by(num: int, positive: int | None) -> dict[str, list[Columns]]:
    """Cells of the confusion matrix that bear each of its figures: the tiles of a class, those named so, or both."""
    cells = np.arange(num * num).reshape(num, num)
    by_class = {
        "precision": list(cells.T),
        "recall": list(cells),
        "f1": [np.union1d(cells[k], cells[:, k]) for k in range(num)],
    }
    found: dict[str, list[Columns]] = {"accuracy": [slice(None)], "balanced_accuracy": [*by_class["recall"]]}
    if positive is not None:
        found |= {"sensitivity": [cells[positive]], "specificity": [cells[1 - positive]]}
    found |= {f"macro_{name}": [*needed] for name, needed in by_class.items()}
    return found | {f"{_BY_CLASS}{k}:{name}": [needed[k]] for k in range(num) for name, needed in by_class.items()}


def _rankings(predictions: Predictions, point: OperatingPoint | None, units: Units) -> list[Tally]:
    """Figures without a threshold: of the positive class, or of each class against the rest."""
    labels, probability_NK, classes = predictions.labels, predictions.probabilities, predictions.classes
    if point is None:
        return _one_against_rest(labels, probability_NK, chosen_classes(classes, point), units, _BY_CLASS, precision=True)
    k = classes.index(point.positive_class)
    return [ranking_tally(labels == k, probability_NK[:, k], units, auc="roc_auc", precision="average_precision")]


def _one_against_rest(
    labels: NDArray[np.int64],
    probability_NK: Floats,
    chosen: list[int],
    units: Units,
    prefix: str,
    *,
    precision: bool = False,
) -> list[Tally]:
    return [
        ranking_tally(
            labels == k,
            probability_NK[:, k],
            units,
            auc=f"{prefix}{k}:roc_auc",
            precision=f"{prefix}{k}:average_precision" if precision else None,
        )
        for k in chosen
    ]


def _below(estimates: dict[str, Estimate], prefix: str) -> dict[str, Estimate]:
    return {name.removeprefix(prefix): found for name, found in estimates.items() if name.startswith(prefix)}


def _checks(
    predictions: Predictions, predicted: NDArray[np.int64], point: OperatingPoint | None, units: Units
) -> dict[str, Estimate]:
    """Closed forms beside the bootstrap: Wilson with the effective number of tiles, DeLong or Obuchowski for the AUC."""
    labels = predictions.labels
    found = {"accuracy": wilson_of_clusters(predicted == labels, units)}
    if point is not None:
        k = predictions.classes.index(point.positive_class)
        group_N = None if units.unit == "tile" else units.group_N
        found["roc_auc"] = auc_by_delong(labels == k, predictions.probabilities[:, k], group_N)
        found["sensitivity"] = wilson_of_clusters(predicted == labels, units, labels == k)
        found["specificity"] = wilson_of_clusters(predicted == labels, units, labels != k)
    return found


def wilson_of_clusters(right_N: NDArray[np.bool_], units: Units, subset_N: NDArray[np.bool_] | None = None) -> Estimate:
    """Returns a proportion with Wilson's interval over the effective number of tiles: fewer, where those of a patient agree."""
    kept = np.ones(len(right_N), dtype=bool) if subset_N is None else subset_N
    right_n = right_N[kept]
    if not len(right_n):
        return Estimate(value=None, low=None, high=None, reason="no such tiles")
    share, effective = float(right_n.mean()), effective_number(right_n, units.group_N[kept])
    low, high = wilson(share * effective, effective)
    return Estimate(value=share, low=low, high=high)
