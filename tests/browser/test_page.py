"""The page shows what the endpoint answered, in words where there is no answer, and sends images and nothing else."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from images import encoded, texture
from PIL import ExifTags, Image
from playwright.sync_api import Browser, Page, Route, expect
from webpage import KEY, LIMITS, REPORT, Endpoint, choose, opened, running

from historay.models.bundle import Bundle

pytestmark = pytest.mark.browser

WARNINGS = {
    "blank": "blank",
    "not-he": "not H&E",
    "unlike-training": "unlike training",
    "blurred": "blurred",
    "pen": "marked by pen",
}


def asked(endpoint: Endpoint, *files: Path) -> list[dict[str, Any]]:
    """What the endpoint answers to the same images without the page."""
    answer = httpx.post(f"{endpoint.url}/v1/predict", files=[("images", ("image", file.read_bytes())) for file in files])
    return list(answer.raise_for_status().json()["results"])


def test_two_tiles_show_the_labels_and_probabilities_of_the_endpoint(
    page: Page, endpoint: Endpoint, tile_files: list[Path]
) -> None:
    choose(page, *tile_files[:2])
    for number, result in enumerate(asked(endpoint, *tile_files[:2])):
        tile = page.locator(".tile").nth(number)
        expect(tile.locator(".name")).to_have_text(tile_files[number].name)
        expect(tile.locator(".chosen .class")).to_have_text(str(result["label"]))
        shown = {
            row.locator(".class").inner_text(): float(str(row.locator("data").get_attribute("value")))
            for row in tile.locator(".bars li").all()
        }
        assert shown == pytest.approx(result["probabilities"], abs=1e-6)
        for name, value in shown.items():
            assert tile.locator(f".bars li:has-text('{name}') data").inner_text() == f"{value:.3f}"


def test_each_bar_is_as_long_as_its_probability_and_the_line_stands_at_the_operating_point(
    page: Page, tile_files: list[Path]
) -> None:
    choose(page, tile_files[0])
    for row in page.locator(".bars li").all():
        track, fill = (row.locator(part).bounding_box() for part in (".track", ".fill"))
        assert track is not None
        assert fill is not None
        assert fill["width"] / track["width"] == pytest.approx(float(str(row.locator("data").get_attribute("value"))), abs=0.01)
    row = page.locator(".bars li:has-text('tumour')")
    track, tick = row.locator(".track").bounding_box(), row.locator(".tick").bounding_box()
    assert track is not None
    assert tick is not None
    assert (tick["x"] + tick["width"] / 2 - track["x"]) / track["width"] == pytest.approx(0.4, abs=0.01)
    assert page.locator(".tick:visible").count() == 1


def test_a_tile_abstains_where_the_endpoint_does_and_says_why(page: Page, endpoint: Endpoint, tile_files: list[Path]) -> None:
    choose(page, *tile_files)
    results = [result for file in tile_files for result in asked(endpoint, file)]
    assert {result["abstain"] for result in results} == {True, False}, "the test needs tiles of both kinds"
    for number, result in enumerate(results):
        tile = page.locator(".tile").nth(number)
        expect(tile.locator(".label")).to_have_text("Abstains" if result["abstain"] else str(result["label"]))
        expect(tile.locator(".set")).to_have_text(f"Prediction set: {', '.join(map(str, result['prediction_set'])) or 'empty'}")
        if reason := str(result["abstain_reason"] or ""):
            expect(tile.locator(".instead")).to_contain_text(reason[1:])
    page.get_by_label("Only what needs a look").check()
    assert page.locator(".tile:visible").count() == sum(bool(result["abstain"]) for result in results)


def test_an_image_that_is_no_tissue_is_answered_with_a_warning(page: Page, endpoint: Endpoint, tmp_path: Path) -> None:
    green = tmp_path / "green.png"
    green.write_bytes(encoded(np.full((48, 48, 3), (20, 160, 30), np.uint8), "PNG"))
    (result,) = asked(endpoint, green)
    codes = [reason["code"] for reason in result["input"]["reasons"]]
    assert codes, "the test needs an image that the gate does not accept"
    choose(page, green)
    tile = page.locator(".tile")
    expect(tile.locator(".label")).to_have_text("Abstains")
    expect(tile.locator(".warnings li")).to_have_text([f"Input: {WARNINGS[code]}" for code in codes])
    for reason in result["input"]["reasons"]:
        expect(tile.locator(".instead")).to_contain_text(reason["detail"])


def test_the_evidence_lies_over_the_tile_as_strongly_as_its_slider_says(page: Page, tile_files: list[Path]) -> None:
    choose(page, *tile_files[:6])
    tile = page.locator(".tile:has(.heat:visible)").first
    heat, photo, slider = tile.locator(".heat"), tile.locator(".photo"), tile.get_by_role("slider")
    assert heat.bounding_box() == photo.bounding_box()
    assert heat.evaluate("image => image.complete && image.naturalWidth") == 48
    for value in ("0", "35", "100"):
        slider.fill(value)
        assert float(heat.evaluate("image => getComputedStyle(image).opacity")) == int(value) / 100
    tile.get_by_role("button").click()
    large = page.locator("#large")
    expect(large.get_by_role("slider")).to_have_value("100")
    large.get_by_role("slider").fill("20")
    large.get_by_role("button", name="Close").click()
    expect(slider).to_have_value("20")


def test_a_tile_is_shown_as_the_endpoint_decodes_it_whatever_turn_its_header_asks_for(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn, which would make it upright
    wide = tmp_path / "wide.jpg"
    wide.write_bytes(encoded(texture(3, 96)[:48], exif=exif.tobytes()))
    choose(page, wide)
    box = page.locator(".photo").bounding_box()
    assert box is not None
    assert box["width"] == pytest.approx(2 * box["height"], abs=2)


def test_without_evidence_asked_for_none_is_computed(page: Page, endpoint: Endpoint, tile_files: list[Path]) -> None:
    page.get_by_label("Show where the evidence lies").uncheck()
    choose(page, tile_files[0])
    assert page.locator(".heat:visible").count() == 0
    assert [upload.query for upload in endpoint.uploads] == [""]


def test_hostile_files_show_their_reasons_in_words_and_spoil_no_other(
    page: Page, tile_files: list[Path], tmp_path: Path
) -> None:
    text, cut, large = tmp_path / "<img src=x onerror=alert(1)>.png", tmp_path / "cut.png", tmp_path / "large.png"
    text.write_bytes(b"<script>alert(1)</script>")
    cut.write_bytes(tile_files[0].read_bytes()[:2000])
    large.write_bytes(b"\xff" * (LIMITS.max_image_bytes + 1))
    choose(page, text, tile_files[0], cut, large)
    tiles = page.locator(".tile")
    expect(tiles.nth(0).locator(".name")).to_have_text(text.name)
    expect(tiles.nth(0).locator(".instead")).to_have_text("25 bytes that are no JPEG, PNG or TIFF.")
    expect(tiles.nth(2).locator(".point")).to_have_text("Reason: truncated")
    expect(tiles.nth(3).locator(".instead")).to_contain_text(f"at most {LIMITS.max_image_bytes}")
    assert [tile.get_attribute("data-state") == "refused" for tile in tiles.all()] == [True, False, True, True]
    choose(page, text)
    expect(page.locator(".batch").first.locator(".label")).to_have_text("Not used")


def test_more_tiles_than_a_request_holds_go_in_several_and_their_names_in_none(
    page: Page, endpoint: Endpoint, tile_files: list[Path]
) -> None:
    choose(page, *tile_files)
    assert [upload.body.count(b'name="images"; filename="image"') for upload in endpoint.uploads] == [4, 4, 2]
    assert not any(b"Jane" in upload.body for upload in endpoint.uploads)
    assert page.locator("#summary").inner_text().startswith("10 tiles: ")


def test_a_busy_endpoint_is_asked_again_after_the_time_it_names(page: Page, tile_files: list[Path]) -> None:
    left = [429, 503]

    def busy(route: Route) -> None:
        if not left:
            return route.continue_()
        return route.fulfill(status=left.pop(), headers={"Retry-After": "2"}, body="{}")

    page.route("**/v1/predict*", busy)
    page.set_input_files("#files", tile_files[0])
    expect(page.locator("#waiting")).to_have_text("The endpoint is busy or still loading. Trying again in 2 s.")
    expect(page.locator(".tile")).not_to_have_attribute("data-state", "waiting")
    assert left == []
    expect(page.locator("#waiting")).to_be_empty()


def test_a_refused_request_says_the_problem_s_own_words_on_each_of_its_tiles(page: Page, tile_files: list[Path]) -> None:
    problem = {"detail": "not answered within 30 s; send fewer images at once", "reason": "too-slow", "results": []}
    page.route("**/v1/predict*", lambda route: route.fulfill(status=504, body=json.dumps(problem)))
    choose(page, *tile_files[:2])
    for tile in page.locator(".tile").all():
        expect(tile.locator(".instead")).to_have_text("Not answered within 30 s; send fewer images at once.")


def test_an_endpoint_with_a_key_asks_for_it_and_keeps_it_in_memory_only(
    chromium: Browser, keyed_endpoint: Endpoint, tile_files: list[Path]
) -> None:
    with opened(chromium, keyed_endpoint) as page:
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("a wrong key")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The endpoint did not accept that key.")
        field.fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#model-links")
        choose(page, tile_files[0])
        expect(page.locator(".tile")).not_to_have_attribute("data-state", "refused")
        assert keyed_endpoint.uploads[-1].authorization == f"Bearer {KEY}"
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]") == [
            *(0, 0, ""),
            f"{keyed_endpoint.url}/",
        ]
        with page.expect_download() as saved:
            page.get_by_role("link", name="Evaluation report").click()
        assert Path(saved.value.path()).read_text() == REPORT


def test_without_the_key_the_tiles_say_that_it_is_missing(
    chromium: Browser, keyed_endpoint: Endpoint, tile_files: list[Path]
) -> None:
    with opened(chromium, keyed_endpoint) as page:
        page.get_by_role("button", name="Cancel").click()
        page.set_input_files("#files", tile_files[0])
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".instead")).to_contain_text("asks for a key, and none was given")


def test_card_and_report_are_the_bundle_s_own_and_the_report_keeps_its_style(page: Page, bundle: Bundle) -> None:
    with page.expect_popup() as opening:
        page.get_by_role("link", name="Evaluation report").click()
    report = opening.value
    expect(report.get_by_role("heading")).to_have_css("color", "rgb(1, 2, 3)")
    with page.expect_popup() as opening:
        page.get_by_role("link", name="Model card").click()
    assert opening.value.locator("body").inner_text().splitlines()[0] == "# Model card: demo"
    assert bundle.documents["MODEL_CARD.md"].startswith(b"# Model card: demo")


def test_the_page_says_where_what_is_asked_has_drifted_from_validation(
    chromium: Browser, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "dark.png").write_bytes(encoded(texture(1, 48) // 3, "PNG"))
    with running(bundle, None) as endpoint, opened(chromium, endpoint) as page:
        page.wait_for_selector("#model-links")
        expect(page.locator("#drift")).to_be_hidden()
        choose(page, tmp_path / "dark.png")
        expect(page.locator("#drift")).to_have_text("Drift: none seen in the last 1 tiles asked here.")
        dark = encoded(texture(2, 48) // 3, "PNG")
        for _ in range(-(-160 // LIMITS.max_files)):
            httpx.post(f"{endpoint.url}/v1/predict", files=[("images", ("image", dark))] * LIMITS.max_files).raise_for_status()
        choose(page, tmp_path / "dark.png")
        expect(page.locator("#drift.alert")).to_contain_text("the last 162 tiles asked here are spread otherwise than")


def test_what_is_forgotten_is_gone(page: Page, tile_files: list[Path]) -> None:
    choose(page, *tile_files[:2])
    held = [photo.get_attribute("src") for photo in page.locator(".photo").all()]
    page.evaluate("() => { window.freed = []; URL.revokeObjectURL = (url) => window.freed.push(url) }")
    page.get_by_role("button", name="Forget all").click()
    assert page.evaluate("window.freed") == held
    assert page.locator(".tile").count() == 0
    expect(page.locator("#summary")).to_have_text("No tile yet.")
