"""What the page is made of and links to: its own files by exact name, and the documents that the loaded bundle holds."""

from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources

import pytest
from bundles import PROBES, SPEC, network
from fastapi.testclient import TestClient

from historay.models.bundle import Bundle, load_bundle, save_bundle
from historay.serving.http import build_app
from historay.serving.keys import KeyRing
from historay.serving.limits import RequestConfig
from historay.serving.page import PAGE_PATHS
from historay.serving.service import make_service
from historay.storage import LocalStore

LIMITS = RequestConfig(runtime="torch")
REPORT = b"<!doctype html><title>Report</title><style>h1 { color: red }</style><h1>The report</h1>"


def client_of(bundle: Bundle, keys: KeyRing | None = None) -> TestClient:
    service = make_service(bundle, LIMITS)
    return TestClient(build_app(lambda: service, LIMITS, keys), raise_server_exceptions=False)


@pytest.fixture
def stored(store: LocalStore) -> Bundle:
    return load_bundle(store, SPEC.name, save_bundle(store, SPEC, network(), {"report.html": REPORT}, PROBES))


@pytest.fixture
def client(stored: Bundle) -> Iterator[TestClient]:
    with client_of(stored) as found:
        yield found


class Links(HTMLParser):
    """Every address that a page's markup names, and every way in which markup could run or style something itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found |= {str(given[name]) for name in ("src", "href") if name in given}
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)


def test_card_and_report_are_served_as_the_bundle_holds_them(client: TestClient, stored: Bundle) -> None:
    assert client.get("/v1/model/report").content == REPORT
    assert client.get("/v1/model/card").content == stored.documents["MODEL_CARD.md"]
    assert client.get("/v1/model/card").headers["content-type"] == "text/plain; charset=utf-8"


def test_the_report_may_style_itself_and_run_nothing_and_the_page_neither(client: TestClient) -> None:
    report, page = (client.get(path).headers["content-security-policy"] for path in ("/v1/model/report", "/"))
    assert "style-src 'unsafe-inline'" in report
    assert "default-src 'none'" in report
    assert "script-src" not in report
    assert "unsafe" not in page


def test_documents_are_for_key_holders_and_the_page_for_all(stored: Bundle) -> None:
    with client_of(stored, KeyRing.of(test="right")) as client:
        for path in ("/v1/model/card", "/v1/model/report"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer right"}).status_code == 200
        for path in sorted(PAGE_PATHS):
            assert client.get(path).status_code == 200


def test_a_bundle_without_a_report_says_so() -> None:
    with client_of(Bundle(SPEC, network(), "f" * 16, PROBES)) as client:
        answer = client.get("/v1/model/report")
        assert (answer.status_code, answer.json()["reason"]) == (404, "not-in-bundle")
        assert "report.html" in answer.json()["detail"]


def test_the_page_names_its_own_files_and_nothing_inline_or_elsewhere(client: TestClient) -> None:
    links = Links()
    links.feed(client.get("/").text)
    assert links.inline == []
    for address in links.found:
        assert client.get(f"/{address}").status_code == 200, address


def test_every_file_of_the_page_is_served_and_no_other(client: TestClient) -> None:
    names = {file.name for file in resources.files("historay.serving").joinpath("web").iterdir()} - {"index.html"}
    assert {"/", *(f"/static/{name}" for name in names)} == PAGE_PATHS
    for path in ("/static/", "/static/none", "/static/..%2fpage.py", "/static/%2e%2e/page.py", "/static/web"):
        assert client.get(path).status_code == 404, path
