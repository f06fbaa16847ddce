"""The figures of search.html as inline SVG, in the style of the evaluation's."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from historay.evaluation.plot_style import PALETTE, new_figure, one_plot, styled, svg
from historay.training.settings import Monitor
from historay.training.study import TrialRecord, best_so_far

_SLICES_PER_ROW = 3


def history_svg(trials: Sequence[TrialRecord], monitor: Monitor) -> str:
    """Draws each trial's value in the order of their start, and the best up to then."""
    valued = [trial for trial in trials if trial.value is not None]
    with styled():
        figure, axes = one_plot(6.4, 3.4, "Optimisation history: value over trials")
        _scatter(axes, valued, [trial.number for trial in valued])
        best = best_so_far([trial.value for trial in valued if trial.value is not None], monitor)
        axes.step([trial.number for trial in valued], best, where="post", color="#666666", label="best so far")
        axes.set(xlabel="trial", ylabel=monitor)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        return svg(figure, "history")


def importance_svg(importance: Mapping[str, float]) -> str:
    """Draws each setting's share of the variance of the value, the largest on top."""
    with styled():
        figure, axes = one_plot(5.2, 0.9 + 0.34 * len(importance), "Importance of each setting")
        names = list(importance)[::-1]
        axes.barh(names, [importance[name] for name in names], color=PALETTE[0])
        axes.set(xlabel="share of the variance (fANOVA)", xlim=(0, 1))
        return svg(figure, "importance")


def parallel_svg(trials: Sequence[TrialRecord], space: Mapping[str, BaseDistribution], monitor: Monitor) -> str:
    """Draws each trial as a line over the settings' own axes and, last, its value; darker is better."""
    valued = [trial for trial in trials if trial.value is not None]
    values = np.array([trial.value for trial in valued])
    goodness = _unit(-values if monitor == "val_loss" else values)
    columns = [unit_positions([trial.params[name] for trial in valued], known) for name, known in space.items()]
    lines = np.stack([*columns, _unit(values)], axis=1)
    with styled(), mpl.rc_context({"axes.grid": False}):
        figure, axes = one_plot(max(5.0, 1.35 * (len(space) + 1)), 3.6, "Parallel coordinates of all trials")
        for row in np.argsort(goodness):
            axes.plot(lines[row], color=mpl.colormaps["Blues"](0.2 + 0.8 * goodness[row]), linewidth=1.4)
        for place, (low, high) in enumerate([*(_ends(known) for known in space.values()), _shown_ends(values)]):
            axes.axvline(place, color="#444444", linewidth=0.8)
            axes.annotate(high, (place, 1.02), ha="center", va="bottom", fontsize=8)
            axes.annotate(low, (place, -0.02), ha="center", va="top", fontsize=8)
        axes.set_xticks(range(len(space) + 1), [*space, monitor], fontsize=9)
        axes.set(ylim=(-0.12, 1.12), yticks=[])
        axes.tick_params(length=0, pad=12)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg(figure, "parallel")


def slices_svg(trials: Sequence[TrialRecord], space: Mapping[str, BaseDistribution], monitor: Monitor) -> str:
    """Draws the value over each setting by itself."""
    valued = [trial for trial in trials if trial.value is not None]
    rows = -(-len(space) // _SLICES_PER_ROW)
    with styled():
        figure = new_figure(8.4, 2.7 * rows, "Value over each setting")
        for number, (name, known) in enumerate(space.items(), start=1):
            _slice(figure.add_subplot(rows, _SLICES_PER_ROW, number), valued, name, known)
        figure.supylabel(monitor, fontsize=10)
        return svg(figure, "slices")


def unit_positions(values: Sequence[Any], known: BaseDistribution) -> NDArray[np.float64]:
    """Returns where values lie between the ends of their range, 0 to 1, on its own scale; choices lie evenly."""
    if isinstance(known, CategoricalDistribution):
        return np.array([known.choices.index(value) for value in values]) / (len(known.choices) - 1)
    scale = np.log if getattr(known, "log", False) else np.asarray
    low, high = (float(scale(float(end))) for end in (getattr(known, "low"), getattr(known, "high")))  # noqa: B009
    return (np.asarray(scale(np.array(values, dtype=np.float64))) - low) / (high - low)


def _scatter(axes: Axes, valued: Sequence[TrialRecord], x: Sequence[Any]) -> None:
    """Marks each trial's value at its x; a trial that was stopped early is hollow."""
    for status, edge in (("complete", PALETTE[0]), ("stopped", PALETTE[1])):
        points = [(at, trial.value) for at, trial in zip(x, valued, strict=True) if trial.status == status]
        if points:
            across, up = zip(*points, strict=True)
            face = edge if status == "complete" else "none"
            axes.scatter(across, up, s=26, edgecolors=edge, facecolors=face, label=status, zorder=3)


def _slice(axes: Axes, valued: Sequence[TrialRecord], name: str, known: BaseDistribution) -> None:
    tried = [trial.params[name] for trial in valued]
    if isinstance(known, CategoricalDistribution):
        axes.set_xticks(range(len(known.choices)), [str(choice) for choice in known.choices])
        tried = [known.choices.index(choice) for choice in tried]
    _scatter(axes, valued, tried)
    if getattr(known, "log", False):
        axes.set_xscale("log")
        # The default writes powers as TeX, which an SVG with real letters shows as it stands.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(name)


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread > 0 else np.full(len(values), 0.5)


def _ends(known: BaseDistribution) -> tuple[str, str]:
    if isinstance(known, CategoricalDistribution):
        return str(known.choices[0]), str(known.choices[-1])
    return f"{getattr(known, 'low'):g}", f"{getattr(known, 'high'):g}"  # noqa: B009


def _shown_ends(values: NDArray[np.float64]) -> tuple[str, str]:
    return f"{values.min():.3g}", f"{values.max():.3g}"
