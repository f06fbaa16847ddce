"""Errors as RFC 9457 problem JSON: what is wrong and how to mend it, without a stack trace, a path or what the client wrote."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from historay.serving.schema import Problem
from historay.serving.service import Refused

_RETRY_AFTER_S = 1  # a replica's queue is empty again, or the model loaded, soon
_AGAIN = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


def add_problems(app: FastAPI) -> None:
    """Makes every error that a route or the router raises a problem; the guard does so for what is raised by mistake."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return problem(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        reason = status.phrase.lower().replace(" ", "-")
        return problem(
            request, Refused(status, reason, f"{status.description or status.phrase}; see /openapi.json"), error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = ", ".join(sorted({".".join(map(str, each["loc"][:2])) for each in error.errors()}))
        detail = f"the request does not fit /openapi.json: {wrong}"
        return problem(request, Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", detail))


def problem(request: Request, error: Refused, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns the answer for a refused request, and leaves the error where the audit log finds it."""
    request.state.refused = error
    sent = dict(headers or {})
    if error.status in _AGAIN:
        sent.setdefault("Retry-After", str(_RETRY_AFTER_S))
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        sent["Connection"] = "close"  # what is still to come of the body is waited for no longer
    body = Problem(
        title=error.status.phrase,
        status=error.status,
        detail=error.detail,
        reason=error.reason,
        request_id=str(getattr(request.state, "request_id", "none")),
        results=error.results,
    )
    return JSONResponse(
        body.model_dump(mode="json"), status_code=error.status, headers=sent, media_type="application/problem+json"
    )
