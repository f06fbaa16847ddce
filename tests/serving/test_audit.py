"""The audit log says who asked and what was answered, nothing of the image or its name, and holds up nobody."""

import json
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from bundles import PROBES, SPEC, network
from fastapi.testclient import TestClient
from images import encoded, texture
from processes import wait_until

from historay.errors import ConfigError
from historay.models.bundle import Bundle
from historay.serving.audit import AuditLog, Entry
from historay.serving.http import build_app
from historay.serving.keys import KeyRing
from historay.serving.limits import RequestConfig
from historay.serving.service import Service, make_service

PNGS = [encoded(texture(seed, 48), "PNG") for seed in range(2)]
LIMITS = RequestConfig(runtime="torch")


def entry(number: int = 0) -> Entry:
    return Entry(0.0, f"{number:032x}", "lis", "/v1/predict", 200, 0.25)


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(text) for file in sorted(folder.glob("*.jsonl")) for text in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def service() -> Service:
    return make_service(Bundle(SPEC, network(), "f" * 16, PROBES), LIMITS)


def test_each_request_is_one_line_that_tells_what_was_answered_to_whom(service: Service, tmp_path: Path) -> None:
    config = LIMITS.model_copy(update={"audit_log": str(tmp_path)})
    with TestClient(build_app(lambda: service, config, KeyRing.of(lis="right"))) as client:
        headers = {"Authorization": "Bearer right"}
        files = [("images", ("Smith^John.png", data)) for data in (*PNGS, b"no image")]
        answer = client.post("/v1/predict?name=Smith", files=files, headers=headers)
        client.post("/v1/predict", content=b"no image", headers=headers)
        client.get("/v1/patients/Smith", headers={"Authorization": "Bearer wrong"})
        client.get("/healthz")
    written = lines(tmp_path)
    assert [(line["key_id"], line["status"], line["route"], line.get("reason")) for line in written] == [
        ("lis", 200, "/v1/predict", None),
        ("lis", 415, "/v1/predict", "not-an-image"),
        (None, 401, "none", "wrong-key"),
    ]
    assert written[0]["request_id"] == answer.headers["x-request-id"] == answer.json()["request_id"]
    assert written[0]["model"] == "demo@ffffffffffffffff"
    images = written[0]["images"]
    assert isinstance(images, list)
    for image, result in zip(images[:2], answer.json()["results"], strict=False):
        assert {name: image[name] for name in image if name != "input"} == {
            name: result[name] for name in ("index", "sha256", "label", "probabilities", "prediction_set", "abstain")
        }
    assert images[0]["sha256"] == sha256(PNGS[0]).hexdigest()
    assert images[2] == {"index": 2, "refused": "not-an-image"}
    text = "".join(file.read_text() for file in tmp_path.iterdir())
    assert "Smith" not in text
    assert "right" not in text


def test_a_file_is_named_by_host_and_process_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path / "made"), lost=pytest.fail)
    log.add(entry())
    log.close()
    (file,) = (tmp_path / "made").iterdir()
    assert f"-{os.getpid()}-" in file.name
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_full_file_is_left_for_the_next_and_no_line_is_lost_torn_or_out_of_order(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path), lost=pytest.fail, file_bytes=1000)
    for number in range(100):
        log.add(entry(number))
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) > 10
    assert max(file.stat().st_size for file in files) <= 1000
    assert [line["request_id"] for line in lines(tmp_path)] == [f"{number:032x}" for number in range(100)]


def test_replicas_may_share_a_folder(tmp_path: Path) -> None:
    logs = [AuditLog(str(tmp_path), lost=pytest.fail, file_bytes=2000) for _ in range(4)]

    def write(number: int) -> None:
        for turn in range(50):
            logs[number].add(entry(number * 50 + turn))
        logs[number].close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert Counter(line["request_id"] for line in lines(tmp_path)) == Counter(f"{number:032x}" for number in range(200))


def test_a_disk_that_hangs_holds_up_no_request_and_what_is_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    log, hangs, real = AuditLog(str(tmp_path), lost.append), threading.Event(), os.write

    def write(descriptor: int, data: bytes) -> int:
        hangs.wait()
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    started = time.perf_counter()
    for number in range(12_000):
        log.add(entry(number))
    assert time.perf_counter() - started < 20  # the disk hangs until then
    hangs.set()
    log.close()
    assert len(lines(tmp_path)) + sum(lost) == 12_000
    assert 1990 <= sum(lost) <= 2000  # what 10,000 places and one line in hand do not hold


def test_a_full_disk_costs_lines_and_not_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[int] = []
    log, real = AuditLog(str(tmp_path), lost.append), os.write
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    log.add(entry(1))
    deadline = time.monotonic() + 5
    while not lost and time.monotonic() < deadline:
        time.sleep(0.01)
    monkeypatch.setattr(os, "write", real)
    log.add(entry(2))
    log.close()
    assert lost == [1]
    assert [line["request_id"] for line in lines(tmp_path)] == [f"{2:032x}"]


def test_a_next_file_that_cannot_be_opened_costs_lines_until_it_can_and_nothing_else_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    log, real = AuditLog(str(tmp_path / "log"), lost.append, file_bytes=1), os.open
    log.add(entry(1))
    wait_until(lambda: len(lines(tmp_path / "log")) == 1, 30, "the first line")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        log.add(entry(2))
        wait_until(lambda: bool(lost), 30, "the loss")
    other = real(tmp_path / "somebody else's", os.O_WRONLY | os.O_CREAT)  # takes the lowest number that is free
    log.add(entry(3))
    log.close()
    os.close(other)
    assert lost == [1]
    assert [line["request_id"] for line in lines(tmp_path / "log")] == [f"{number:032x}" for number in (1, 3)]
    assert (tmp_path / "somebody else's").read_bytes() == b""


def test_a_line_of_which_the_disk_took_a_part_is_ended_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, real = AuditLog(str(tmp_path), lost=pytest.fail), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:20]))
    log.add(entry(1))
    wait_until(lambda: any(file.stat().st_size for file in tmp_path.iterdir()), 30, "the part")
    monkeypatch.setattr(os, "write", real)
    log.add(entry(2))
    log.close()
    assert [line["request_id"] for line in lines(tmp_path)] == [f"{number:032x}" for number in (1, 2)]


@pytest.mark.parametrize("target", ["stderr", "stdout"])
def test_without_a_folder_the_lines_go_where_logs_go(target: str, capfd: pytest.CaptureFixture[str]) -> None:
    log = AuditLog(target, lost=pytest.fail)
    log.add(entry(7))
    log.close()
    assert json.loads(getattr(capfd.readouterr(), {"stdout": "out", "stderr": "err"}[target]))["request_id"] == f"{7:032x}"


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"audit_log=.*name a folder that can be written"):
        AuditLog(str(tmp_path / "file"), lost=pytest.fail)
