"""A real endpoint for a browser, with a record of what is uploaded to it, and pages that are watched while they are open."""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import uvicorn
from bundles import SPEC, network
from numpy.typing import NDArray
from playwright.sync_api import Browser, ConsoleMessage, Page
from processes import free_port
from torch import nn

from historay.data.transforms import to_input
from historay.evaluation.conformal import ConformalRule, Threshold
from historay.models.bundle import Bundle
from historay.models.features import last_linear
from historay.models.inference import predict_logits
from historay.serving.http import build_app
from historay.serving.keys import KeyRing
from historay.serving.limits import RequestConfig
from historay.serving.service import make_service

KEY = "the right key"
PATIENCE_MS = 60_000  # a busy machine is no failure
LIMITS = RequestConfig(runtime="torch", max_files=4, max_image_bytes=50_000, max_body_bytes=150_000, max_pixels=1_000_000)
REPORT = "<!doctype html><title>Report</title><style>h1 { color: rgb(1, 2, 3) }</style><h1>The report</h1>"
# The sets of a network with opinions then hold one class for some of its tiles and two for others.
RULE = ConformalRule(
    alpha=0.1,
    kind="marginal",
    thresholds=(Threshold(group="all", score=0.7, num_units=9, num_tiles=90),),
    num_calibration=90,
    unit="patient",
    guarantee="a test",
)
Asgi = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class Upload(NamedTuple):
    """What one POST brought to the endpoint."""

    query: str
    body: bytes
    authorization: str


class Endpoint(NamedTuple):
    """A running endpoint and all that was uploaded to it since ``uploads`` was last cleared."""

    url: str
    uploads: list[Upload]


@contextmanager
def opened(chromium: Browser, endpoint: Endpoint, **context: Any) -> Iterator[Page]:
    """A fresh page in a context of its own, watched until it closes."""
    errors: list[str] = []
    elsewhere: list[str] = []
    with chromium.new_context(**context) as own:
        page = own.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: errors.extend(_fault(message)))
        page.on("pageerror", lambda error: errors.append(str(error)))
        ours = (f"{endpoint.url}/", f"blob:{endpoint.url}/", "data:image/png")
        page.on("request", lambda request: None if request.url.startswith(ours) else elsewhere.append(request.url))
        page.goto(endpoint.url)
        yield page
        assert errors == []
        assert elsewhere == []


def _fault(message: ConsoleMessage) -> list[str]:
    """An error or a warning; Chromium itself logs each answer that is no success, which here is asked for."""
    is_status = message.text.startswith("Failed to load resource: the server responded with a status of")
    return [message.text] if message.type in {"error", "warning"} and not is_status else []


def opinionated(tiles_BHWC: NDArray[np.uint8]) -> nn.Module:
    """The untrained network, normalised to these tiles, with a last layer that tells them apart, by logits of about 1."""
    model = network().train()
    with torch.no_grad():
        for _ in range(30):  # running means that nearly forget where they began
            model(to_input(torch.from_numpy(tiles_BHWC), SPEC.preprocessing))
    model.eval()
    logits_BK = predict_logits(model, tiles_BHWC, SPEC.preprocessing)
    difference_B = logits_BK[:, 1] - logits_BK[:, 0]
    last = last_linear(model)
    with torch.no_grad():
        last.bias -= torch.tensor([0.0, float(np.median(difference_B))])
        for parameter in last.parameters():
            parameter.div_(float(difference_B.std()))
    return model


def choose(page: Page, *files: Path) -> None:
    """Chooses files and waits until each has an answer."""
    before = page.locator(".tile").count()
    page.set_input_files("#files", list(files))
    page.wait_for_function(
        "n => document.querySelectorAll('.tile').length === n && !document.querySelector('[data-state=waiting]')",
        arg=before + len(files),
    )


@contextmanager
def running(bundle: Bundle, keys: KeyRing | None) -> Iterator[Endpoint]:
    service = make_service(bundle, LIMITS)
    uploads: list[Upload] = []
    port = free_port()
    app = _recording(build_app(lambda: service, LIMITS, keys), uploads)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield Endpoint(f"http://127.0.0.1:{port}", uploads)
    server.should_exit = True
    thread.join()


def _recording(app: Asgi, uploads: list[Upload]) -> Asgi:
    """Keeps a copy of what every POST brings, on its way into the application."""

    async def recorded(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope.get("method") != "POST":
            await app(scope, receive, send)
            return
        body = bytearray()

        async def heard() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        await app(scope, heard, send)
        headers = dict(scope["headers"])
        uploads.append(Upload(scope["query_string"].decode(), bytes(body), headers.get(b"authorization", b"").decode()))

    return recorded
