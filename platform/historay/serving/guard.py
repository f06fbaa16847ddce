"""What stands before every route: the request's number, its key, the rate limit; after it safe headers, metrics and audit.

Plain ASGI, since starlette's BaseHTTPMiddleware runs each request as a task of its own behind a stream of messages.
"""

import math
import random
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from historay.log import log_event
from historay.serving.audit import AuditLog, Entry
from historay.serving.body import HeldBodies
from historay.serving.keys import KeyRing
from historay.serving.metrics import Metrics
from historay.serving.problems import problem
from historay.serving.rate import RateLimit
from historay.serving.service import Refused

# Pictures may come from the page's own memory (blob:, data:); nothing inline runs, and nobody frames the page.
_CSP = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", _CSP.encode()),
)
_GONE = 499  # as nginx counts a client that went away before its answer


@dataclass(frozen=True)
class Guard:
    """The middleware; ``keys`` of None lets everybody in, ``limit`` of None lets everybody ask as often as they like."""

    app: ASGIApp
    keys: KeyRing | None
    limit: RateLimit | None
    metrics: Metrics
    audit: AuditLog
    open_paths: Collection[str]
    """Paths that need no key, and that are not audited."""
    bodies: HeldBodies
    hosts: Collection[str] | None
    """Names by which the endpoint may be asked; None: any. Without keys it keeps out pages that a browser was led here by."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, arrived = time.perf_counter(), time.time()
        state = scope.setdefault("state", {})
        state["request_id"] = f"{random.getrandbits(128):032x}"  # not secret, and without a call of the system
        status, num_bytes = 0, 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            size = len(message.get("body", b""))
            self.bodies.take(size)
            num_bytes += size
            return message

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _safe(message["headers"], state["request_id"])
            await send(message)

        request = Request(scope, receive_counted)
        try:
            refused = self._refusal(scope)
            if refused is None:
                await self.app(scope, receive_counted, send_safely)
            else:
                await problem(request, *refused)(scope, receive, send_safely)
        except Exception as error:  # our mistake, whatever it is: it is named here and not to the client
            log_event("request failed", id=state["request_id"], error=type(error).__name__)
            if status:
                raise  # half an answer is out: the server must cut the connection
            broken = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "an error on the server's side")
            await problem(request, broken)(scope, receive, send_safely)
        finally:
            self.bodies.give_back(num_bytes)
            self._record(scope, status or _GONE, arrived, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> tuple[Refused, dict[str, str]] | None:
        """Tells why a request does not even reach its route, with the headers to say so, or None."""
        if scope["path"] in self.open_paths:
            return None
        if self.hosts is not None and _host(scope) not in self.hosts:
            return Refused(HTTPStatus.BAD_REQUEST, "wrong-host", f"ask for one of {', '.join(sorted(self.hosts))}"), {}
        key_id = self.keys.identify(_bearer(scope)) if self.keys is not None else None
        if self.keys is not None and key_id is None:
            wrong = Refused(HTTPStatus.UNAUTHORIZED, "wrong-key", "send a valid key as 'Authorization: Bearer KEY'")
            return wrong, {"WWW-Authenticate": "Bearer"}
        scope["state"]["key_id"] = key_id
        if self.limit is None or not (wait_s := self.limit.wait_s(key_id or "")):
            return None
        who = "with this key" if key_id else "from all clients together"
        detail = f"more than {self.limit.rate_per_s:g} requests a second {who}; try again in {math.ceil(wait_s)} s"
        return Refused(HTTPStatus.TOO_MANY_REQUESTS, "too-often", detail), {"Retry-After": str(math.ceil(wait_s))}

    def _record(self, scope: Scope, status: int, arrived: float, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", "none")
        refused: Refused | None = state.get("refused")
        answer = state.get("answer")
        results = answer.results if answer else refused.results if refused else ()
        self.metrics.count_request(route, status, seconds)
        self.metrics.count_results(results)
        if "answered" in state:
            self.metrics.observe_stage("answer", time.perf_counter() - state["answered"])
        if scope["path"] in self.open_paths:
            return
        self.audit.add(
            Entry(
                time_s=arrived,
                request_id=state["request_id"],
                key_id=state.get("key_id"),
                route=route,
                status=status,
                seconds=seconds,
                reason=refused.reason if refused else None,
                model=answer.model if answer else None,
                results=results,
            )
        )


def _bearer(scope: Scope) -> bytes:
    """Returns the key of the Authorization header, or nothing."""
    scheme, _, key = _header(scope, b"authorization").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _host(scope: Scope) -> str:
    """Returns the Host header without its port, as ``localhost`` or ``[::1]``."""
    return re.sub(r":\d*$", "", _header(scope, b"host").decode("latin-1")).lower()


def _header(scope: Scope, wanted: bytes) -> bytes:
    """Returns the first header of a name, or nothing."""
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), b"")


def _safe(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """Adds the headers that every answer has; what a route has set itself stays."""
    given = {name.lower() for name, _ in headers}
    added = [(name, value) for name, value in _HEADERS if name not in given]
    return [*headers, (b"x-request-id", request_id.encode()), *added]
