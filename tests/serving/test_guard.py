"""What stands before every route lets nobody fill the memory, ask too often, or come by another's name."""

import socket
from contextlib import ExitStack

import httpx
import pytest
from bundles import PROBES, SPEC, network
from endpoint import listening
from fastapi.testclient import TestClient
from hostile import post
from images import encoded, texture
from processes import wait_until

from historay.models.bundle import Bundle
from historay.serving.http import build_app
from historay.serving.limits import RequestConfig
from historay.serving.service import Service, make_service

PNG = encoded(texture(0, 48), "PNG")
LIMITS = RequestConfig(
    max_image_bytes=50_000, max_body_bytes=150_000, body_timeout_s=300, request_timeout_s=300, runtime="torch"
)


@pytest.fixture(scope="module")
def service() -> Service:
    return make_service(Bundle(SPEC, network(), "f" * 16, PROBES), LIMITS)


def test_all_bodies_together_are_bounded_and_who_comes_too_much_is_told_to_come_again(service: Service) -> None:
    with listening(build_app(lambda: service, LIMITS)) as (port, mishaps):

        def ask() -> httpx.Response:
            return httpx.post(f"http://127.0.0.1:{port}/v1/predict", content=PNG, timeout=120)

        with ExitStack() as held:
            for _ in range(8):
                connection = held.enter_context(socket.create_connection(("127.0.0.1", port)))
                connection.sendall(post(bytes(LIMITS.max_body_bytes - 1), length=LIMITS.max_body_bytes))
            wait_until(lambda: ask().status_code == 429, 120, "the refusal")
            refused = ask()
        wait_until(lambda: ask().status_code == 200, 120, "room")
        for _ in range(20):  # a body that was answered, or refused, counts no longer
            assert ask().status_code == 200
        assert mishaps.messages == []
    assert refused.json()["reason"] == "busy"
    assert refused.headers["retry-after"] == "1"


def test_without_keys_the_rate_holds_for_all_together(service: Service) -> None:
    limited = LIMITS.model_copy(update={"max_requests_per_s": 0.001, "request_burst": 2})
    with TestClient(build_app(lambda: service, limited)) as client:
        answers = [client.get("/v1/model") for _ in range(3)]
        assert client.get("/healthz").status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["reason"] == "too-often"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example:8000", 400),
        ("127.0.0.1.evil.example", 400),
    ],
)
def test_a_page_elsewhere_that_calls_itself_this_machine_reads_nothing(service: Service, host: str, status: int) -> None:
    with TestClient(build_app(lambda: service, LIMITS, hosts={"localhost", "127.0.0.1", "[::1]"})) as client:
        assert client.get("/v1/model", headers={"host": host}).status_code == status
        assert client.get("/healthz", headers={"host": host}).status_code == 200
