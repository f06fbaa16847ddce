"""The HTTP application: what comes in is limited, checked and answered; how replicas run is not its business."""

import asyncio
import hashlib
import hmac
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException

from historay.data.decode import Limits
from historay.errors import BadImage
from historay.log import log_event
from historay.models.bundle import Bundle
from historay.serving.limits import RequestConfig
from historay.serving.predictor import Predictor, PreparedImage
from historay.serving.schema import ImageRefusal, ModelAnswer, PredictAnswer, Problem, RequestLimits, Status

API_KEY = "HISTORAY_API_KEY"
_OPEN_PATHS = {"/healthz", "/readyz"}
_TOO_LARGE = {"too-many-bytes", "too-many-pixels"}
_NOT_SUPPORTED = {"not-an-image", "cmyk", "16-bit", "unsupported-mode", "several-pages", "transparent"}


class Refused(Exception):
    """A whole request that is refused."""

    def __init__(self, status: HTTPStatus, reason: str, detail: str, results: tuple[ImageRefusal, ...] = ()) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.results = status, reason, detail, results


class Service:
    """A predictor with its threads, and the requests that it answers."""

    def __init__(self, predictor: Predictor, config: RequestConfig) -> None:
        self.predictor, self.config = predictor, config
        self._decoders = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        # One at a time: torch shares out the cores itself.
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network")

    async def predict(self, images: list[bytes], request_id: str) -> PredictAnswer:
        """Answers for all images together; raises Refused if none of them can be used."""
        loop = asyncio.get_running_loop()
        prepared = await asyncio.gather(*(loop.run_in_executor(self._decoders, self._tried, data) for data in images))
        results = await loop.run_in_executor(self._network, self.predictor.results, list(prepared))
        refused = tuple(result for result in results if isinstance(result, ImageRefusal))
        if len(refused) == len(results):
            first = refused[0].error
            status = _status_of(first.reason) if len(results) == 1 else HTTPStatus.UNPROCESSABLE_ENTITY
            raise Refused(status, first.reason, first.detail, refused)
        spec = self.predictor.bundle.spec
        return PredictAnswer(
            model=self.predictor.bundle.reference,
            dataset=spec.dataset,
            dataset_digest=spec.dataset_digest,
            request_id=request_id,
            operating_point=self.predictor.operating_point,
            results=tuple(results),
        )

    def describe(self) -> ModelAnswer:
        """Tells which model answers and what a request may hold."""
        bundle, config = self.predictor.bundle, self.config
        spec = bundle.spec
        return ModelAnswer(
            model=bundle.reference,
            architecture=spec.architecture,
            classes=spec.classes,
            input_px=spec.preprocessing.input_px,
            mpp=spec.mpp,
            operating_point=self.predictor.operating_point,
            temperature=spec.temperature,
            dataset=spec.dataset,
            dataset_digest=spec.dataset_digest,
            accepted_leaks=spec.accepted_leaks,
            created=spec.created,
            limits=RequestLimits(
                max_files=config.max_files,
                max_body_bytes=config.max_body_bytes,
                max_image_bytes=config.max_image_bytes,
                max_pixels=config.max_pixels,
            ),
        )

    def _tried(self, data: bytes) -> PreparedImage | BadImage:
        try:
            return self.predictor.prepare(data)
        except BadImage as error:
            return error


def make_service(bundle: Bundle, config: RequestConfig) -> Service:
    """Puts a bundle behind the limits of a configuration and runs it once."""
    predictor = Predictor(bundle, Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_pixels))
    predictor.warm_up()
    return Service(predictor, config)


def build_app(service: Callable[[], Service | None], config: RequestConfig, key_digest: str | None = None) -> FastAPI:
    """Builds the application; ``service`` gives what answers, or None while it is being loaded.

    ``key_digest`` is ``digest_key`` of the API key that every request must carry; None asks for none.
    """
    app = FastAPI(title="Historay", description="Research software: not a medical device.", docs_url=None, redoc_url=None)
    _add_errors(app)

    def ready() -> Service:
        found = service()
        if found is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", "the model is still being loaded; try again in a moment")
        return found

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        request.state.request_id = uuid.uuid4().hex
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        closed = key_digest is not None and request.url.path not in _OPEN_PATHS
        if closed and not hmac.compare_digest(digest_key(key), str(key_digest)):
            refused = Refused(HTTPStatus.UNAUTHORIZED, "wrong-key", "send a valid key as 'Authorization: Bearer KEY'")
            return _problem(request, refused, headers={"WWW-Authenticate": "Bearer"})
        response = await call_next(request)
        response.headers["X-Request-Id"] = request.state.request_id
        # The route, not the path: what a client writes there may name a person.
        route = getattr(request.scope.get("route"), "path", "none")
        log_event("request", id=request.state.request_id, route=route, status=response.status_code)
        return response

    @app.get("/healthz")
    async def healthz() -> Status:
        return Status(status="ok")

    @app.get("/readyz")
    async def readyz() -> Status:
        ready()
        return Status(status="ok")

    @app.get("/v1/model")
    async def model() -> ModelAnswer:
        return ready().describe()

    @app.post("/v1/predict", openapi_extra=_BODY, responses=_PROBLEMS)
    async def predict(request: Request) -> PredictAnswer:
        found = ready()
        try:
            async with asyncio.timeout(config.request_timeout_s):
                return await found.predict(await _images(request, config), request.state.request_id)
        except TimeoutError:
            detail = f"not answered within {config.request_timeout_s:g} s; send fewer images at once"
            raise Refused(HTTPStatus.GATEWAY_TIMEOUT, "too-slow", detail) from None

    return app


def digest_key(key: str) -> str:
    """Returns SHA-256 of an API key, so that the key itself need not be kept or passed on."""
    return hashlib.sha256(key.encode()).hexdigest()


async def _images(request: Request, config: RequestConfig) -> list[bytes]:
    """Reads the images of a request, multipart or one raw body, never more than the limits allow."""
    body = await _limited_body(request, config)
    if not request.headers.get("content-type", "").startswith("multipart/"):
        if not body:
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY, "no-images", "the body is empty; send an image, or multipart with files"
            )
        return [body]
    request._body = body  # starlette's own cache: the form is then parsed from what was counted
    too_many = f"more than {config.max_files} files in one request; send them in several"
    try:
        async with request.form(max_files=config.max_files, max_fields=16) as form:
            files = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    except StarletteHTTPException as error:
        if str(error.detail).startswith("Too many files"):
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-many-files", too_many) from None
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "bad-multipart", str(error.detail)) from None
    if not files:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "no-images", "no file in the form; send one or many, under any name")
    return files


async def _limited_body(request: Request, config: RequestConfig) -> bytes:
    """Reads the body and stops at the limit, whatever Content-Length says."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > config.max_body_bytes:
            detail = f"the body is larger than {config.max_body_bytes} bytes; send fewer images at once"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large", detail)
        parts.append(part)
    return b"".join(parts)


def _status_of(reason: str) -> HTTPStatus:
    if reason in _TOO_LARGE:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return HTTPStatus.UNSUPPORTED_MEDIA_TYPE if reason in _NOT_SUPPORTED else HTTPStatus.UNPROCESSABLE_ENTITY


def _add_errors(app: FastAPI) -> None:
    """Every error leaves as problem JSON, without a stack trace or a path."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return _problem(request, error)

    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        return _problem(request, Refused(status, status.phrase.lower().replace(" ", "-"), str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, _: RequestValidationError) -> JSONResponse:
        return _problem(request, Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", "the request does not fit /openapi.json"))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        log_event("request failed", id=_request_id(request), error=type(error).__name__)
        return _problem(request, Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "an error on the server's side"))


def _problem(request: Request, error: Refused, headers: dict[str, str] | None = None) -> JSONResponse:
    problem = Problem(
        title=error.status.phrase,
        status=error.status,
        detail=error.detail,
        reason=error.reason,
        request_id=_request_id(request),
        results=error.results,
    )
    media_type = "application/problem+json"
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {**(headers or {}), "Retry-After": "1"}
    return JSONResponse(problem.model_dump(mode="json"), status_code=error.status, headers=headers, media_type=media_type)


def _request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", "none"))


_FILES = {"type": "object", "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}}}
_RAW = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": _FILES}, "image/*": _RAW, "application/octet-stream": _RAW},
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (401, 413, 415, 422, 503, 504)}
