"""The endpoint under load on Ray Serve: a moved alias, a killed replica and too many requests cost nobody a wrong answer."""

import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
from bundles import SPEC
from hostile import KINDS, KNOWN, sent, status_of
from images import encoded, texture
from load import Check, Seen, seconds, send_for
from numpy.typing import NDArray
from processes import COMMAND, environment, free_port, kill_all, processes_of, wait_until
from prometheus_client.parser import text_string_to_metric_families

from historay.models.bundle import load_bundle, make_probes, save_bundle
from historay.models.inference import predict_logits, probabilities
from historay.models.registry import PRODUCTION, set_alias
from historay.models.zoo import build_model
from historay.serving.client import Client
from historay.storage import Store, open_store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

PIXELS = np.stack([texture(seed, 48) for seed in range(24)])
TILES = [encoded(tile, "PNG") for tile in PIXELS]


@dataclass
class Endpoint:
    """A running endpoint and the models that it may be told to serve."""

    url: str
    home: Path
    store: Store
    versions: list[str]
    server: "subprocess.Popen[bytes]"

    def point(self, number: int) -> None:
        set_alias(self.store, "demo", PRODUCTION, self.versions[number], "a test")

    def wait_for(self, number: int) -> None:
        """Returns once both replicas answer by a version; asked often enough to meet both."""
        wanted = {f"demo@{self.versions[number]}"}
        wait_until(lambda: {self.model() for _ in range(12)} == wanted, 600, "the move")

    def model(self) -> str:
        with Client(self.url) as client:
            return client.model().model

    def replicas(self) -> list[int]:
        return processes_of(self.home, "ServeReplica")


def save_model(store: Store, seed: int) -> str:
    torch.manual_seed(seed)
    model = build_model("small_cnn", 2, 48).eval()
    return save_bundle(store, SPEC, model, {}, make_probes(model, PIXELS[:4], SPEC.preprocessing))


def said_by(model: torch.nn.Module) -> NDArray[np.float64]:
    return probabilities(predict_logits(model, PIXELS, SPEC.preprocessing))


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    home = tmp_path_factory.mktemp("serve")
    store, port = open_store(str(home / "store")), free_port()
    versions = [save_model(store, seed) for seed in (1, 2)]
    set_alias(store, "demo", PRODUCTION, versions[0], "a test")
    command = [COMMAND, "serve", "--model", "demo", "--store", store.uri, "--port", str(port), "--alias-poll-s", "0.5"]
    command += ["--min-replicas", "2", "--max-replicas", "2", "--max-ongoing-requests", "16", "--max-queued-requests", "16"]
    url = f"http://127.0.0.1:{port}"
    try:
        with (home / "log").open("wb") as log, Client(url, num_retries=0) as client:
            server = subprocess.Popen(command, env=environment(home), cwd=home, stderr=log)
            wait_until(lambda: client.is_ready() or server.poll() is not None, 600, "the endpoint's start")
            assert server.poll() is None, (home / "log").read_text()
            yield Endpoint(url, home, store, versions, server)
    finally:
        kill_all(home)


@pytest.fixture(scope="module")
def slow_head(endpoint: Endpoint) -> Iterator[socket.socket]:
    """A request whose head never ends: begun before all tests that ask for it."""
    with socket.create_connection(("127.0.0.1", int(endpoint.url.rsplit(":", 1)[1])), timeout=120) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost")
        yield connection


@pytest.fixture(scope="module")
def check(endpoint: Endpoint) -> Check:
    expected = {
        f"demo@{version}": probabilities(
            predict_logits(load_bundle(endpoint.store, "demo", version).model, PIXELS, SPEC.preprocessing)
        )
        for version in endpoint.versions
    }

    def wrong(tile: int, answer: dict[str, object]) -> str | None:
        (result,) = answer["results"]  # type: ignore[misc]
        found = np.array(list(result["probabilities"].values()))  # type: ignore[index]
        difference = np.abs(found - expected[str(answer["model"])][tile]).max()
        return None if difference < 0.03 else f"tile {tile}: {found} differs by {difference}"

    return wrong


def while_loaded(endpoint: Endpoint, check: Check, act: "threading.Thread", num_clients: int = 8) -> Seen:
    """Sends before, during and for two seconds after what the thread does."""
    ended = [float("inf")]

    def run() -> None:
        time.sleep(1)
        act.start()
        act.join()
        ended[0] = time.monotonic() + 2

    threading.Thread(target=run, daemon=True).start()
    return send_for(endpoint.url, TILES, check, num_clients, lambda: time.monotonic() > ended[0])


def listening(numbers: list[int]) -> set[tuple[str, int]]:
    connections = [each for number in numbers for each in psutil.Process(number).net_connections("tcp")]
    return {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}


def test_the_port_of_metrics_of_the_node_tells_what_its_replicas_counted(endpoint: Endpoint, slow_head: socket.socket) -> None:
    with Client(endpoint.url) as client:
        client.predict(TILES[:3])

    def agents() -> list[int]:
        # By their parent: such a process writes its title over its environment, HOME included.
        (raylet,) = processes_of(endpoint.home, "--raylet_socket_name")
        return [child.pid for child in psutil.Process(raylet).children() if "DashboardAgent" in " ".join(child.cmdline())]

    def told() -> str:
        pages = []
        for _, port in listening(agents()):
            with suppress(httpx.HTTPError):
                answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5)
                pages.append(answer.text if answer.is_success else "")  # one of its ports asks for a token
        return "\n".join(pages)

    wait_until(lambda: "ray_historay_batch_tiles_bucket{" in told(), 600, "the metrics")
    page = told()
    counted = sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "ray_historay_predictions_total"
    )
    assert counted >= 3
    assert "ray_historay_stage_seconds_bucket{" in page


def test_nothing_of_the_endpoint_listens_beyond_loopback(endpoint: Endpoint) -> None:
    # HAProxy starts anew for every replica that comes, and hands over its sockets.
    wait_until(lambda: len(listening(processes_of(endpoint.home, "haproxy"))) >= 3, 600, "HAProxy's start")
    assert {address for address, _ in listening(processes_of(endpoint.home, "haproxy"))} == {"127.0.0.1"}
    answering = [address for address, port in listening(endpoint.replicas()) if 30_000 <= port < 31_000]
    assert answering
    assert set(answering) == {"127.0.0.1"}


def test_an_alias_that_moves_under_load_and_back_costs_no_request(endpoint: Endpoint, check: Check) -> None:
    def move() -> None:
        for number in (1, 0):
            endpoint.point(number)
            endpoint.wait_for(number)

    seen = while_loaded(endpoint, check, threading.Thread(target=move))
    assert seen.num_failed == 0, seen.statuses
    assert seen.wrong == []
    first, second = (f"demo@{version}" for version in endpoint.versions)
    assert set(seen.models) == {first, second}
    assert seen.models[-1] == first


def test_a_version_that_was_tampered_with_never_answers(endpoint: Endpoint, check: Check) -> None:
    broken = save_model(endpoint.store, 3)
    endpoint.store.write(f"models/demo/{broken}/model.safetensors", b"other weights")
    set_alias(endpoint.store, "demo", PRODUCTION, broken, "a test")
    seen = send_for(endpoint.url, TILES, check, 4, seconds(4))
    assert seen.num_failed == 0, seen.statuses
    assert set(seen.models) == {f"demo@{endpoint.versions[0]}"}
    for number in (1, 0):  # the alias is followed all the same
        endpoint.point(number)
        endpoint.wait_for(number)


def test_a_replica_killed_under_load_costs_few_requests_and_no_wrong_answer(endpoint: Endpoint, check: Check) -> None:
    def kill() -> None:
        os.kill(endpoint.replicas()[0], signal.SIGKILL)
        time.sleep(15)

    seen = while_loaded(endpoint, check, threading.Thread(target=kill))
    total = sum(seen.statuses.values())
    assert seen.wrong == []
    assert seen.num_failed < 0.01 * total, seen.statuses
    wait_until(lambda: len(endpoint.replicas()) == 2, 600, "the new replica")


def test_a_head_that_never_ends_is_given_up(slow_head: socket.socket) -> None:
    assert slow_head.recv(65536)[:12] in {b"HTTP/1.1 408", b""}


def test_a_page_elsewhere_that_calls_itself_this_machine_reads_nothing(endpoint: Endpoint) -> None:
    assert httpx.get(f"{endpoint.url}/v1/model", headers={"Host": "evil.example"}).json()["reason"] == "wrong-host"


def test_hostile_requests_through_the_proxy_are_refused_and_a_good_one_is_then_answered_right(
    endpoint: Endpoint, check: Check
) -> None:
    rng, port = random.Random(0), int(endpoint.url.rsplit(":", 1)[1])
    requests = [(kind.__name__, kind(rng)) for kind, number in KINDS.items() for _ in range(number // 5)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: sent(port, request[1], timeout_s=60), requests))
    statuses = Counter((name, status_of(answer)) for (name, _), answer in zip(requests, answers, strict=True))
    print(sorted(statuses.items(), key=str))
    assert {status for _, status in statuses} - {None} <= KNOWN
    assert not any(b"Traceback" in answer or b"site-packages" in answer for answer in answers)
    after = send_for(endpoint.url, TILES, check, 2, seconds(1))
    assert (set(after.statuses), after.wrong) == ({200}, [])


def test_overload_is_answered_with_429_or_in_time_and_never_hangs(endpoint: Endpoint, check: Check) -> None:
    seen = send_for(endpoint.url, TILES, check, 200, seconds(6))
    assert set(seen.statuses) <= {200, 429, 504}, seen.statuses
    assert seen.statuses[200] > 0
    assert None not in seen.retry_after
    assert seen.wrong == []
    after = send_for(endpoint.url, TILES, check, 2, seconds(1))
    assert set(after.statuses) == {200}, after.statuses


def test_sigterm_ends_it_in_order(endpoint: Endpoint) -> None:
    endpoint.server.terminate()
    assert endpoint.server.wait(timeout=300) == 0
    wait_until(lambda: not processes_of(endpoint.home), 600, "the end of every process")
    assert "Traceback" not in (endpoint.home / "log").read_text()
