"""The endpoint's numbers are what happened, in Prometheus' own format, and hold nothing that a client wrote."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import PROBES, SPEC, network
from fastapi.testclient import TestClient
from images import encoded, texture
from prometheus_client.parser import text_string_to_metric_families

from historay.models.bundle import Bundle
from historay.serving.http import build_app
from historay.serving.keys import KeyRing
from historay.serving.limits import RequestConfig
from historay.serving.metrics import METRICS, Metric, Metrics
from historay.serving.schema import ImagePrediction, InputCheck, InputReason
from historay.serving.service import Service, make_service

DASHBOARD = Path(__file__).parents[2] / "helm" / "historay" / "dashboards" / "historay.json"
PNGS = [encoded(texture(seed, 48), "PNG") for seed in range(3)]
LIMITS = RequestConfig(runtime="torch")
Numbers = dict[tuple[str, tuple[str, ...]], float]


def numbers(text: str) -> Numbers:
    """Every value by its name and label values, as Prometheus' own parser reads them."""
    return {
        (one.name, tuple(one.labels.values())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def service(metrics: Metrics) -> Service:
    return make_service(Bundle(SPEC, network(), "f" * 16, PROBES), LIMITS, metrics=metrics)


@pytest.fixture
def client(service: Service, metrics: Metrics) -> Iterator[TestClient]:
    with TestClient(build_app(lambda: service, LIMITS, metrics=metrics)) as found:
        yield found


def test_what_was_asked_and_answered_is_counted(client: TestClient) -> None:
    answers = [client.post("/v1/predict", files=[("images", ("a", data)) for data in (*PNGS, b"x")]) for _ in range(2)]
    client.post("/v1/predict", content=b"x")
    client.get("/v1/patients/Smith")
    text = client.get("/metrics").text
    found = numbers(text)
    labels = [result["label"] for answer in answers for result in answer.json()["results"][:3]]
    for label in set(labels):
        assert found["historay_predictions_total", (label,)] == labels.count(label)
    assert found["historay_refused_tiles_total", ("not-an-image",)] == 3
    assert found["historay_requests_total", ("/v1/predict", "200")] == 2
    assert found["historay_requests_total", ("/v1/predict", "415")] == 1
    assert found["historay_requests_total", ("none", "404")] == 1
    assert found["historay_request_seconds_count", ("/v1/predict",)] == 3
    assert found["historay_queued_tiles", ()] == 0
    assert "Smith" not in text


def test_each_stage_of_a_request_is_timed(client: TestClient) -> None:
    client.post("/v1/predict", files=[("images", ("a", data)) for data in PNGS])
    found = numbers(client.get("/metrics").text)
    stages = {labels[0] for name, labels in found if name == "historay_stage_seconds_count"}
    assert stages == {"receive", "decode", "queue", "network", "answer"}
    parts = sum(found["historay_stage_seconds_sum", (stage,)] for stage in stages)
    whole = found["historay_request_seconds_sum", ("/v1/predict",)]
    assert 0 < parts <= whole
    assert found["historay_batch_tiles_sum", ()] == 3


def test_abstentions_and_what_the_gate_says_are_counted_from_the_answers(metrics: Metrics) -> None:
    gate = InputCheck(accepted=False, reasons=(InputReason(code="blurred", detail="by 3"), InputReason(code="pen", detail="")))
    one = ImagePrediction(
        index=0, sha256="0", label="tumour", probabilities={}, prediction_set=None, abstain=True, abstain_reason="x", input=gate
    )
    metrics.count_results([one, one.model_copy(update={"abstain": None, "input": None})])
    found = numbers((metrics.exposition() or b"").decode())
    assert found["historay_abstentions_total", ()] == 1
    assert found["historay_gated_tiles_total", ("blurred",)] == found["historay_gated_tiles_total", ("pen",)] == 1
    assert found["historay_predictions_total", ("tumour",)] == 2


def test_what_is_watched_is_asked_anew_at_each_look(metrics: Metrics) -> None:
    drift, waiting = {"probability of tumour": 0.1}, [5]
    metrics.watch_drift(lambda: drift)
    metrics.watch_queue(lambda: waiting[0])
    assert numbers((metrics.exposition() or b"").decode())["historay_drift", ("probability of tumour",)] == 0.1
    drift["probability of tumour"], waiting[0] = 0.4, 2
    found = numbers((metrics.exposition() or b"").decode())
    assert (found["historay_drift", ("probability of tumour",)], found["historay_queued_tiles", ()]) == (0.4, 2)


def test_the_numbers_of_two_applications_do_not_mix(metrics: Metrics) -> None:
    metrics.observe_batch(3)
    assert numbers((Metrics().exposition() or b"").decode())["historay_batch_tiles_count", ()] == 0


def test_with_keys_only_a_key_opens_the_numbers(service: Service) -> None:
    with TestClient(build_app(lambda: service, LIMITS, KeyRing.of(prometheus="right"))) as closed:
        assert closed.get("/metrics").status_code == 401
        answer = closed.get("/metrics", headers={"Authorization": "Bearer right"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")


class Elsewhere:
    """A collector whose numbers leave another way, as Ray's do."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add(self, metric: Metric, values: tuple[str, ...], amount: float) -> None:
        assert len(values) == len(metric.labels)
        assert amount >= 0
        self.names.add(metric.name)

    set = observe = add

    def exposition(self) -> None:
        return None


def test_where_ray_collects_the_numbers_this_path_says_so(service: Service) -> None:
    collector = Elsewhere()
    with TestClient(build_app(lambda: service, LIMITS, metrics=Metrics(collector))) as client:
        client.post("/v1/predict", content=PNGS[0])
        answer = client.get("/metrics")
    assert (answer.status_code, answer.json()["reason"]) == (404, "elsewhere")
    assert {"historay_requests", "historay_predictions", "historay_queued_tiles"} <= collector.names


def test_the_dashboard_shows_every_metric_and_asks_for_no_other() -> None:
    asked = set(re.findall(r"\bray_(historay_\w+)", DASHBOARD.read_text()))
    suffixes = {"counter": "_total", "histogram": "_bucket", "gauge": ""}
    assert asked == {metric.name + suffixes[metric.kind] for metric in METRICS}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
