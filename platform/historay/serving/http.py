"""The HTTP application: what comes in is limited, checked and answered; how replicas run is not its business."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from historay.serving.audit import AuditLog
from historay.serving.body import HeldBodies, read_images
from historay.serving.drift import DriftSummary
from historay.serving.guard import Guard
from historay.serving.keys import KeyRing
from historay.serving.limits import MAX_EXPLAINED, RequestConfig
from historay.serving.metrics import Metrics
from historay.serving.ndjson import NDJSON, streamed
from historay.serving.openapi import IMAGES_BODY, describe_fully, problems
from historay.serving.page import PAGE_PATHS, add_page
from historay.serving.problems import add_problems
from historay.serving.rate import RateLimit
from historay.serving.schema import ModelAnswer, PredictAnswer, Status
from historay.serving.service import Refused, Service

_OPEN_PATHS = {"/healthz", "/readyz", *PAGE_PATHS}
_NUMBERS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(404)}
_HELD_BODIES = 8  # of the largest size, which a replica holds at once: 512 MiB by default
_EXPLAINER = ThreadPoolExecutor(1, thread_name_prefix="explain")


def build_app(
    service: Callable[[], Service | None],
    config: RequestConfig,
    keys: KeyRing | None = None,
    metrics: Metrics | None = None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """Builds the application; ``service`` gives what answers, or None while it is being loaded.

    ``keys`` of None asks for no key: only for an address that nobody else reaches, with its names as ``hosts``. ``metrics``
    are those that the service counts into. Starts the thread of the audit log, so that it is to be called in the process
    that answers.
    """
    metrics = metrics or Metrics()
    audit = AuditLog(config.audit_log, lost=metrics.count_audit_lost)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(audit.close)

    app = FastAPI(
        title="Historay",
        description="Research software: not a medical device.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    limit = RateLimit(config.max_requests_per_s, config.request_burst) if config.max_requests_per_s else None
    bodies = HeldBodies(_HELD_BODIES * config.max_body_bytes)
    app.add_middleware(
        Guard, keys=keys, limit=limit, metrics=metrics, audit=audit, open_paths=_OPEN_PATHS, bodies=bodies, hosts=hosts
    )
    add_problems(app)

    def ready() -> Service:
        found = service()
        if found is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", "the model is still being loaded; try again in a moment")
        return found

    metrics.watch_queue(lambda: found.num_waiting if (found := service()) else 0)
    metrics.watch_drift(lambda: _drift_of(service()))
    _add_state(app, ready, metrics)
    _add_predict(app, ready, config, metrics)
    add_page(app, ready)
    describe_fully(app, _OPEN_PATHS, with_key=keys is not None)
    return app


def _drift_of(service: Service | None) -> dict[str, float]:
    return {one.quantity: one.value for one in service.drift().quantities} if service is not None else {}


def _add_state(app: FastAPI, ready: Callable[[], Service], metrics: Metrics) -> None:
    """Adds what tells how the endpoint is, and what it is."""

    @app.get("/healthz")
    async def healthz() -> Status:
        return Status(status="ok")

    @app.get("/readyz", responses=problems(503))
    async def readyz() -> Status:
        ready()
        return Status(status="ok")

    @app.get("/v1/model", responses=problems(503))
    async def model() -> ModelAnswer:
        return ready().describe()

    @app.get("/v1/model/drift", responses=problems(503))
    async def drift() -> DriftSummary:
        return ready().drift()

    @app.get("/metrics", response_class=Response, responses=_NUMBERS)
    async def numbers() -> Response:
        text = metrics.exposition()
        if text is None:
            raise Refused(
                HTTPStatus.NOT_FOUND, "elsewhere", "this endpoint's metrics are among Ray's, on each node's metrics port"
            )
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _add_predict(app: FastAPI, ready: Callable[[], Service], config: RequestConfig, metrics: Metrics) -> None:
    @app.post(
        "/v1/predict",
        response_model=PredictAnswer,
        openapi_extra=IMAGES_BODY,
        responses=problems(408, 413, 415, 422, 429, 503, 504),
    )
    async def predict(request: Request, explain: bool = False) -> Any:
        found, deadline = ready(), asyncio.get_running_loop().time() + config.request_timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                started = time.perf_counter()
                images = await read_images(request, config)
                metrics.observe_stage("receive", time.perf_counter() - started)
                if NDJSON in request.headers.get("accept", "") and not explain:
                    return await streamed(found, images, request, deadline)
                answering = _explained if explain else Service.predict
                answer = await answering(found, images, request.state.request_id)
        except TimeoutError:
            detail = f"not answered within {config.request_timeout_s:g} s; send fewer images at once"
            raise Refused(HTTPStatus.GATEWAY_TIMEOUT, "too-slow", detail) from None
        request.state.answer, request.state.answered = answer, time.perf_counter()
        # FastAPI would validate our own answer once more.
        return Response(answer.model_dump_json(), media_type="application/json")


async def _explained(found: Service, images: list[bytes], request_id: str) -> PredictAnswer:
    """Predicts with heat maps, which take a thread of their own, one request after the other."""
    if len(images) > MAX_EXPLAINED:
        detail = f"{len(images)} images; explain=true takes at most {MAX_EXPLAINED} in one request; send them in several"
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-many-explained", detail)
    predictor = found.predictor
    answer = await found.predict(images, request_id)
    return await asyncio.get_running_loop().run_in_executor(_EXPLAINER, predictor.explained, images, answer)
