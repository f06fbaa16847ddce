"""The report's figures as inline SVG: same input, same bytes; nothing is left behind in pyplot."""

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from historay.evaluation.metrics import Floats, precision_recall_curve, roc_curve

# Okabe and Ito 2008: told apart with every common colour vision deficiency.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_DASHES = ("-", "--", ":")  # a ninth class gets the first colour again, dashed
_MAX_POINTS = 400  # a curve of 100,000 tiles would weigh megabytes
_STYLE: Any = {  # matplotlib's stubs spell out every key as a literal
    "svg.hashsalt": "historay",  # the ids no longer come from a random number
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
}

Curve = tuple[str, NDArray[np.bool_], Floats]  # name, is of the class (N,), its probability (N,)


def roc_svg(curves: Sequence[Curve], at: tuple[float, float] | None) -> str:
    """Draws ROC curves; ``at`` is the operating point (false positive rate, true positive rate) on this split."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(4.6, 4.2)
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        for number, (name, positive, probability) in enumerate(curves):
            axes.plot(*_thinned(*roc_curve(positive, probability)), **_line(number, name))
        if at is not None:
            axes.plot(*at, "o", color="#000000", label="operating point")
        _unit_square(axes, "1 - specificity", "sensitivity", "lower right")
        return _svg(figure, "roc")


def precision_recall_svg(curves: Sequence[Curve], at: tuple[float, float] | None) -> str:
    """Draws precision over recall; ``at`` is the operating point (recall, precision) on this split."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(4.6, 4.2)
        for number, (name, positive, probability) in enumerate(curves):
            axes.plot(*_thinned(*precision_recall_curve(positive, probability)), **_line(number, name))
        if len(curves) == 1:
            axes.axhline(curves[0][1].mean(), color="#999999", linewidth=0.8, label="chance: share of positives")
        if at is not None:
            axes.plot(*at, "o", color="#000000", label="operating point")
        _unit_square(axes, "recall (sensitivity)", "precision", "lower left")
        return _svg(figure, "pr")


def confusion_svg(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """Draws the confusion matrix: tiles in each cell, shaded by the share of its row."""
    num = len(classes)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        side = max(3.6, 0.62 * num + 1.6)
        figure, axes = _figure(side + 0.4, side)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1.25)  # never so dark that black text is lost
        for row, column in np.ndindex(num, num):
            text = f"{confusion[row, column]:,}\n{share[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9 if num < 5 else 7)
        axes.set_xticks(range(num), classes, rotation=0 if num < 4 else 45, ha="center" if num < 4 else "right")
        axes.set_yticks(range(num), classes)
        axes.set(xlabel="predicted", ylabel="true")
        return _svg(figure, "confusion")


def training_svg(epochs: Sequence[float], series: dict[str, Sequence[float | None]], ylabel: str, name: str) -> str:
    """Draws each named series over the epochs; None leaves a gap."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(4.6, 3.2)
        for number, (label, values) in enumerate(series.items()):
            shown = [np.nan if value is None else value for value in values]
            axes.plot(epochs, shown, marker="." if len(epochs) < 50 else None, **_line(number, label))
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        return _svg(figure, name)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _line(number: int, label: str) -> dict[str, Any]:
    dash = _DASHES[number // len(PALETTE) % len(_DASHES)]
    return {"color": PALETTE[number % len(PALETTE)], "linestyle": dash, "linewidth": 1.8, "label": label}


def _unit_square(axes: Axes, xlabel: str, ylabel: str, legend: Literal["lower left", "lower right"]) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.legend(loc=legend, frameon=True, edgecolor="none", fontsize=8)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Keeps at most 400 true points of a curve, its ends among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MAX_POINTS)).astype(int))
    return x[kept], y[kept]


def _svg(figure: Figure, name: str) -> str:
    """Returns the <svg> element; its ids begin with the figure's name, since several stand in one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text[text.index("<svg") :])
