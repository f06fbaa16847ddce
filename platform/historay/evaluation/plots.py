"""The report's figures of ranking, decisions and training as inline SVG."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from historay.evaluation.metrics import Floats, precision_recall_curve, roc_curve
from historay.evaluation.plot_style import GREY, curve, legend_below, one_plot, short, styled, svg, tiles

Curve = tuple[str, NDArray[np.bool_], Floats]  # name, is of the class (N,), its probability (N,)


def roc_svg(curves: Sequence[Curve], at: tuple[float, float] | None) -> str:
    """Draws ROC curves; ``at`` is the operating point (false positive rate, true positive rate) on this split."""
    with styled():
        figure, axes = one_plot(4.6, 5.0, f"ROC curve ({_counts(curves)})")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="chance")
        for number, (name, positive, probability) in enumerate(curves):
            curve(axes, number, name, *roc_curve(positive, probability))
        _mark(axes, at)
        _unit_square(axes, "1 - specificity (false positive rate)", "sensitivity (true positive rate)")
        legend_below(figure, axes)
        return svg(figure, "roc")


def precision_recall_svg(curves: Sequence[Curve], at: tuple[float, float] | None) -> str:
    """Draws precision over recall; ``at`` is the operating point (recall, precision) on this split."""
    with styled():
        figure, axes = one_plot(4.6, 5.0, f"Precision and recall ({_counts(curves)})")
        for number, (name, positive, probability) in enumerate(curves):
            curve(axes, number, name, *precision_recall_curve(positive, probability))
        if len(curves) == 1:
            axes.axhline(curves[0][1].mean(), color=GREY, linewidth=0.8, label="chance: share of positives")
        _mark(axes, at)
        _unit_square(axes, "recall (sensitivity)", "precision (positive predictive value)")
        legend_below(figure, axes)
        return svg(figure, "pr")


def confusion_svg(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """Draws the confusion matrix: tiles in each cell, shaded by the share of its row."""
    num = len(classes)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    with styled():
        side = max(3.8, 0.62 * num + 1.8)
        title = f"Tiles by true and predicted class, and their share of the true class ({tiles(int(confusion.sum()))})"
        figure, axes = one_plot(side + 0.2, side + 0.2, title)
        axes.grid(visible=False)
        mesh = axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=1, edgecolors="#ffffff", linewidth=0.5)
        for row, column in np.ndindex(num, num):
            text = f"{confusion[row, column]:,}\n{share[row, column]:.0%}"
            ink = _ink(np.asarray(mesh.to_rgba(share[row, column])))
            size = 9 if num < 5 else 7
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=ink)
        names = [short(name, 22) for name in classes]
        upright = max(len(name) for name in names) * num < 34  # letters that fit side by side under the matrix
        axes.set_xticks(np.arange(num) + 0.5, names, rotation=0 if upright else 45, ha="center" if upright else "right")
        axes.set_yticks(np.arange(num) + 0.5, names)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted class", ylabel="true class", ylim=(num, 0), aspect="equal")
        return svg(figure, "confusion")


def training_svg(epochs: Sequence[float], series: dict[str, Sequence[float | None]], ylabel: str, name: str) -> str:
    """Draws each named series over the epochs; None leaves a gap."""
    with styled():
        figure, axes = one_plot(4.6, 3.4 + 0.1 * len(series), f"Training: {ylabel} (epochs: {len(epochs)})")
        for number, (label, values) in enumerate(series.items()):
            curve(axes, number, label, np.array(epochs), np.array(values, dtype=np.float64))  # None becomes NaN
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.set_xlim(min(epochs, default=0) - 0.5, max(epochs, default=1) + 0.5)  # room for whole numbers, even of one epoch
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(figure, axes)
        return svg(figure, name)


def _counts(curves: Sequence[Curve]) -> str:
    if not curves:
        return tiles(0)
    name, positive, _ = curves[0]
    total = tiles(len(positive))
    return f"{total}, {int(positive.sum()):,} of {short(name)}" if len(curves) == 1 else f"{total}, each class against the rest"


def _mark(axes: Axes, at: tuple[float, float] | None) -> None:
    if at is not None:
        axes.plot(*at, "o", color="#000000", markersize=9, fillstyle="none", markeredgewidth=1.6, label="operating point")


def _unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def _ink(background: Floats) -> str:
    """Black or white, whichever has the higher contrast to the background by WCAG's relative luminance."""
    light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3]]
    luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
    return "#000000" if luminance > 0.179 else "#ffffff"  # (L + 0.05)² = 0.05 · 1.05
