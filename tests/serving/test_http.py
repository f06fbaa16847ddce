"""The endpoint answers each image for itself, refuses with reasons, and lets nothing out that it should keep."""

import asyncio
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from bundles import PROBES, SPEC, network
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import encoded, png_of_claimed_size, texture
from numpy.typing import NDArray

from historay.data.decode import Limits
from historay.errors import BadImage
from historay.evaluation.calibration import Calibration
from historay.evaluation.conformal import ConformalRule, Threshold
from historay.models.bundle import Bundle
from historay.models.inference import predict_logits, probabilities
from historay.models.runtime import Outputs, TorchRuntime
from historay.serving.http import build_app
from historay.serving.keys import KeyRing
from historay.serving.limits import RequestConfig
from historay.serving.metrics import Metrics
from historay.serving.predictor import Predictor, PreparedImage
from historay.serving.schema import ImagePrediction, Result
from historay.serving.service import Refused, Service, make_service

LIMITS = RequestConfig(max_files=4, max_image_bytes=50_000, max_body_bytes=150_000, max_pixels=1_000_000, runtime="torch")
TILES = [texture(seed, 48) for seed in range(3)]
PNGS = [encoded(tile, "PNG") for tile in TILES]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), LIMITS)
    with TestClient(build_app(lambda: service, LIMITS), raise_server_exceptions=False) as found:
        yield found


def upload(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", ("name of a patient.png", data)) for data in images]


def test_served_probabilities_are_those_of_the_bundle(client: TestClient) -> None:
    expected = probabilities(predict_logits(network(), np.stack(TILES), SPEC.preprocessing))
    answer = client.post("/v1/predict", files=upload(*PNGS)).json()
    served = np.array([list(result["probabilities"].values()) for result in answer["results"]])
    assert np.abs(served - expected).max() < 1e-6
    assert answer["model"] == "demo@ffffffffffffffff"
    alone = client.post("/v1/predict", content=PNGS[1], headers={"content-type": "image/png"}).json()["results"][0]
    assert np.abs(np.array(list(alone["probabilities"].values())) - expected[1]).max() < 1e-5


def test_a_bundle_s_calibration_and_prediction_sets_stand_in_the_answer() -> None:
    rule = ConformalRule(
        alpha=0.1,
        kind="marginal",
        thresholds=(Threshold(group="all", score=0.6, num_units=9, num_tiles=90),),
        num_calibration=90,
        unit="patient",
        guarantee="a test",
    )
    calibration = Calibration(kind="temperature", temperature=3.0)
    spec = SPEC.model_copy(update={"calibration": calibration, "conformal": rule})
    bundle = Bundle(spec, network(), "f" * 16, PROBES)
    predictor = Predictor(bundle, Limits(), TorchRuntime(bundle))
    raw = probabilities(predict_logits(network(), np.stack(TILES), SPEC.preprocessing))
    for result, expected in zip(predictor.predict(PNGS), calibration.apply(raw), strict=True):
        assert isinstance(result, ImagePrediction)
        assert list(result.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert result.prediction_set == tuple(name for name, p in result.probabilities.items() if 1 - p <= 0.6)
        assert result.abstain == (len(result.prediction_set) != 1)


def test_the_label_follows_the_operating_point(client: TestClient) -> None:
    for result in client.post("/v1/predict", files=upload(*PNGS)).json()["results"]:
        assert result["label"] == ("tumour" if result["probabilities"]["tumour"] >= 0.4 else "normal")


def test_a_bad_image_spoils_nobody_else_s(client: TestClient) -> None:
    answer = client.post("/v1/predict", files=upload(PNGS[0], b"text", PNGS[1]))
    assert answer.status_code == 200
    kinds = [("error" in result, result["index"]) for result in answer.json()["results"]]
    assert kinds == [(False, 0), (True, 1), (False, 2)]


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"text", 415, "not-an-image"),
        (encoded(TILES[0], mode="CMYK"), 415, "cmyk"),
        (PNGS[0][: len(PNGS[0]) // 2], 422, "truncated"),
        (png_of_claimed_size(20_000, 20_000), 413, "too-many-pixels"),
        (b"\xff" * 60_000, 413, "too-many-bytes"),
        (b"\xff" * 160_000, 413, "body-too-large"),
        (b"", 422, "no-images"),
    ],
)
def test_a_single_bad_image_is_refused_as_problem_json(client: TestClient, data: bytes, status: int, reason: str) -> None:
    answer = client.post("/v1/predict", content=data, headers={"content-type": "image/jpeg"})
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_too_many_files_no_files_and_all_bad_files_are_refused(client: TestClient) -> None:
    assert client.post("/v1/predict", files=upload(*PNGS, *PNGS)).json()["reason"] == "too-many-files"
    assert client.post("/v1/predict", files=[("a", (None, "text"))]).json()["reason"] == "no-images"
    answer = client.post("/v1/predict", files=upload(b"x", b""))
    assert answer.status_code == 422
    assert [result["error"]["reason"] for result in answer.json()["results"]] == ["not-an-image", "empty"]


def test_an_image_of_which_the_network_makes_no_number_spoils_nobody_else_s() -> None:
    class Overflows(TorchRuntime):
        def run(self, tiles_BHWC: NDArray[np.uint8]) -> Outputs:
            found = super().run(tiles_BHWC)
            found.logits_BK[(tiles_BHWC == TILES[1]).all(axis=(1, 2, 3))] = np.nan
            return found

    bundle = Bundle(SPEC, network(), "f" * 16, PROBES)
    service = Service(Predictor(bundle, Limits(), Overflows(bundle)), LIMITS, Metrics())
    with TestClient(build_app(lambda: service, LIMITS)) as client:
        results = client.post("/v1/predict", files=upload(*PNGS)).json()["results"]
        alone = client.post("/v1/predict", content=PNGS[1])
    assert [result["index"] for result in results] == [0, 1, 2]
    assert results[1]["error"]["reason"] == "not-finite"
    assert "label" in results[0]
    assert "label" in results[2]
    assert (alone.status_code, alone.json()["reason"]) == (422, "not-finite")


def test_the_model_says_what_it_is_and_what_it_is_not(client: TestClient) -> None:
    answer = client.get("/v1/model").json()
    assert answer["classes"] == ["normal", "tumour"]
    assert answer["accepted_leaks"] == ["near-duplicate"]
    assert "not a medical device" in answer["notice"]


def test_until_the_model_is_loaded_it_is_healthy_and_not_ready() -> None:
    with TestClient(build_app(lambda: None, LIMITS)) as loading:
        assert loading.get("/healthz").status_code == 200
        assert loading.get("/readyz").status_code == 503
        assert loading.post("/v1/predict", content=PNGS[0]).json()["reason"] == "not-ready"


def test_with_a_key_only_its_holder_is_answered() -> None:
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), LIMITS)
    with TestClient(build_app(lambda: service, LIMITS, KeyRing.of(lis="right"))) as closed:
        assert closed.get("/v1/model").status_code == 401
        assert closed.get("/v1/model", headers={"Authorization": "Bearer wrong"}).json()["reason"] == "wrong-key"
        assert closed.get("/v1/model", headers={"Authorization": "Bearer right"}).status_code == 200
        assert closed.get("/healthz").status_code == 200


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=300) | st.sampled_from(PNGS).map(lambda png: png[:200]),
    kind=st.sampled_from(["image/png", "multipart/form-data", "multipart/form-data; boundary=x", "application/json", ""]),
)
def test_no_body_whatever_is_the_server_s_fault(client: TestClient, body: bytes, kind: str) -> None:
    answer = client.post("/v1/predict", content=body, headers={"content-type": kind})
    assert 400 <= answer.status_code < 500
    assert set(answer.json()) >= {"title", "status", "detail", "reason"}


def test_many_results_come_as_lines_while_others_are_still_worked_on(client: TestClient) -> None:
    images = [*PNGS, b"not an image"]
    whole = client.post("/v1/predict", files=upload(*images)).json()
    lines = client.post("/v1/predict", files=upload(*images), headers={"accept": "application/x-ndjson"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    head, *results = [json.loads(line) for line in lines.text.splitlines()]
    assert head == {**whole, "results": [], "request_id": head["request_id"]}
    assert results == whole["results"]


def test_a_long_stream_keeps_its_order_and_needs_little_of_the_queue() -> None:
    config = RequestConfig(max_batch=2, max_queued_tiles=4, max_files=64, runtime="torch")
    bundle = Bundle(SPEC, network(), "f" * 16, PROBES)

    async def results() -> list[int]:
        service = make_service(bundle, config)
        deadline = asyncio.get_running_loop().time() + 120
        return [result.index async for part in service.stream(PNGS * 10, deadline) for result in part]

    assert asyncio.run(results()) == list(range(30))


def test_by_default_a_large_request_is_answered_in_several_parts() -> None:
    config = RequestConfig(runtime="torch")

    async def sizes() -> list[int]:
        service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), config)
        images = [PNGS[0]] * config.max_files
        return [len(part) async for part in service.stream(images, asyncio.get_running_loop().time() + 120)]

    assert asyncio.run(sizes()) == [16] * 16


def test_a_stream_ends_by_the_deadline_of_its_request_however_slowly_it_is_read() -> None:
    async def read_slowly() -> None:
        service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), RequestConfig(max_batch=2, runtime="torch"))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 1
        parts = service.stream(PNGS, deadline)
        assert len(await anext(parts)) == 2
        await asyncio.sleep(deadline + 0.1 - loop.time())
        service.close()  # as a replica does with a model whose last request must have ended
        with pytest.raises(TimeoutError):
            await anext(parts)

    asyncio.run(read_slowly())


def test_what_is_refused_because_the_queue_is_full_and_what_was_given_up_is_never_decoded() -> None:
    config = RequestConfig(max_batch=1, max_queued_tiles=1, decode_threads=1, runtime="torch")
    decoded: list[bytes] = []
    gate = threading.Event()

    class Held(Predictor):
        def tried(self, data: bytes) -> PreparedImage | BadImage:
            decoded.append(data)
            return super().tried(data)

        def predictions(self, images: list[PreparedImage]) -> list[Result]:
            assert gate.wait(60)
            return super().predictions(images)

    async def ask() -> None:
        bundle = Bundle(SPEC, network(), "f" * 16, PROBES)
        service = Service(Held(bundle, Limits(), TorchRuntime(bundle)), config, Metrics())
        busy = [asyncio.create_task(service.predict([PNGS[0]], "a")) for _ in range(2)]
        while service.num_waiting < 1:
            await asyncio.sleep(0.01)
        with pytest.raises(Refused, match="1 tiles wait already"):
            await service.predict([PNGS[1]], "b")
        assert set(decoded) == {PNGS[0]}
        gate.set()
        await asyncio.gather(*busy)
        given_up = asyncio.create_task(service.predict([PNGS[2]] * 200, "c"))
        while PNGS[2] not in decoded:
            await asyncio.sleep(0)
        given_up.cancel()
        await service.predict([PNGS[1]], "d")  # in line behind what was given up

    asyncio.run(ask())
    assert 0 < decoded.count(PNGS[2]) < 200
