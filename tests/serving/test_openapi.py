"""The endpoint keeps what /openapi.json promises, by every check of schemathesis over a real socket."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest
from bundles import PROBES, SPEC, network
from endpoint import listening

from historay.models.bundle import CARD, REPORT, Bundle
from historay.serving.http import build_app
from historay.serving.keys import KeyRing
from historay.serving.limits import RequestConfig
from historay.serving.service import make_service

SUPPORT = Path(__file__).parents[1] / "support"


def config(folder: Path) -> RequestConfig:
    return RequestConfig(runtime="torch", audit_log=str(folder), body_timeout_s=2)


@pytest.mark.timeout(360)
def test_schemathesis_finds_nothing_with_all_its_checks(tmp_path: Path) -> None:
    documents = {CARD: b"# A card", REPORT: b"<!doctype html><title>A report</title>"}
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES, documents), config(tmp_path / "audit"))
    application = build_app(lambda: service, config(tmp_path / "audit"), KeyRing.of(tester="right"))
    with listening(application) as (port, mishaps):
        program = Path(sys.executable).with_name("st")
        command = [program, "run", f"http://127.0.0.1:{port}/openapi.json", "-H", "Authorization: Bearer right"]
        command += ["--checks", "all", "--max-examples", "60", "--seed", "1", "--continue-on-failure", "--no-color"]
        # The images that it sends come from openapi_hooks.py: noise alone would only be refused.
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(SUPPORT)}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 8" in done.stdout
    assert mishaps.messages == []
    (audit,) = (tmp_path / "audit").iterdir()
    seen = Counter((line["route"], line["status"]) for line in map(json.loads, audit.read_text().splitlines()))
    assert seen["/v1/predict", 200] >= 20  # it did reach the network
    assert {401, 405, 415, 422} <= {status for _, status in seen}


def test_every_error_is_a_problem_and_every_answer_has_the_safe_headers(tmp_path: Path) -> None:
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), config(tmp_path))

    def broken() -> None:
        raise RuntimeError("/a/path of ours")

    closed = build_app(lambda: service, config(tmp_path), KeyRing.of(tester="right"))
    limited = config(tmp_path).model_copy(update={"max_requests_per_s": 0.5, "request_burst": 1})
    strict = build_app(lambda: service, limited, KeyRing.of(tester="right", other="left"))
    fails = build_app(broken, config(tmp_path))
    with listening(closed) as (port, _), listening(strict) as (strict_port, _), listening(fails) as (fails_port, mishaps):
        at, key = f"http://127.0.0.1:{port}", {"Authorization": "bearer right"}
        httpx.get(f"http://127.0.0.1:{strict_port}/v1/model", headers=key)
        answers = {
            200: httpx.get(f"{at}/v1/model", headers=key),
            401: httpx.get(f"{at}/v1/model"),
            404: httpx.get(f"{at}/v1/nothing", headers=key),
            405: httpx.get(f"{at}/v1/predict", headers=key),
            422: httpx.post(f"{at}/v1/predict?explain=perhaps", headers=key),
            429: httpx.get(f"http://127.0.0.1:{strict_port}/v1/model", headers=key),
            500: httpx.get(f"http://127.0.0.1:{fails_port}/v1/model"),
        }
        other = httpx.get(f"http://127.0.0.1:{strict_port}/v1/model", headers={"Authorization": "Bearer left"})
        page = httpx.get(f"{at}/")
        assert mishaps.messages == []
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        if status != 200:
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert (problem["status"], problem["request_id"]) == (status, answer.headers["x-request-id"])
            assert "path of ours" not in answer.text
    assert answers[401].headers["www-authenticate"] == "Bearer"
    assert answers[405].headers["allow"] == "POST"
    assert answers[429].headers["retry-after"] == "2"
    assert other.status_code == 200  # one key's haste is nobody else's
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "<style" not in page.text
    assert "style=" not in page.text
    assert page.text.count("<script") == page.text.count("<script src=") + page.text.count('<script type="module" src=')


@pytest.mark.parametrize("path", ["/healthz/", "//v1/model", "/v1/model/", "/V1/model"])
def test_a_path_that_is_nearly_one_is_none(path: str, tmp_path: Path) -> None:
    """No redirect either, which a Host header would steer elsewhere; and no way around the key."""
    with listening(build_app(lambda: None, config(tmp_path), KeyRing.of(tester="right"))) as (port, _):
        without = httpx.get(f"http://127.0.0.1:{port}{path}")
        with_key = httpx.get(
            f"http://127.0.0.1:{port}{path}", headers={"Authorization": "Bearer right", "Host": "evil.example"}
        )
    assert (without.status_code, with_key.status_code) == (401, 404)
    assert "location" not in with_key.headers
