"""The page works for everyone: by keyboard alone, at a phone's width, in light and dark, and by the rules of axe-core."""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from webpage import KEY, Endpoint, choose, opened

pytestmark = pytest.mark.browser

NOTICE = "Research software: not a medical device."


@pytest.fixture
def mixed_files(tile_files: list[Path], tmp_path: Path) -> list[Path]:
    """Tiles of every outcome, and a file of one long word."""
    refused = tmp_path / f"{'A' * 90}.png"
    refused.write_bytes(b"no image")
    return [*tile_files[:6], refused]


def violations(page: Page) -> list[str]:
    """What axe-core objects to, by rule and place."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_objects_to_nothing_before_and_after_answers_and_in_the_large_view(
    chromium: Browser, endpoint: Endpoint, mixed_files: list[Path], scheme: str, width: int
) -> None:
    with opened(chromium, endpoint, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        page.wait_for_selector("#model-links")
        assert violations(page) == []
        choose(page, *mixed_files)
        assert violations(page) == []
        page.get_by_role("button", name="Enlarge").first.click()
        expect(page.locator("#large").get_by_text(NOTICE)).to_be_in_viewport()
        assert violations(page) == []


def test_axe_objects_to_nothing_while_the_key_is_asked_for(chromium: Browser, keyed_endpoint: Endpoint) -> None:
    with opened(chromium, keyed_endpoint) as page:
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
        assert violations(page) == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_width_makes_the_page_scroll_sideways_and_the_notice_stays_in_sight(
    chromium: Browser, endpoint: Endpoint, mixed_files: list[Path], width: int
) -> None:
    with opened(chromium, endpoint, viewport={"width": width, "height": 700}) as page:
        page.wait_for_selector("#model-links")
        choose(page, *mixed_files)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # Not by the wheel, whose one event a starved browser was seen to lose.
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        page.wait_for_function("() => scrollY > 0")
        expect(page.locator("header").get_by_text(NOTICE)).to_be_in_viewport()
        for part in page.locator(".tile *:visible").all():
            box = part.bounding_box()
            assert box is None or box["x"] + box["width"] <= width


def test_the_keyboard_alone_chooses_files_and_fades_the_evidence(
    chromium: Browser, keyed_endpoint: Endpoint, tile_files: list[Path]
) -> None:
    with opened(chromium, keyed_endpoint) as page:
        # From here on, so that the browser knows it well before the key is pressed.
        page.on("filechooser", lambda chooser: chooser.set_files(tile_files[:6]))
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#model-links")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("Tab")
        expect(page.locator("#choose")).to_be_focused()
        assert _has_outline(page)
        page.keyboard.press("Enter")
        page.wait_for_selector(".heat:visible")
        slider = page.get_by_role("slider").first
        page.locator("#choose").focus()
        _tab_to(page, "input[type=range]")
        expect(slider).to_be_focused()
        assert _has_outline(page)
        before = int(slider.input_value())
        page.keyboard.press("ArrowLeft")
        expect(slider).to_have_value(str(before - 1))


def test_focus_goes_through_the_page_in_reading_order(page: Page, tile_files: list[Path]) -> None:
    choose(page, tile_files[0])
    page.locator("#choose").focus()
    order = []
    for _ in range(8):
        order.append(
            str(page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.type"))
        )
        page.keyboard.press("Tab")
    without_slider = [name for name in order if name != "range"]
    assert without_slider[:5] == ["choose", "explain", "only-doubtful", "forget", "stack"]


def test_dropped_tiles_are_answered_like_chosen_ones(page: Page, tile_files: list[Path]) -> None:
    page.evaluate(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [list(tile_files[0].read_bytes()), "dropped.png"],
    )
    expect(page.locator(".tile .name")).to_have_text("dropped.png")
    expect(page.locator(".tile")).not_to_have_attribute("data-state", "waiting")


def test_what_changes_is_announced(page: Page, tile_files: list[Path]) -> None:
    choose(page, *tile_files[:2])
    live = page.get_by_role("status").filter(has_text="2 tiles: ")
    expect(live).to_have_attribute("id", "summary")


def _has_outline(page: Page) -> bool:
    return page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def _tab_to(page: Page, selector: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"{selector} cannot be reached by the keyboard")
