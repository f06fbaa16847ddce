"""The report's figures are well-formed SVG that loads nothing, the same bytes each time, and fit to be read."""

import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from historay.evaluation.metrics import Floats
from historay.evaluation.plot_flow import Flow, SplitCounts, flow_svg
from historay.evaluation.plot_style import line, short
from historay.evaluation.plots import confusion_svg, precision_recall_svg, roc_svg, training_svg
from historay.evaluation.plots_rows import Row, coverage_svg, forest_svg
from historay.evaluation.plots_trust import (
    ReliabilityBins,
    SpoiltTiles,
    decision_curve_svg,
    histogram_svg,
    reliability_svg,
    risk_coverage_svg,
    robustness_svg,
)

SVG = "{http://www.w3.org/2000/svg}"
NINE = tuple(f"class {k} of a long & <odd> name, costs $5 to $10" for k in range(9))
NOTHING = np.full(5, np.nan)
THRESHOLDS = np.linspace(0.01, 0.99, 99)


def tiles_of_one_class() -> tuple[np.ndarray, Floats]:
    generator = np.random.default_rng(0)
    positive = generator.random(2000) < 0.4
    return positive, 1 / (1 + np.exp(1 - 2 * positive - generator.normal(size=2000)))


def curves(num: int) -> list[tuple[str, np.ndarray, Floats]]:
    return [(name, *tiles_of_one_class()) for name in NINE[:num]]


def reliability_bins(num: int) -> ReliabilityBins:
    middle = (np.arange(num) + 0.5) / num
    return ReliabilityBins(middle, middle**2, middle**2 / 2, (1 + middle**2) / 2, 10.0 ** (np.arange(num) % 4))


UNDEFINED = ReliabilityBins(NOTHING, NOTHING, NOTHING, NOTHING, np.zeros(5))
SPOILT = SpoiltTiles("Gaussian sigma (px)", ("0.5", "1", "1.5", "2", "3"), np.linspace(0.9, 0.6, 5), NOTHING, NOTHING)
FLOW = Flow(
    num_found=18_321,
    quarantined={
        f"reason {k}, which takes so many words that no single line of the box could ever hold it": k for k in range(6)
    },
    num_kept=18_000,
    num_patients=None,
    splits=[SplitCounts("train", 12_000, 300), SplitCounts("val", 3_000, 1), SplitCounts("test", 3_000, None)],
    outcomes={f"called {name}": 1_234_567 for name in NINE},
)
ROWS = [Row("site A", 1200, 0.9, 0.85, 0.94), Row("B" * 80, 1, None, None, None), Row("C", 3, 0.5, float("nan"), None)]

FIGURES: dict[str, Callable[[], str]] = {
    "roc": lambda: roc_svg(curves(1), (0.2, 0.8)),
    "roc of nine classes": lambda: roc_svg(curves(9), None),
    "precision and recall": lambda: precision_recall_svg(curves(1), (0.8, 0.7)),
    "confusion": lambda: confusion_svg(np.array([[90, 10], [0, 0]]), NINE[:2]),
    "confusion of nine classes": lambda: confusion_svg(np.eye(9, dtype=np.int64) * 100_000, NINE),
    "training": lambda: training_svg([1.0, 2.0, 3.0], {"loss": [1.0, None, 0.5]}, "loss", "loss"),
    "training of one epoch": lambda: training_svg([1.0], {"loss": [1.0]}, "loss", "loss"),
    "reliability": lambda: reliability_svg({"before": reliability_bins(15), "after": reliability_bins(10)}, "tumour"),
    "reliability of one bin": lambda: reliability_svg({"before": reliability_bins(1)}, "tumour"),
    "reliability undefined": lambda: reliability_svg({"before": UNDEFINED}, "tumour"),
    "decision curve": lambda: decision_curve_svg(THRESHOLDS, {"model": 0.4 - THRESHOLDS}, 2000, (-THRESHOLDS, 1 - THRESHOLDS)),
    "decision curve without an interval": lambda: decision_curve_svg(THRESHOLDS, {"model": 0.4 - THRESHOLDS}, 2000),
    "decision curve undefined": lambda: decision_curve_svg(np.linspace(0.1, 0.9, 5), {"model": NOTHING}, 1),
    "risk and coverage": lambda: risk_coverage_svg(np.linspace(0.1, 1, 99), np.linspace(0, 0.2, 99), 2000, (0.8, 0.1)),
    "risk without an error": lambda: risk_coverage_svg(np.linspace(0.1, 1, 99), np.zeros(99), 2000),
    "histogram": lambda: histogram_svg({"normal": np.zeros(0), "tumour": tiles_of_one_class()[1]}, "tumour", 0.4),
    "histogram of nine classes": lambda: histogram_svg(dict.fromkeys(NINE, np.array([0.0, 1.0])), "the named class"),
    "robustness": lambda: robustness_svg({"Blur": SPOILT, "JPEG": SPOILT, "Stain": SPOILT, "Turned": SPOILT}, 0.93, 2000),
    "robustness undefined": lambda: robustness_svg({"Blur": SPOILT._replace(auc_S=NOTHING)}, None, 2000),
    "forest": lambda: forest_svg(ROWS, Row("all", 1204, 0.89, 0.85, 0.93), "ROC-AUC by site", "ROC-AUC"),
    "forest undefined": lambda: forest_svg(ROWS[1:2], None, "ROC-AUC by site", "ROC-AUC"),
    "coverage": lambda: coverage_svg(ROWS, 0.9, "Sets by class"),
    "flow": lambda: flow_svg(FLOW),
    "flow with nothing quarantined": lambda: flow_svg(FLOW._replace(quarantined={}, outcomes={})),
}


@pytest.fixture(scope="module", params=FIGURES)
def name_and_svg(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param, FIGURES[request.param]()


def words(svg: str) -> str:
    return " ".join("".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def test_every_figure_is_one_well_formed_svg_that_loads_nothing(name_and_svg: tuple[str, str]) -> None:
    _, svg = name_and_svg
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert not list(root.iter(f"{SVG}image"))
    links = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)
    assert all((a or b).startswith("#") for a, b in links)


def test_every_link_inside_a_figure_finds_its_target(name_and_svg: tuple[str, str]) -> None:
    _, svg = name_and_svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert {a or b for a, b in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg)} <= set(ids)


@pytest.mark.parametrize("name", ["roc", "confusion", "reliability", "histogram", "forest", "flow"])
def test_a_figure_has_the_same_bytes_again(name: str) -> None:
    assert FIGURES[name]() == FIGURES[name]()


def test_no_number_of_a_figure_is_written_as_nan(name_and_svg: tuple[str, str]) -> None:
    _, svg = name_and_svg
    assert not re.search(r"\bnan\b", svg, re.IGNORECASE)


def test_every_figure_is_light_enough_for_a_page(name_and_svg: tuple[str, str]) -> None:
    _, svg = name_and_svg
    assert len(svg) < 200_000


def test_ids_of_two_figures_of_a_page_do_not_collide() -> None:
    first = forest_svg(ROWS, None, "ROC-AUC by site", "ROC-AUC")
    second = forest_svg(ROWS, None, "ROC-AUC by scanner", "ROC-AUC")
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]


def test_titles_say_how_many_tiles_there_are() -> None:
    shown = words(roc_svg(curves(1), None)).replace("\N{NO-BREAK SPACE}", " ")
    assert "n = 2,000 tiles" in shown
    assert "100,000" in words(FIGURES["confusion of nine classes"]())


def _contrast(ink: str, background: str) -> float:
    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(ink), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_a_number_in_the_confusion_matrix_is_readable_on_any_shade(right: int) -> None:
    svg = confusion_svg(np.array([[right, 1000 - right], [0, 1]]), ("normal", "tumour"))
    root = ElementTree.fromstring(svg)
    cell = next(g for g in root.iter(f"{SVG}g") if "QuadMesh" in g.get("id", "")).find(f".//{SVG}path")
    assert cell is not None
    background = re.search(r"fill: (#[0-9a-f]{6})", cell.get("style", ""))
    number = next(text for text in root.iter(f"{SVG}text") if text.text == f"{right:,}")
    ink = re.search(r"fill: (#[0-9a-f]{6})", ElementTree.tostring(number, encoding="unicode"))
    assert background is not None
    # black is the default fill and is not written out
    assert _contrast(ink[1] if ink else "#000000", background[1]) >= 4.5  # WCAG AA


def test_no_text_of_the_flow_leaves_its_box() -> None:
    """Measured in the browser's own units with the font that the figure names first."""
    root = ElementTree.fromstring(flow_svg(FLOW))
    boxes = []
    for path in root.iter(f"{SVG}path"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]
        if "stroke: #000000" in path.get("style", "") and path.get("d", "").strip().endswith("z") and len(numbers) == 8:
            boxes.append((min(numbers[::2]), max(numbers[::2]), min(numbers[1::2]), max(numbers[1::2])))
    assert len(boxes) == 7  # found, quarantined, kept, three splits, outcomes
    inside = 0
    for text in root.iter(f"{SVG}text"):
        x, y = float(text.get("x", "nan")), float(text.get("y", "nan"))
        bold = "font-weight: 700" in text.get("style", "")
        font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=9)
        width = text_to_path.get_text_width_height_descent(text.text or "", font, ismath=False)[0]
        holding = [box for box in boxes if box[0] <= x <= box[1] and box[2] <= y <= box[3]]
        assert len(holding) <= 1
        for box in holding:
            inside += 1
            assert x + width <= box[1]
    assert inside > 20


def test_the_first_forty_curves_differ_in_print_without_colour() -> None:
    looks = [(str(line(number, "")["linestyle"]), line(number, "")["marker"]) for number in range(40)]
    assert len(set(looks)) == 40


@given(st.text(max_size=80), st.integers(3, 40))
def test_a_long_name_is_cut_to_its_ends(name: str, num_letters: int) -> None:
    cut = short(name, num_letters)
    assert len(cut) <= num_letters
    assert cut == name if len(name) <= num_letters else (cut[0], cut[-1]) == (name[0], name[-1])


def test_the_bands_of_calibration_and_net_benefit_are_drawn_and_named() -> None:
    assert "95 % band if calibrated" in words(FIGURES["reliability"]())
    assert "95 % interval" in words(FIGURES["decision curve"]())
    assert "95 % interval" not in words(FIGURES["decision curve without an interval"]())
