"""Every plot of a report as inline SVG, by name, drawn from the report itself and the predictions behind it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from historay.evaluation import plots, plots_trust
from historay.evaluation.conformal import ConformalRule
from historay.evaluation.intervals import Estimate
from historay.evaluation.judgement import chosen_classes
from historay.evaluation.metrics import Floats
from historay.evaluation.miscalibration import ReliabilityBin
from historay.evaluation.plot_flow import Flow, SplitCounts, flow_svg
from historay.evaluation.plots_rows import Row, coverage_svg, forest_svg
from historay.evaluation.predictions import Predictions
from historay.evaluation.report import Report
from historay.evaluation.shortcut import FAMILIES


def report_svgs(report: Report, test: Predictions, history: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Draws all plots; one that cannot be drawn from this report is an empty text."""
    num_tiles = len(test.labels)
    drawn = {
        "flow": _flow(report),
        "roc": "",
        "precision_recall": "",
        "histogram": "",
        "reliability": _reliability(report),
        "decision": _decision(report, num_tiles),
        "risk_coverage": _risk_coverage(report, num_tiles),
        "coverage": _coverage(report, test),
        "shortcuts": _shortcuts(report, num_tiles),
        "robustness": _robustness(report),
        **_curves(report, test),
    }
    training = {f"training_{title}": svg for title, svg in training_curves(history).items()}
    return drawn | {"training_loss": "", "training_validation": ""} | training | _subgroups(report, num_tiles)


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


def _flow(report: Report) -> str:
    confusion = np.array(report.confusion)
    called = dict(zip((f"called {name}" for name in report.classes), confusion.sum(axis=0).tolist(), strict=True))
    patients = [split.num_patients for split in report.flow.splits.values()]
    return flow_svg(
        Flow(
            num_found=report.flow.num_found,
            quarantined=report.flow.quarantined,
            num_kept=report.flow.num_kept,
            num_patients=None if None in patients else sum(count or 0 for count in patients),
            splits=[SplitCounts(name, split.num_tiles, split.num_patients) for name, split in report.flow.splits.items()],
            outcomes=called,
        )
    )


def _curves(report: Report, test: Predictions) -> dict[str, str]:
    """ROC and precision-recall of the positive class, or of each class against the rest that has tiles and rivals."""
    labels, point = test.labels, report.operating_point
    curves = [
        (report.classes[k], labels == k, test.probabilities[:, k])
        for k in chosen_classes(report.classes, point)
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
    found = {"roc": plots.roc_svg(curves, at_roc), "precision_recall": plots.precision_recall_svg(curves, at_precision)}
    if point is not None:
        k = report.classes.index(point.positive_class)
        by_class = {name: test.probabilities[labels == index, k] for index, name in enumerate(report.classes)}
        found["histogram"] = plots_trust.histogram_svg(by_class, point.positive_class, point.threshold)
    return found


def _reliability(report: Report) -> str:
    section = report.calibration
    series = {"as the network gives it": _bins(section.before.diagram)}
    if section.choice.calibration.kind != "none":
        series[f"after {section.choice.calibration.kind}"] = _bins(section.after.diagram)
    return plots_trust.reliability_svg(series, section.event)


def _bins(diagram: Iterable[ReliabilityBin]) -> plots_trust.ReliabilityBins:
    rows = [(b.mean_probability, b.frequency, b.band_low, b.band_high, float(b.count)) for b in diagram]
    return plots_trust.ReliabilityBins(*np.array(rows).reshape(-1, 5).T)


def _decision(report: Report, num_tiles: int) -> str:
    section = report.decision
    if section is None:
        return ""
    curve = section.curve
    curves = {
        "model": _numbers(benefit.value for benefit in curve.model),
        "treat all": np.array(curve.treat_all),
        "treat none": np.zeros(len(curve.thresholds)),
    }
    interval = _numbers(benefit.low for benefit in curve.model), _numbers(benefit.high for benefit in curve.model)
    return plots_trust.decision_curve_svg(np.array(curve.thresholds), curves, num_tiles, interval)


def _risk_coverage(report: Report, num_tiles: int) -> str:
    section = report.abstention
    coverage, risk = section.answered["coverage"].value, section.answered["risk"].value
    at = None if section.selective.threshold is None or coverage is None or risk is None else (coverage, risk)
    return plots_trust.risk_coverage_svg(np.array(section.coverage_T), np.array(section.risk_T), num_tiles, at)


def _coverage(report: Report, test: Predictions) -> str:
    section, num_tiles = report.abstention, len(test.labels)
    sites = Counter([] if test.sites is None else test.sites.tolist())
    rule: ConformalRule = section.rules[section.shipped]
    found = section.sets[section.shipped]
    rows = [_row("all tiles", num_tiles, found["coverage"])]
    for name, estimate in found.items():
        kind, _, group = name.removeprefix("coverage:").partition(":")
        if name.startswith("coverage:"):
            count = report.num_tiles[group] if kind == "class" else sites[group]
            rows.append(_row(f"{kind} {group}", count, estimate))
    return coverage_svg(rows, 1 - rule.alpha, "Prediction sets")


def _shortcuts(report: Report, num_tiles: int) -> str:
    rows = [_row(FAMILIES[name].words, num_tiles, estimate) for name, estimate in report.shortcuts.aucs.items()]
    return forest_svg(rows, _row("the model", num_tiles, report.headline["roc_auc"]), "Shortcuts", "ROC-AUC")


def _subgroups(report: Report, num_tiles: int) -> dict[str, str]:
    return {
        f"subgroup_{column.column}": forest_svg(
            [_row(group.name, group.num_tiles, getattr(group, column.criterion)) for group in column.groups],
            _row("all", num_tiles, report.headline[column.criterion]),
            f"By {column.column}",
            {"roc_auc": "ROC-AUC", "accuracy": "accuracy"}[column.criterion],
        )
        for column in report.subgroups.columns
    }


def _robustness(report: Report) -> str:
    if report.robustness is None:
        return ""
    curves = {
        curve.title: plots_trust.SpoiltTiles(
            curve.parameter,
            [f"{point.level:g}" for point in curve.points],
            *(_numbers(getattr(point.roc_auc, field) for point in curve.points) for field in ("value", "low", "high")),
        )
        for curve in report.robustness.curves
    }
    return plots_trust.robustness_svg(curves, report.robustness.clean.value, report.robustness.num_tiles)


def _numbers(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values])


def _row(label: str, count: int, estimate: Estimate) -> Row:
    return Row(label, count, estimate.value, estimate.low, estimate.high)
