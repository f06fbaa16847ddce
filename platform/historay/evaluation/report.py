"""The report: what is known of a model on one test split, as report.json and as one HTML page that loads nothing."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.data.decode import encode_png
from historay.evaluation import plots
from historay.evaluation.intervals import LEVEL, Estimate, Unit
from historay.evaluation.judgement import Judgement
from historay.evaluation.operating_point import OperatingPoint
from historay.evaluation.predictions import Predictions

DISCLAIMER = "Research software: not a medical device. Not for diagnosis, nor for any decision about a patient."
NUM_EXAMPLES = 24

TITLES = {
    "roc_auc": "ROC-AUC",
    "average_precision": "Average precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy (macro recall)",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "macro_f1": "Macro F1",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
}
_SHOWN_ONCE = {"macro_recall"}  # equal to balanced accuracy by definition; both names stay in report.json


class IntervalMethod(BaseModel):
    """How the intervals were made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: float = LEVEL
    method: str = "percentile bootstrap"
    unit: Unit  # what was drawn with replacement
    num_units: int
    num_resamples: int
    seed: int


class Provenance(BaseModel):
    """Where the figures come from: everything needed to make them again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str  # name; the version is a digest over this very report, so it cannot stand in it
    run: str
    architecture: str
    dataset: str  # name@version
    dataset_digest: str
    accepted_leaks: tuple[str, ...]
    seed: int
    historay: str


class Report(BaseModel):
    """The content of report.json. No figure is NaN: it is null, with the reason beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    disclaimer: str = DISCLAIMER
    provenance: Provenance
    warnings: tuple[str, ...]
    classes: tuple[str, ...]
    operating_point: OperatingPoint | None  # None: more than two classes, the most probable is named
    num_tiles: dict[str, int]  # test tiles by class
    headline: dict[str, Estimate]
    by_class: dict[str, dict[str, Estimate]]
    confusion: list[list[int]]  # rows are the true classes
    colour_only: Estimate  # ROC-AUC of a linear model on colour histograms, same tiles
    gain_over_colour: Estimate
    intervals: IntervalMethod


def make_report(
    provenance: Provenance,
    predictions: Predictions,
    judgement: Judgement,
    point: OperatingPoint | None,
    intervals: IntervalMethod,
    notes: tuple[str, ...],
) -> Report:
    """Puts the figures together with every warning that they call for; ``notes`` are warnings about the data set."""
    counts = judgement.confusion.sum(axis=1)
    return Report(
        provenance=provenance,
        warnings=_warnings(provenance, judgement) + notes,
        classes=predictions.classes,
        operating_point=point,
        num_tiles={name: int(count) for name, count in zip(predictions.classes, counts, strict=True)},
        headline=judgement.headline,
        by_class=judgement.by_class,
        confusion=judgement.confusion.tolist(),
        colour_only=judgement.colour_only,
        gain_over_colour=judgement.gain_over_colour,
        intervals=intervals,
    )


def _warnings(provenance: Provenance, judgement: Judgement) -> tuple[str, ...]:
    found = []
    if provenance.accepted_leaks:
        kinds = ", ".join(provenance.accepted_leaks)
        found.append(f"LEAKS ACCEPTED: {kinds}. Tiles of one origin stand on both sides of the split; every figure is too good")
    if judgement.unit == "tile":
        found.append(
            "PATIENTS UNKNOWN: tiles of one patient may stand in train and in test, and the intervals draw single tiles, "
            "so they are narrower than they should be"
        )
    elif judgement.num_units < 10:
        found.append(f"FEW PATIENTS: the intervals draw {judgement.num_units} patients; they are too narrow below about 10")
    gain = judgement.gain_over_colour
    if gain.low is not None and gain.low <= 0:
        found.append(
            "NO BETTER THAN COLOUR: the interval of the gain over a colour histogram includes 0, "
            "so it is not shown that the model sees anything but the stain"
        )
    return tuple(found)


def pick_errors(predictions: Predictions, predicted: NDArray[np.int64], num: int = NUM_EXAMPLES) -> NDArray[np.int64]:
    """Returns rows of wrongly named tiles, the surest first, shared out evenly over the true classes; ties by tile_id."""
    wrong = np.flatnonzero(predicted != predictions.labels)
    sureness = predictions.probabilities[wrong, predicted[wrong]]
    ordered = wrong[np.lexsort((predictions.tile_ids[wrong], -sureness))]
    labels = predictions.labels[ordered]
    # The n-th surest error of each class comes before the n+1-th of any.
    rank = np.zeros(len(ordered), dtype=np.int64)
    for k in np.unique(labels):
        rank[labels == k] = np.arange((labels == k).sum())
    chosen = ordered[np.argsort(rank, kind="stable")[:num]]
    return chosen[np.lexsort((-predictions.probabilities[chosen, predicted[chosen]], predictions.labels[chosen]))]


def example(pixels_HWC: NDArray[np.uint8], predictions: Predictions, predicted: NDArray[np.int64], row: int) -> dict[str, Any]:
    """Describes one wrongly named tile for the page; encoded anew, so that no EXIF comment of the source travels along."""
    image = base64.b64encode(encode_png(pixels_HWC)).decode()
    return {
        "image": f"data:image/png;base64,{image}",
        "tile_id": str(predictions.tile_ids[row]),
        "true": predictions.classes[predictions.labels[row]],
        "predicted": predictions.classes[predicted[row]],
        "probability": float(predictions.probabilities[row, predicted[row]]),
    }


def render_html(
    report: Report, predictions: Predictions, history: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]]
) -> str:
    """Renders the page; ``history`` are the lines of metrics.jsonl, one an epoch."""
    environment = Environment(
        loader=PackageLoader("historay.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _shown
    return environment.get_template("report.html").render(
        report=report,
        titles=TITLES,
        headline={name: figure for name, figure in report.headline.items() if name not in _SHOWN_ONCE},
        plots=_curves(report, predictions),
        confusion=plots.confusion_svg(np.array(report.confusion), report.classes),
        training=training_curves(history),
        examples=examples,
        num_errors=int(np.sum(report.confusion) - np.trace(report.confusion)),
    )


def _shown(figure: Estimate) -> str:
    """``0.912 (0.905 to 0.919)``; what is undefined says so."""
    if figure.value is None:
        return figure.reason or "undefined"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f} ({figure.reason})"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def _curves(report: Report, predictions: Predictions) -> dict[str, str]:
    """ROC and precision-recall of the positive class, or of each class against the rest that has tiles and rivals."""
    labels, point = predictions.labels, report.operating_point
    chosen = range(len(report.classes)) if point is None else [report.classes.index(point.positive_class)]
    curves = [
        (report.classes[k], labels == k, predictions.probabilities[:, k])
        for k in chosen
        if 0 < (labels == k).sum() < len(labels)
    ]
    if not curves:
        return {}
    at_roc = at_precision = None
    if point is not None:
        sensitivity, specificity = report.headline["sensitivity"].value, report.headline["specificity"].value
        precision = report.by_class[point.positive_class]["precision"].value
        if sensitivity is not None and specificity is not None:
            at_roc = (1 - specificity, sensitivity)
        if sensitivity is not None and precision is not None:
            at_precision = (sensitivity, precision)
    return {"ROC": plots.roc_svg(curves, at_roc), "Precision and recall": plots.precision_recall_svg(curves, at_precision)}


def training_curves(history: Sequence[dict[str, Any]]) -> dict[str, str]:
    """One plot of everything called a loss, and one of every other validation figure, over the epochs."""
    if not history:
        return {}
    names = [name for name, value in history[-1].items() if isinstance(value, int | float) and not isinstance(value, bool)]
    groups = {
        "loss": [name for name in names if name.endswith("loss")],
        "validation": [name for name in names if name.startswith("val_") and not name.endswith("loss")],
    }
    epochs = [float(line["epoch"]) for line in history]
    return {
        title: plots.training_svg(epochs, {name: [line.get(name) for line in history] for name in chosen}, title, title)
        for title, chosen in groups.items()
        if chosen
    }
