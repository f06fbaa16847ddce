"""The report's figures of calibration, net benefit, abstention, probabilities and robustness as inline SVG.

J bins of a reliability diagram, S severities, N tiles, T thresholds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from historay.evaluation.metrics import Floats
from historay.evaluation.plot_style import (
    GREY,
    PALETTE,
    curve,
    legend_below,
    line,
    marker,
    new_figure,
    one_plot,
    short,
    styled,
    svg,
    tiles,
)

_LOG_FROM = 30  # largest count over smallest, above which a count axis is logarithmic
_HISTOGRAM_BINS = 25


class ReliabilityBins(NamedTuple):
    """The bins of a reliability diagram; NaN where a figure is undefined."""

    predicted_J: Floats  # mean probability of the bin's tiles
    observed_J: Floats  # share of them on which the event happened
    low_J: Floats  # where 95 % of the shares of a calibrated model would lie
    high_J: Floats
    count_J: Floats  # tiles


class SpoiltTiles(NamedTuple):
    """ROC-AUC at growing severities of one way to spoil tiles; NaN where undefined."""

    parameter: str  # what is varied, with its unit
    labels_S: Sequence[str]  # the parameter at each severity
    auc_S: Floats
    low_S: Floats
    high_S: Floats


def reliability_svg(series: Mapping[str, ReliabilityBins], event: str) -> str:
    """Draws observed frequency over predicted probability of ``event``, with its band, and tiles by bin; series by name."""
    count = max((int(np.nansum(bins.count_J)) for bins in series.values()), default=0)
    with styled():
        figure = new_figure(4.6, 6.0, f"Reliability: {short(event, 40)} ({tiles(count)})")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="perfect calibration")
        for number, (name, bins) in enumerate(series.items()):
            _draw_bins(axes, below, number, name, bins)
        axes.set(ylabel="observed frequency", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        below.set(xlabel="predicted probability", ylabel="tiles in bin")
        _count_axis(below, np.concatenate([np.asarray(bins.count_J) for bins in series.values()] or [np.zeros(0)]))
        legend_below(figure, axes)
        return svg(figure, "reliability")


def decision_curve_svg(
    threshold_T: Floats, curves: Mapping[str, Floats], num_tiles: int, interval: tuple[Floats, Floats] | None = None
) -> str:
    """Draws net benefit over the threshold probability; ``curves`` hold the model's, with its interval, and its rivals'."""
    with styled():
        figure, axes = one_plot(4.6, 4.2, f"Decision curve ({tiles(num_tiles)})")
        finite = np.concatenate([values[np.isfinite(values)] for values in curves.values()] or [np.zeros(1)])
        highest = max(float(finite.max(initial=0.0)), 0.01)
        for number, (name, benefit_T) in enumerate(curves.items()):
            curve(axes, number, name, threshold_T, benefit_T)
        if interval is not None:
            axes.fill_between(threshold_T, *interval, color=PALETTE[0], alpha=0.15, linewidth=0, label="95 % interval")
        # "Treat all" falls without bound towards a threshold of 1; what is far below 0 is of no use to anyone.
        axes.set(ylim=(-0.25 * highest, 1.08 * highest), xlim=(-0.02, 1.02))
        axes.set(xlabel="threshold probability", ylabel="net benefit (true positives per tile)")
        legend_below(figure, axes)
        return svg(figure, "decision-curve")


def risk_coverage_svg(coverage: Floats, risk: Floats, num_tiles: int, at: tuple[float, float] | None = None) -> str:
    """Draws the share of errors among answered tiles over the share answered; ``at`` is the chosen (coverage, risk)."""
    with styled():
        figure, axes = one_plot(4.6, 4.0, f"Risk and coverage: the surest tiles are answered first ({tiles(num_tiles)})")
        curve(axes, 0, "model", coverage, risk)
        if len(risk) and np.isfinite(risk[-1]):
            axes.axhline(risk[-1], color=GREY, linewidth=0.8, linestyle="--", label=f"all answered: {risk[-1]:.3f}")
        if at is not None:
            label = f"chosen: {at[0]:.1%} answered, risk {at[1]:.3f}"
            axes.plot(*at, "o", color="#000000", markersize=9, fillstyle="none", markeredgewidth=1.6, label=label)
        axes.set(xlabel="coverage (share of tiles answered)", ylabel="risk (share of answers wrong)")
        axes.set(xlim=(-0.02, 1.02))
        axes.set_ylim(bottom=0)
        legend_below(figure, axes, 1)
        return svg(figure, "risk-coverage")


def histogram_svg(groups: Mapping[str, Floats], of: str, threshold: float | None = None) -> str:
    """Draws how a probability spreads over the tiles of each true class, one row a class; ``of`` says whose it is."""
    total = sum(len(values) for values in groups.values())
    edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
    with styled():
        figure = new_figure(
            4.6, 1.2 + 0.95 * max(len(groups), 1), f"Probability of {short(of, 40)} by true class ({tiles(total)})"
        )
        rows = np.atleast_1d(figure.subplots(max(len(groups), 1), 1, sharex=True))
        for axes, (name, values) in zip(rows, groups.items(), strict=False):
            share = np.histogram(values, edges)[0] / max(len(values), 1)
            axes.stairs(share, edges, fill=True, facecolor=PALETTE[5], edgecolor="#000000", linewidth=0.8)
            axes.set_ylim(0, 1.1 * float(share.max(initial=0.0)) or 1.0)
            axes.set_title(f"{short(name, 40)}: {tiles(len(values))}", loc="left", fontsize=8, pad=2)
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(labelsize=8)
            if threshold is not None:
                axes.axvline(threshold, color="#000000", linestyle="--", linewidth=1)
        rows[-1].set(xlabel="predicted probability" + ("" if threshold is None else f" (dashed: threshold {threshold:.3g})"))
        rows[-1].set_xlim(-0.02, 1.02)
        figure.supylabel("share of the class's tiles", fontsize=10)
        return svg(figure, f"histogram-{of}")


def robustness_svg(curves: Mapping[str, SpoiltTiles], clean_auc: float | None, num_tiles: int) -> str:
    """Draws ROC-AUC over the severity of each way to spoil tiles; small multiples with one y axis."""
    num_columns = min(len(curves), 3) or 1
    num_rows = max(-(-len(curves) // num_columns), 1)
    with styled():
        title = f"ROC-AUC of spoilt tiles, with 95 % intervals ({tiles(num_tiles)}; dashed: not spoilt, dotted: chance)"
        figure = new_figure(max(2.6 * num_columns + 0.4, 3.6), 2.5 * num_rows + 0.6, title)
        grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).ravel()
        for number, (axes, (name, spoilt)) in enumerate(zip(grid, curves.items(), strict=False)):
            _draw_spoilt(axes, number, name, spoilt, clean_auc)
        for axes in grid[len(curves) :]:
            axes.remove()
        for axes in grid[: len(curves) : num_columns]:
            axes.set_ylabel("ROC-AUC")
        _share_range(figure, curves, clean_auc)
        return svg(figure, "robustness")


def _draw_bins(axes: Axes, below: Axes, number: int, name: str, bins: ReliabilityBins) -> None:
    style = line(number, name)
    band = (bins.predicted_J, bins.low_J, bins.high_J)
    axes.fill_between(*band, color=style["color"], alpha=0.15, linewidth=0, label="" if number else "95 % band if calibrated")
    axes.vlines(*band, color=style["color"], alpha=0.5, linewidth=0.9)
    axes.plot(bins.predicted_J, bins.observed_J, **style)
    shown = np.isfinite(bins.predicted_J) & (bins.count_J > 0)
    place = bins.predicted_J[shown] + 0.008 * number  # beside the bar of the series before
    below.vlines(place, 0.5, bins.count_J[shown], color=style["color"], linewidth=1.2)
    below.plot(place, bins.count_J[shown], marker(number), color=style["color"], markersize=4.5)


def _count_axis(axes: Axes, counts: Floats) -> None:
    present = counts[np.isfinite(counts) & (counts > 0)]
    if len(present) and present.max() / present.min() > _LOG_FROM:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
    else:
        axes.set_ylim(0, 1.15 * float(present.max(initial=1.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(axis="y", labelsize=8)


def _draw_spoilt(axes: Axes, number: int, name: str, spoilt: SpoiltTiles, clean_auc: float | None) -> None:
    position = np.arange(1, len(spoilt.labels_S) + 1)
    error = np.abs(np.vstack([spoilt.auc_S - spoilt.low_S, spoilt.high_S - spoilt.auc_S]))
    start = [np.nan if clean_auc is None else clean_auc]
    style = line(number, "")
    axes.plot([0, *position], np.concatenate([start, spoilt.auc_S]), **(style | {"marker": ""}))
    axes.errorbar(position, spoilt.auc_S, yerr=error, capsize=2.5, elinewidth=0.9, **(style | {"linestyle": "none"}))
    if clean_auc is not None:
        axes.axhline(clean_auc, color=GREY, linewidth=0.8, linestyle="--")
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title(short(name, 26), fontsize=9, loc="left")
    axes.set_xticks([0, *position], ["none", *spoilt.labels_S], fontsize=8)
    axes.set_xlabel(short(spoilt.parameter, 40), fontsize=8)


def _share_range(figure: Figure, curves: Mapping[str, SpoiltTiles], clean_auc: float | None) -> None:
    """Ends the common y axis a little beyond all intervals; chance, 0.5, is shown where the figures come near it."""
    values = np.concatenate(
        [np.asarray(part, dtype=float) for spoilt in curves.values() for part in spoilt[2:]] or [np.zeros(0)]
    )
    values = np.append(values, np.nan if clean_auc is None else clean_auc)
    values = values[np.isfinite(values)]
    low, high = float(values.min(initial=1.0)), float(values.max(initial=0.5))
    low = min(low, 0.5) if low < 0.6 else low
    for axes in figure.axes[:1]:
        margin = 0.06 * max(high - low, 0.05)
        axes.set_ylim(low - margin, high + margin)
