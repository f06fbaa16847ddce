"""The page for people at ``/``, and what it links to: the model's card and report, as they were when the bundle was loaded."""

from collections.abc import Callable
from http import HTTPStatus
from importlib import resources
from typing import Any

from fastapi import FastAPI, Response

from historay.models.bundle import CARD, REPORT
from historay.serving.openapi import problems
from historay.serving.service import Refused, Service

_KINDS = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "endpoint.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
PAGE_PATHS = frozenset({"/", *(f"/static/{name}" for name in _KINDS if name != "index.html")})
"""What anyone may load, key or not: the page asks for the key itself."""

# The report has its styles and pictures inside, runs no script and is a document of its own.
_REPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; sandbox"


def add_page(app: FastAPI, ready: Callable[[], Service]) -> None:
    """Adds the page and the documents to the application; ``ready`` gives the service or refuses."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _asset("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return _asset(name)

    @app.get("/v1/model/card", response_class=Response, responses=_document_responses("text/plain"))
    async def card() -> Response:
        return Response(_document(ready(), CARD), media_type="text/plain; charset=utf-8")

    @app.get("/v1/model/report", response_class=Response, responses=_document_responses("text/html"))
    async def report() -> Response:
        headers = {"Content-Security-Policy": _REPORT_CSP}
        return Response(_document(ready(), REPORT), media_type="text/html; charset=utf-8", headers=headers)


def _asset(name: str) -> Response:
    """Returns a file of the page, by its exact name and no path."""
    if name not in _KINDS:
        raise Refused(HTTPStatus.NOT_FOUND, "not-found", "the page has no such file")
    data = resources.files("historay.serving").joinpath("web", name).read_bytes()
    return Response(data, media_type=_KINDS[name], headers={"Cache-Control": "no-cache"})


def _document(service: Service, name: str) -> bytes:
    try:
        return service.predictor.bundle.documents[name]
    except KeyError:
        raise Refused(HTTPStatus.NOT_FOUND, "not-in-bundle", f"this model's bundle holds no {name}") from None


def _document_responses(media_type: str) -> dict[int | str, dict[str, Any]]:
    text = {"content": {media_type: {"schema": {"type": "string"}}}}
    return {200: text, **problems(404, 503)}
