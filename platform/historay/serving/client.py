"""A typed client of the endpoint: it tries again where that is worth it, and waits as long as the server asks."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx
from pydantic import ValidationError

from historay.errors import ServingError
from historay.serving.schema import ModelAnswer, PredictAnswer, Problem

_LONGEST_WAIT_S = 60.0


class Client:
    """Speaks to one endpoint over kept-alive connections; a context manager that closes them."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        num_retries: int = 5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        except httpx.InvalidURL as error:
            raise ServingError(f"{url}: not a URL: {error}; use http://host:port") from None
        self._url, self._num_retries, self._sleep = url.rstrip("/"), num_retries, sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def predict(self, images: Sequence[bytes]) -> PredictAnswer | Problem:
        """Sends encoded images; ``results`` of the answer has one entry per image, in order.

        A Problem comes back where every single image was refused. Raises ServingError if the request as a whole is
        refused or nobody answers.
        """
        # File names may hold identifiers: they stay here, and each part goes out under the same one.
        parts = [("images", ("image", data, "application/octet-stream")) for data in images]
        response = self._send("POST", "/v1/predict", files=parts)
        problem = _problem(response)
        return problem if problem and problem.results else PredictAnswer.model_validate_json(self._accepted(response))

    def model(self) -> ModelAnswer:
        """Tells which model answers, and what a request may hold."""
        return ModelAnswer.model_validate_json(self._accepted(self._send("GET", "/v1/model")))

    def is_ready(self) -> bool:
        """Tells at once, without another try, whether the endpoint answers with its model loaded."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Sends until answered with something else than 429 or 503; a prediction sent twice does no harm."""
        for attempt in range(self._num_retries + 1):
            is_last = attempt == self._num_retries
            try:
                response = self._http.request(method, path, **content)
            except httpx.UnsupportedProtocol as error:
                raise ServingError(f"{self._url}: {error} Use http://host:port") from None
            except httpx.TransportError as error:
                if is_last:
                    raise ServingError(f"{self._url}{path}: {type(error).__name__}: {error}; is it up? try curl") from error
                self._sleep(_wait_s(attempt, None))
                continue
            if is_last or response.status_code not in {429, 503}:
                return response
            self._sleep(_wait_s(attempt, response.headers.get("Retry-After")))
        raise AssertionError("the last attempt returns or raises")

    def _accepted(self, response: httpx.Response) -> bytes:
        if response.is_success:
            return response.content
        problem = _problem(response)
        raise ServingError(f"{self._url}: status {response.status_code}: {problem.detail if problem else response.text[:200]}")


def _problem(response: httpx.Response) -> Problem | None:
    """Reads an error's problem JSON; None for a success, and for an error by a proxy in between, which speaks otherwise."""
    try:
        return None if response.is_success else Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def _wait_s(attempt: int, retry_after: str | None) -> float:
    """Seconds to wait: what the server asks, else 0.5, 1, 2, ...; a minute at most."""
    asked = float(retry_after) if retry_after and retry_after.isdigit() else 0.5 * 2.0**attempt
    return min(asked, _LONGEST_WAIT_S)
