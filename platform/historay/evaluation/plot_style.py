"""How every figure of the report looks, and how it becomes inline SVG: same input, same bytes; nothing is left in pyplot."""

import io
import re
import textwrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from historay.evaluation.metrics import Floats

# Okabe and Ito 2008: told apart with every common colour vision deficiency. Without their yellow, which paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#767676"  # the lightest that WCAG takes for text on white
# Black-and-white print keeps dashes and markers; 7 colours, 5 dashes and 8 markers repeat together only after 280 curves.
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MAX_POINTS = 400  # a curve of 100,000 tiles would weigh megabytes
_LETTERS_AN_INCH = 12  # of DejaVu Sans at 10 points, the widest font that a viewer is likely to choose
_STYLE: Any = {  # matplotlib's stubs spell out every key as a literal
    "svg.hashsalt": "historay",  # the ids no longer come from a random number
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a class may be called "cost $5 to $10"
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
}


def styled() -> Any:
    """Returns the context in which a figure is made and written."""
    return mpl.rc_context(_STYLE)


def new_figure(width: float, height: float, title: str) -> Figure:
    """Returns an empty figure of that size in inches under a title, which is wrapped to the width."""
    figure = Figure(figsize=(width, height), layout="constrained")
    text = textwrap.fill(title, int(width * _LETTERS_AN_INCH))
    figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=10, fontweight="bold")
    return figure


def one_plot(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Returns a figure with a single pair of axes."""
    figure = new_figure(width, height, title)
    return figure, figure.add_subplot()


def line(number: int, label: str) -> dict[str, Any]:
    """Returns how the n-th curve is drawn: by colour, dashes and marker at once."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "linewidth": 1.6,
        "marker": marker(number),
        "markersize": 4.5,
        "label": short(label),
    }


def curve(axes: Axes, number: int, label: str, x: Floats, y: Floats) -> None:
    """Draws the n-th curve through at most 400 of its points, its ends among them; NaN leaves a gap."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MAX_POINTS)).astype(int))
    # About eight markers, shifted from curve to curve so that they do not hide one another; few points all get theirs.
    step = len(kept) // 8 if len(kept) > 25 else 1
    axes.plot(x[kept], y[kept], **line(number, label), markevery=(number * step // 8 % max(step, 1), max(step, 1)))


def marker(number: int) -> str:
    """Returns the n-th curve's marker."""
    return _MARKERS[number % len(_MARKERS)]


def legend_below(figure: Figure, axes: Axes, num_columns: int = 2) -> None:
    """Puts the legend under the plot, where it hides nothing; none where nothing has a name."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=num_columns, frameon=False, fontsize=8, handlelength=3.5)


def short(text: str, num_letters: int = 32) -> str:
    """Cuts a long name in the middle, since the ends of names tell them apart."""
    if len(text) <= num_letters:
        return text
    kept = num_letters - 1
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"


def tiles(count: int) -> str:
    """Says a number of tiles for a title, which is not broken there."""
    return f"n = {count:,} tile{'' if count == 1 else 's'}".replace(" ", "\N{NO-BREAK SPACE}")


def svg(figure: Figure, name: str) -> str:
    """Returns the <svg> element; its ids begin with the figure's name, since several stand in one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{slug}-", text[text.index("<svg") :])
