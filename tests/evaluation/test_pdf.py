"""The page becomes a PDF of the same words where there is a Chromium, and nothing breaks where there is none."""

import io
import logging
import os
import re
from html import unescape
from pathlib import Path
from unicodedata import normalize

import pytest
from pypdf import PdfReader

from historay.evaluation.pdf import find_browser, print_pdf

PAGE = b"""<!doctype html><html><head><meta charset="utf-8"><title>Report</title><style>@page { size: A4 }</style></head><body>
<p>first page</p><svg width="200" height="30"><text y="20">a vector label</text></svg>
<p style="break-before: page">second page</p></body></html>"""


def letters(text: str) -> str:
    """Without white space, and ligatures taken apart: a font may print "fi" as one sign."""
    return "".join(normalize("NFKC", text).split())


@pytest.fixture
def browser() -> str:
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


@pytest.mark.browser
def test_a_page_prints_with_its_page_breaks_and_no_header(browser: str) -> None:
    pdf = print_pdf(PAGE)
    assert pdf is not None
    pages = [page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages]
    assert len(pages) == 2
    assert pages[0].split() == ["first", "page", "a", "vector", "label"]  # neither date, title, URL nor page number
    assert pages[1].split() == ["second", "page"]


@pytest.mark.browser
def test_a_whole_report_prints_with_every_cell_of_every_table_inside_its_pages(browser: str, page: str) -> None:
    """What is cut off at the edge of the paper is not in the PDF."""
    pdf = print_pdf(page.encode())
    assert pdf is not None
    reader = PdfReader(io.BytesIO(pdf))
    assert 8 <= len(reader.pages) <= 40
    printed = letters("".join(found.extract_text() for found in reader.pages))
    cells = [unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", page, re.DOTALL)]
    assert len(cells) > 300
    assert [cell for cell in cells if letters(cell) not in printed] == []


@pytest.mark.browser
def test_printing_leaves_nothing_in_the_folder_of_temporary_files(
    browser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert print_pdf(PAGE) is not None
    assert [path for path in tmp_path.iterdir() if path.name.startswith("historay")] == []


def test_without_a_browser_there_is_no_pdf_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.INFO, logger="historay"):
        assert print_pdf(PAGE) is None
    assert [record.message.startswith("pdf skipped") for record in caplog.records] == [True]


def test_a_browser_that_fails_gives_no_pdf_and_one_line_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'no usable sandbox' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    with caplog.at_level(logging.INFO, logger="historay"):
        assert print_pdf(PAGE) is None
    assert len(caplog.records) == 1
    assert "no usable sandbox" in caplog.records[0].message


def test_a_browser_that_writes_nothing_gives_no_pdf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    silent = tmp_path / "chromium"
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    with caplog.at_level(logging.INFO, logger="historay"):
        assert print_pdf(PAGE) is None
    assert "FileNotFoundError" in caplog.records[0].message
