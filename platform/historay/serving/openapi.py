"""What /openapi.json says beyond what FastAPI finds out: the bodies, the problems and the key."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from historay.serving.schema import Problem

_KINDS = ("image/jpeg", "image/png", "image/tiff")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
_FORM = {
    "schema": {"type": "object", "properties": {"images": _FILES}, "required": ["images"]},
    "encoding": {"images": {"contentType": ", ".join(_KINDS)}},
}
# One image as it is, a form or a zip of many.
_CONTENT = {"multipart/form-data": _FORM, **dict.fromkeys((*_KINDS, "application/octet-stream", "application/zip"), _BINARY)}
IMAGES_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _CONTENT}}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_ON_EVERY_PATH = (400, 500)  # the guard's, and what a server in between makes of a request that is none
_WITH_KEY = (401, 429)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declares statuses that a route answers with a Problem."""
    return {status: {"model": Problem} for status in statuses}


def describe_fully(app: FastAPI, open_paths: set[str], with_key: bool) -> None:
    """Makes the application's OpenAPI tell each problem by its media type, and which routes ask for a key."""
    found = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = found()
        for path, operations in schema["paths"].items():
            is_closed = with_key and path not in open_paths
            for operation in operations.values():
                _complete(operation["responses"], _ON_EVERY_PATH + (_WITH_KEY if is_closed else ()))
                if is_closed:
                    operation["security"] = [{"key": []}]
        if with_key:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way


def _complete(responses: dict[str, Any], statuses: tuple[int, ...]) -> None:
    """Adds the statuses, and gives each error its media type."""
    for added in statuses:
        responses.setdefault(str(added), {"description": HTTPStatus(added).phrase})
    for status, response in responses.items():
        if int(status) >= 400:
            response["content"] = _PROBLEM
