"""The flow of images through a study as inline SVG, after STARD 2015: found, excluded with reasons, split, judged."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from historay.evaluation.plot_style import styled, svg

# In inches, but for the font, which is in points.
_LINE, _PAD, _GAP, _EDGE, _HEAD = 0.165, 0.09, 0.3, 0.05, 0.3
_FONT = 9
_SPLIT_WIDTH, _TRUNK_WIDTH, _SIDE_WIDTH = 1.9, 2.8, 2.9


class SplitCounts(NamedTuple):
    """What one split holds; None where patients are not known."""

    name: str
    num_tiles: int
    num_patients: int | None


class Flow(NamedTuple):
    """The counts of the diagram."""

    num_found: int  # images
    quarantined: Mapping[str, int]  # images by reason
    num_kept: int  # tiles
    num_patients: int | None  # of the tiles kept; None where they are not known
    splits: Sequence[SplitCounts]
    outcomes: Mapping[str, int]  # test tiles by what was said of them: called each class, abstained


class _Box(NamedTuple):
    title: str
    lines: list[str]
    width: float

    @property
    def height(self) -> float:
        return 2 * _PAD + _LINE * (self.title.count("\n") + 1 + len(self.lines))


def flow_svg(flow: Flow) -> str:
    """Draws the flow from top to bottom; the last box hangs under the last split, which is the one judged."""
    found = _box("Images found", [_counted(flow.num_found, "image")], _TRUNK_WIDTH)
    total = sum(flow.quarantined.values())
    reasons = [f"{reason}: {count:,}" for reason, count in sorted(flow.quarantined.items(), key=lambda pair: -pair[1])]
    excluded = _box(f"Quarantined: {total:,}", reasons, _SIDE_WIDTH)
    kept = _box("Tiles kept", [_counted(flow.num_kept, "tile"), _patients(flow.num_patients)], _TRUNK_WIDTH)
    splits = [
        _box(split.name, [_counted(split.num_tiles, "tile"), _patients(split.num_patients)], _SPLIT_WIDTH)
        for split in flow.splits
    ]
    outcomes = _box("What the model said", [f"{what}: {count:,}" for what, count in flow.outcomes.items()], _TRUNK_WIDTH)
    return _draw(found, excluded, kept, splits, outcomes)


def _draw(found: _Box, excluded: _Box, kept: _Box, splits: Sequence[_Box], outcomes: _Box) -> str:
    width = max(2 * _EDGE + _TRUNK_WIDTH + _GAP + _SIDE_WIDTH, 2 * _EDGE + len(splits) * (_SPLIT_WIDTH + _GAP) - _GAP)
    between = max(excluded.height + 0.5 * _GAP, 2 * _GAP)
    tallest = max((split.height for split in splits), default=0.0)
    judged = _GAP + outcomes.height if splits and outcomes.lines else 0.0
    height = _HEAD + 2 * _EDGE + found.height + between + kept.height + 2 * _GAP + tallest + judged
    with styled():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        axes.text(_EDGE, _EDGE + _HEAD / 3, "Flow of images through the study", fontsize=10, fontweight="bold", va="center")
        trunk = _EDGE + _TRUNK_WIDTH / 2
        bottom = _place(axes, found, trunk, _EDGE + _HEAD)
        top = bottom + between
        _arrow(axes, (trunk, bottom), (trunk, top))
        _arrow(axes, (trunk, bottom + between / 2), (_EDGE + _TRUNK_WIDTH + _GAP, bottom + between / 2))
        _place(axes, excluded, _EDGE + _TRUNK_WIDTH + _GAP + _SIDE_WIDTH / 2, bottom + (between - excluded.height) / 2)
        bottom = _place(axes, kept, trunk, top)
        _fan(axes, splits, trunk, bottom)
        last = _EDGE + (len(splits) - 1) * (_SPLIT_WIDTH + _GAP) + _SPLIT_WIDTH / 2
        if judged:
            top = bottom + 2 * _GAP + tallest + _GAP
            _arrow(axes, (last, bottom + 2 * _GAP + splits[-1].height), (last, top))
            _place(axes, outcomes, min(last, width - _EDGE - outcomes.width / 2), top)
        return svg(figure, "flow")


def _fan(axes: Axes, splits: Sequence[_Box], trunk: float, bottom: float) -> None:
    """Draws one line out of the box above, and an arrow to each split."""
    centres = [_EDGE + number * (_SPLIT_WIDTH + _GAP) + _SPLIT_WIDTH / 2 for number in range(len(splits))]
    if not centres:
        return
    axes.plot([trunk, trunk], [bottom, bottom + _GAP], color="#000000", linewidth=0.9)
    axes.plot([min(trunk, *centres), max(trunk, *centres)], [bottom + _GAP] * 2, color="#000000", linewidth=0.9)
    for centre, split in zip(centres, splits, strict=True):
        _arrow(axes, (centre, bottom + _GAP), (centre, bottom + 2 * _GAP))
        _place(axes, split, centre, bottom + 2 * _GAP)


def _place(axes: Axes, box: _Box, centre: float, top: float) -> float:
    """Draws a box under ``top`` and returns where it ends."""
    left = centre - box.width / 2
    axes.add_patch(Rectangle((left, top), box.width, box.height, facecolor="#ffffff", edgecolor="#000000", linewidth=0.9))
    lines = [(text, "bold") for text in box.title.split("\n")] + [(text, "normal") for text in box.lines]
    for number, (text, weight) in enumerate(lines):
        y = top + _PAD + _LINE * (number + 0.5)
        axes.text(left + _PAD, y, text, fontsize=_FONT, fontweight=weight, va="center_baseline", ha="left")
    return top + box.height


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": "#000000", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    )


def _box(title: str, lines: Sequence[str], width: float) -> _Box:
    inside = width - 2 * _PAD
    wrapped = [part for text in lines for part in _wrapped(text, inside, "normal")]
    return _Box("\n".join(_wrapped(title, inside, "bold")), wrapped, width)


def _wrapped(text: str, width: float, weight: str) -> list[str]:
    """Breaks a text into lines that fit, measured in DejaVu Sans, the widest font that a viewer is likely to choose."""
    letters = [_letter_width(letter, weight) for letter in text]
    # As many letters a line as the narrowest half of the text would allow, then fewer until all lines fit.
    most = int(width / max(float(np.median(letters)) * 0.8, 0.01)) if letters else 1
    for num_letters in range(most, 2, -1):
        parts = textwrap.wrap(text, num_letters, subsequent_indent="\N{NO-BREAK SPACE}" * 2)
        if all(sum(_letter_width(letter, weight) for letter in part) <= width for part in parts):
            return parts
    return [text]


@functools.cache
def _letter_width(letter: str, weight: str) -> float:
    """Inches; twice the letter less the letter once, so that its own margins count. Kerning only makes texts narrower."""
    font = FontProperties(family="DejaVu Sans", weight=weight, size=_FONT)
    measure = text_to_path.get_text_width_height_descent
    once, twice = (measure(f"|{letter * times}|", font, ismath=False)[0] for times in (1, 2))
    return float(twice - once) / 72


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _patients(count: int | None) -> str:
    return "patients not known" if count is None else _counted(count, "patient")
