"""The report's figures with one line a group: forest plots of subgroups and shortcuts, coverage of prediction sets."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from historay.evaluation.plot_style import GREY, PALETTE, new_figure, short, styled, svg

_ROW_INCHES = 0.26
_INCHES_A_LETTER = 0.083  # of DejaVu Sans at 9 points


class Row(NamedTuple):
    """One group's figure; None or NaN where it is undefined."""

    label: str
    num_tiles: int
    value: float | None
    low: float | None
    high: float | None


def forest_svg(rows: Sequence[Row], overall: Row | None, title: str, xlabel: str) -> str:
    """Draws each group's figure with its interval under one another; ``overall`` is a diamond below and a dashed line."""
    reference = _number(overall.value) if overall is not None else np.nan
    shown = [*rows, overall] if overall is not None else list(rows)
    return _draw(shown, reference, title, xlabel, diamond=overall is not None, name=f"forest-{title}")


def coverage_svg(rows: Sequence[Row], target: float, title: str) -> str:
    """Draws how often prediction sets hold the true class, by group, against the promised share."""
    return _draw(
        rows,
        target,
        f"{title} (promised: {target:.0%}, dashed)",
        "share of tiles whose set holds the true class",
        diamond=False,
        name=f"coverage-{title}",
    )


def _draw(rows: Sequence[Row], reference: float, title: str, xlabel: str, *, diamond: bool, name: str) -> str:
    labels = [short(row.label, 36) for row in rows]
    margin = 0.3 + _INCHES_A_LETTER * max((len(label) for label in labels), default=0)
    height = 1.15 + _ROW_INCHES * max(len(rows), 1)
    with styled():
        figure = new_figure(margin + 5.2, height, title)
        axes = figure.add_subplot()
        axes.grid(visible=False, axis="y")
        if np.isfinite(reference):
            axes.axvline(reference, color=GREY, linestyle="--", linewidth=1)
        for position, row in enumerate(rows):
            _draw_row(axes, position, row, last=diamond and position == len(rows) - 1)
        axes.set_yticks(range(len(rows)), labels, fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=xlabel, ylim=(max(len(rows), 1) - 0.5, -0.5))
        axes.set_xlim(*_range(rows, reference))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _columns(axes, rows)
        return svg(figure, name)


def _draw_row(axes: Axes, position: int, row: Row, *, last: bool) -> None:
    value, low, high = _number(row.value), _number(row.low), _number(row.high)
    if not np.isfinite(value):
        return
    if np.isfinite(low) and np.isfinite(high):
        axes.plot([low, high], [position, position], color="#000000", linewidth=1.2, marker="|", markersize=6)
    marker, colour, size = ("D", "#000000", 7.0) if last else ("s", PALETTE[0], 5.5)
    axes.plot([value], [position], linestyle="none", marker=marker, color=colour, markersize=size)


def _columns(axes: Axes, rows: Sequence[Row]) -> None:
    """Writes tiles and figures to the right of the plot, on the lines of their rows."""
    head: dict[str, Any] = {
        "xycoords": ("axes fraction", "axes fraction"),
        "textcoords": "offset points",
        "va": "bottom",
        "fontsize": 8,
    }
    axes.annotate("tiles", (1, 1), xytext=(48, 2), ha="right", **head)
    axes.annotate("value (95 % interval)", (1, 1), xytext=(60, 2), ha="left", **head)
    body: dict[str, Any] = {
        "xycoords": axes.get_yaxis_transform(),
        "textcoords": "offset points",
        "va": "center",
        "fontsize": 8.5,
    }
    for position, row in enumerate(rows):
        axes.annotate(f"{row.num_tiles:,}", (1, position), xytext=(48, 0), ha="right", **body)
        axes.annotate(_in_words(row), (1, position), xytext=(60, 0), ha="left", **body)


def _in_words(row: Row) -> str:
    value, low, high = _number(row.value), _number(row.low), _number(row.high)
    if not np.isfinite(value):
        return "undefined"
    if not np.isfinite(low) or not np.isfinite(high):
        return f"{value:.3f} (no interval)"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _range(rows: Sequence[Row], reference: float) -> tuple[float, float]:
    numbers = np.array([_number(part) for row in rows for part in row[2:]] + [reference])
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return 0.0, 1.0
    margin = max(0.05 * float(np.ptp(numbers)), 0.01)
    return float(numbers.min()) - margin, float(numbers.max()) + margin


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
