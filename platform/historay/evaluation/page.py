"""Renders a report, and a comparison of two, as HTML pages that load nothing from anywhere."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from historay.evaluation import plots
from historay.evaluation.comparison import Comparison
from historay.evaluation.examples import Example
from historay.evaluation.figures import report_svgs
from historay.evaluation.intervals import METHOD, Estimate
from historay.evaluation.plots_rows import Row, forest_svg
from historay.evaluation.predictions import Predictions
from historay.evaluation.report import DISCLAIMER, Report
from historay.evaluation.shortcut import FAMILIES
from historay.evaluation.side_by_side import side_by_side

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
    "ece_width": "Calibration error, 15 bins of equal width",
    "ece_mass": "Calibration error, 15 bins of equal share",
    "brier": "Brier score",
    "nll": "Log loss, nats a tile",
    "coverage": "Sets that hold the true class",
    "coverage_mean_of_patients": "The same, each patient weighing alike",
    "mean_size": "Classes in a set, mean",
    "single": "Sets of one class",
    "empty": "Empty sets",
    "full": "Sets of all classes",
    "abstained": "Abstained: sets that are not one class",
    "accuracy_of_single": "Accuracy where the set is one class",
    "aurc": "Area under the risk-coverage curve",
    "risk": "Error rate among the answered",
    "risk_mean_of_patients": "Error rate among the answered, each patient weighing alike",
}
# Equal to balanced accuracy by definition, or shown with the calibration; all names stay in report.json.
_SHOWN_ELSEWHERE = {"macro_recall", "ece_width", "ece_mass", "brier", "nll"}


class Pictures(NamedTuple):
    """What a page shows of the tiles themselves."""

    examples: Mapping[str, Sequence[Example]]  # by title
    slices: Sequence[Sequence[Example]]  # of each error slice


def render_report(report: Report, test: Predictions, history: Sequence[dict[str, Any]], pictures: Pictures) -> str:
    """Renders the page; ``test`` are the calibrated predictions, ``history`` the lines of metrics.jsonl, one an epoch."""
    headline = {name: report.headline[name] for name in TITLES if name in report.headline and name not in _SHOWN_ELSEWHERE}
    best = report.shortcuts.verdict.best
    return (
        _environment()
        .get_template("report.html")
        .render(
            r=report,
            titles=TITLES,
            families={name: family.words for name, family in FAMILIES.items()},
            headline=headline,
            best_gain=report.shortcuts.gains[best] if best else None,
            svg=report_svgs(report, test, history),
            confusion=plots.confusion_svg(np.array(report.confusion), report.classes),
            pictures=pictures,
            num_errors=int(np.sum(report.confusion) - np.trace(report.confusion)),
        )
    )


def render_comparison(
    names: Sequence[str], facts: Sequence[Mapping[str, Any]], comparison: Comparison, reports: Sequence[Report | None]
) -> str:
    """Renders the page of two models; ``facts`` tell one from the other, by field; a report that cannot be read is None."""
    figures = {name: comparison.figures[name] for name in TITLES if name in comparison.figures and name != "macro_recall"}
    rows = [
        Row(TITLES[name], comparison.num_tiles, found.difference.value, found.difference.low, found.difference.high)
        for name, found in figures.items()
        if name != "nll"  # nats, on an axis of shares
    ]
    readable = [report for report in reports if report is not None]
    return (
        _environment()
        .get_template("comparison.html")
        .render(
            names=names,
            facts=facts,
            c=comparison,
            figures=figures,
            reports=side_by_side(readable, TITLES) if len(readable) == len(reports) else {},
            unreadable=[name for name, report in zip(names, reports, strict=True) if report is None],
            titles=TITLES,
            method=METHOD,
            disclaimer=DISCLAIMER,
            forest=forest_svg(rows, Row("no difference", 0, 0.0, None, None), "A less B", "difference, paired"),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("historay.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = Estimate.in_words
    environment.filters["short_figure"] = _in_short
    environment.filters["p_value"] = _p_value
    return environment


def _in_short(figure: Estimate) -> str:
    """As in words, for a narrow cell: why there is no interval is said below the table."""
    lacks_interval = figure.value is not None and figure.low is None
    return f"{figure.value:.3f} (no interval)" if lacks_interval else figure.in_words()


def _p_value(value: float | None) -> str:
    if value is None:
        return "undefined"
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
