"""Every figure of a report, with its interval, from predictions on the test split; pure arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from historay.evaluation import metrics
from historay.evaluation.intervals import Estimate, Unit, clusters_of, estimate
from historay.evaluation.metrics import Floats, Weights
from historay.evaluation.operating_point import OperatingPoint, decide
from historay.evaluation.predictions import Predictions

_BY_CLASS = "class:"  # prefix of the figures of one class: class:<index>:<metric>


@dataclass(frozen=True)
class Judgement:
    """What can be said of a classifier on one split."""

    headline: dict[str, Estimate]
    by_class: dict[str, dict[str, Estimate]]  # by class name, then metric
    colour_only: Estimate  # ROC-AUC of the colour baseline on the same tiles
    gain_over_colour: Estimate  # difference in ROC-AUC on the same resamples (paired)
    confusion: NDArray[np.int64]  # (K, K), rows are the true classes
    predicted: NDArray[np.int64]  # (N,)
    unit: Unit
    num_units: int


def judge(
    predictions: Predictions, point: OperatingPoint | None, colour_NK: Floats, num_resamples: int, seed: int
) -> Judgement:
    """Computes all figures on the tiles and on ``num_resamples`` resamples of patients (of tiles, if one is unknown).

    ``colour_NK`` are the colour baseline's probabilities of the same tiles in the same order.
    """
    labels, classes = predictions.labels, predictions.classes
    predicted = decide(predictions.probabilities, classes, point)
    cluster_N, unit = clusters_of(predictions.patients, len(labels))

    def statistic(weights: Weights) -> dict[str, Floats]:
        confusion = metrics.confusion_matrix(labels, predicted, len(classes), weights)
        figures = _of_decisions(confusion, classes, point) | _of_ranking(predictions, point, weights)
        figures["colour_only"] = _ranked(labels, colour_NK, classes, point, weights, metrics.roc_auc)
        figures["gain_over_colour"] = figures["roc_auc"] - figures["colour_only"]
        return figures

    confusion = metrics.confusion_matrix(labels, predicted, len(classes), np.ones(len(labels), dtype=np.int64))
    estimates = estimate(statistic, cluster_N, num_resamples, seed, why_undefined(confusion, classes))
    by_class: dict[str, dict[str, Estimate]] = {name: {} for name in classes}
    for key in [key for key in estimates if key.startswith(_BY_CLASS)]:
        _, index, metric = key.split(":")
        by_class[classes[int(index)]][metric] = estimates.pop(key)
    return Judgement(
        colour_only=estimates.pop("colour_only"),
        gain_over_colour=estimates.pop("gain_over_colour"),
        headline=estimates,
        by_class=by_class,
        confusion=confusion,
        predicted=predicted,
        unit=unit,
        num_units=int(cluster_N.max()) + 1,
    )


def why_undefined(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """Says in words why a figure of this confusion matrix can be undefined; empty if none can."""
    absent = [name for name, count in zip(classes, confusion.sum(axis=1), strict=True) if not count]
    never = [name for name, count in zip(classes, confusion.sum(axis=0), strict=True) if not count]
    reasons = [f"no tiles of class {', '.join(absent)} in this split"] if absent else []
    reasons += [f"class {', '.join(never)} is never predicted"] if never else []
    return "undefined: " + " and ".join(reasons) if reasons else ""


def _of_decisions(confusion: NDArray[np.int64], classes: tuple[str, ...], point: OperatingPoint | None) -> dict[str, Floats]:
    """Figures of the classes as named, from (R, K, K) confusion matrices."""
    by_class = {"precision": metrics.precision(confusion), "recall": metrics.recall(confusion), "f1": metrics.f1(confusion)}
    figures = {"accuracy": metrics.accuracy(confusion), "balanced_accuracy": metrics.balanced_accuracy(confusion)}
    if point is not None:
        positive = classes.index(point.positive_class)
        figures["sensitivity"] = by_class["recall"][:, positive]
        figures["specificity"] = by_class["recall"][:, 1 - positive]
    figures |= {f"macro_{name}": values.mean(axis=-1) for name, values in by_class.items()}
    for k in range(len(classes)):
        figures |= {f"{_BY_CLASS}{k}:{name}": values[:, k] for name, values in by_class.items()}
    return figures


def _of_ranking(predictions: Predictions, point: OperatingPoint | None, weights: Weights) -> dict[str, Floats]:
    """Figures without a threshold: of the positive class, or of each class against the rest and their mean."""
    labels, probability, classes = predictions.labels, predictions.probabilities, predictions.classes
    figures: dict[str, Floats] = {}
    for name, metric in (("roc_auc", metrics.roc_auc), ("average_precision", metrics.average_precision)):
        if point is not None:
            figures[name] = _ranked(labels, probability, classes, point, weights, metric)
            continue
        by_class = [metric(labels == k, probability[:, k], weights) for k in range(len(classes))]
        figures |= {f"{_BY_CLASS}{k}:{name}": values for k, values in enumerate(by_class)}
        figures[name] = np.asarray(np.mean(by_class, axis=0))
    return figures


def _ranked(
    labels: NDArray[np.int64],
    probability_NK: Floats,
    classes: tuple[str, ...],
    point: OperatingPoint | None,
    weights: Weights,
    metric: Callable[[NDArray[np.bool_], Floats, Weights], Floats],
) -> Floats:
    """The metric of the positive class, or its mean over each class against the rest."""
    chosen = range(len(classes)) if point is None else [classes.index(point.positive_class)]
    return np.asarray(np.mean([metric(labels == k, probability_NK[:, k], weights) for k in chosen], axis=0))
