"""Many results as they become known: a line of JSON each, after one that says what they are answers of."""

from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import StreamingResponse

from historay.serving.schema import Problem, Result
from historay.serving.service import Service

NDJSON = "application/x-ndjson"


async def streamed(service: Service, images: list[bytes], request: Request, deadline: float) -> StreamingResponse:
    """Answers with lines until ``deadline``, in the event loop's time; raises Refused while the status can still say so.

    The first line is a PredictAnswer without results. A Problem as the last line tells that the time ran out.
    """
    parts = service.stream(images, deadline)
    return StreamingResponse(_lines(service, parts, await anext(parts), request), media_type=NDJSON)


async def _lines(
    service: Service, parts: AsyncIterator[list[Result]], first: list[Result], request: Request
) -> AsyncIterator[str]:
    sent, part = list[Result](), first
    try:
        yield service.answer([], request.state.request_id).model_dump_json() + "\n"
        while part:
            yield "".join(f"{result.model_dump_json()}\n" for result in part)
            sent += part
            part = await anext(parts, [])
    except TimeoutError:
        yield _too_slow(service, request.state.request_id, len(sent)).model_dump_json() + "\n"
    finally:  # for the audit log, even if the client has gone
        request.state.answer = service.answer(sent, request.state.request_id)


def _too_slow(service: Service, request_id: str, num_answered: int) -> Problem:
    status = HTTPStatus.GATEWAY_TIMEOUT
    detail = f"{num_answered} answered within {service.config.request_timeout_s:g} s; send the others again"
    return Problem(title=status.phrase, status=status, detail=detail, reason="too-slow", request_id=request_id)
