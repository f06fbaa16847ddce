"""Whatever comes in over the socket, the endpoint neither falls nor blames itself, and goes on answering right."""

import io
import json
import random
import socket
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes

import httpx
import pytest
from bundles import PROBES, SPEC, network
from endpoint import Mishaps, listening
from fastapi.testclient import TestClient
from hostile import KINDS, KNOWN, post, sent, status_of
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encoded, texture

from historay.models.bundle import Bundle
from historay.serving.body import multipart_files, zip_files
from historay.serving.http import build_app
from historay.serving.limits import RequestConfig
from historay.serving.service import Refused, make_service

LIMITS = RequestConfig(
    max_files=8,
    max_image_bytes=100_000,
    max_body_bytes=400_000,
    max_pixels=1_000_000,
    body_timeout_s=3.0,
    runtime="torch",
)
PNGS = [encoded(texture(seed, 48), "PNG") for seed in range(4)]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, Mishaps]]:
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), LIMITS)
    with listening(build_app(lambda: service, LIMITS)) as running:
        yield running


def good(port: int) -> list[dict[str, object]]:
    files = [("images", ("a.png", data)) for data in PNGS]
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/predict", files=files, timeout=30)
    assert answer.status_code == 200
    return list(answer.json()["results"])


def test_a_thousand_hostile_requests_are_refused_without_a_5xx_and_a_good_one_is_then_answered_right(
    server: tuple[int, Mishaps],
) -> None:
    port, mishaps = server
    before, rng = good(port), random.Random(0)
    requests = [(kind.__name__, kind(rng)) for kind, number in KINDS.items() for _ in range(number)]
    assert len(requests) == 1000
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: sent(port, request[1]), requests))
    statuses = Counter((name, status_of(answer)) for (name, _), answer in zip(requests, answers, strict=True))
    print(sorted(statuses.items(), key=str))
    assert {status for _, status in statuses} - {None} <= KNOWN
    # No answer at all is right only where nothing could be read as a request.
    assert {name for name, status in statuses if status is None} <= {"noise"}
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Traceback" not in body
        assert b"/work" not in body
        assert b"site-packages" not in body
        if b"application/problem+json" in head:
            assert json.loads(body)["status"] == status_of(answer)
    assert mishaps.messages == []
    assert good(port) == before


def test_bodies_and_heads_that_trickle_hold_up_nobody_else(server: tuple[int, Mishaps]) -> None:
    port, mishaps = server
    slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(60)]
    request = post(PNGS[0])
    started = time.monotonic()
    for connection in slow[:30]:
        connection.sendall(request[:-50])  # the body lacks its end
    for connection in slow[30:]:
        connection.sendall(request[:40])  # the head does
    for turn in range(12):
        for connection in slow[:30]:
            try:
                connection.sendall(request[-50 + turn : -49 + turn])
            except (BrokenPipeError, ConnectionResetError):
                continue  # it was told 408 before
        good(port)
        time.sleep(0.1)
    answers = [connection.recv(65536) for connection in slow[:30]]
    assert {status_of(answer) for answer in answers} == {408}
    assert all(b'"body-too-slow"' in answer and b"connection: close" in answer.lower() for answer in answers)
    assert time.monotonic() - started < 120
    for connection in slow:
        connection.close()
    good(port)
    assert mishaps.messages == []


def test_a_client_that_goes_away_in_the_middle_is_no_error_of_ours(server: tuple[int, Mishaps]) -> None:
    port, mishaps = server
    for end in range(0, len(post(PNGS[0])), 400):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(post(PNGS[0])[:end])
    good(port)
    assert mishaps.messages == []


def test_two_requests_in_one_breath_are_two_requests(server: tuple[int, Mishaps]) -> None:
    """A body's end is where its length says, so that nothing can be smuggled into another's request."""
    port, _ = server
    first = post(b"GET /v1/model HTTP/1.1\r\n\r\n", kind="text/plain").replace(b"Connection: close\r\n", b"")
    answer = sent(port, first + post(PNGS[0]))
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.startswith(b"HTTP/1.1 415")
    assert b'"architecture"' not in answer


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), LIMITS)
    with TestClient(build_app(lambda: service, LIMITS)) as found:
        yield found


def zip_of(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def post_zip(client: TestClient, body: bytes) -> httpx.Response:
    return client.post("/v1/predict", content=body, headers={"content-type": "application/zip"})


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_answered_as_the_same_files_in_a_form_and_names_stay_out(client: TestClient, method: int) -> None:
    names = ["z/Smith John 1950.png", "../a.png", "z/", "b"]
    body = zip_of(*zip(names, [PNGS[0], PNGS[1], b"", PNGS[2]], strict=True), method=method)
    answer = post_zip(client, body)
    form = client.post("/v1/predict", files=[("images", ("a", data)) for data in PNGS[:3]])
    assert answer.json()["results"] == form.json()["results"]  # the folder is no file
    assert "Smith" not in answer.text


def test_a_bomb_is_stopped_while_it_inflates_whatever_its_header_says(client: TestClient) -> None:
    one = zip_of(("a", bytes(50_000_000)))
    assert len(one) < LIMITS.max_image_bytes
    assert post_zip(client, one).json()["reason"] == "too-many-bytes"
    many = zip_of(*((str(number), bytes(99_000)) for number in range(8)))
    assert post_zip(client, many).json()["reason"] == "body-too-large"
    modest = bytearray(one)
    at = modest.rfind(b"PK\1\2")
    modest[at + 24 : at + 28] = (1000).to_bytes(4, "little")  # the directory's word for the size
    assert post_zip(client, bytes(modest)).json()["reason"] in {"bad-zip", "not-an-image"}
    assert post_zip(client, zip_of(*((str(number), PNGS[0]) for number in range(9)))).json()["reason"] == "too-many-files"
    assert post_zip(client, zip_of(*((f"{number:0200}", b"") for number in range(700)))).json()["reason"] == "too-many-files"


def test_a_zip_that_cannot_be_read_is_refused_with_its_reason(client: TestClient) -> None:
    good_zip = zip_of(("a", PNGS[0]))
    broken = bytearray(good_zip)
    broken[60] ^= 0xFF
    locked = bytearray(good_zip)
    locked[6] |= 1
    locked[good_zip.rfind(b"PK\1\2") + 8] |= 1
    for body in (
        b"PK",
        PNGS[0],
        good_zip[:-10],
        bytes(broken),
        bytes(locked),
        zip_of(("a", PNGS[0]), method=zipfile.ZIP_BZIP2),
    ):
        answer = post_zip(client, body)
        assert (answer.status_code, answer.json()["reason"]) == (422, "bad-zip")
    assert post_zip(client, zip_of()).json()["reason"] == "no-images"


@settings(max_examples=300)
@given(data=st.data())
def test_no_change_to_a_zip_raises_anything_but_a_refusal(data: st.DataObject) -> None:
    body = bytearray(zip_of(("a", PNGS[0]), ("é", bytes(300)), method=data.draw(st.sampled_from([0, 8]))))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        files = zip_files(bytes(body), LIMITS)
    except Refused:
        return
    assert sum(map(len, files)) <= LIMITS.max_body_bytes + 1


@given(
    files=st.lists(st.binary(max_size=200), min_size=1, max_size=8),
    boundary=st.from_regex(r"[A-Za-z0-9]{8,70}", fullmatch=True),
)
def test_a_form_gives_back_the_bytes_that_httpx_put_in(files: list[bytes], boundary: str) -> None:
    if any(boundary.encode() in data for data in files):
        return
    request = httpx.Request(
        "POST",
        "http://x/",
        files=[("any", ('name; \r\n"of" a patient.png', data)) for data in files],
        data={"field": "ignored"},
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )
    assert multipart_files(request.read(), request.headers["content-type"], max_files=8) == files


def test_a_form_is_cut_where_the_standard_library_cuts_it() -> None:
    body = (
        b'a preamble\r\n--b\r\nContent-Disposition: form-data; name=x; filename="e"\r\n\r\n\r\n--b \t\r\n'
        b'content-disposition:form-data;name="f";filename="n"\r\nContent-Type: image/png\r\n\r\nA\r\n-\r\n--a\r\n\r\n'
        b"--b\r\nContent-Disposition: form-data; name=y\r\n\r\nfield\r\n--b--\r\nan epilogue\r\n--b\r\n"
    )
    kind = 'multipart/form-data; charset=x; boundary="b"'
    parsed = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    expected = [part.get_payload(decode=True) for part in parsed.walk() if part.get_filename() is not None]
    assert multipart_files(body, kind, 8) == expected == [b"", b"A\r\n-\r\n--a\r\n"]


def test_a_part_is_a_file_by_its_name_or_by_its_type() -> None:
    heads = ['; filename="a"\r\nContent-Type: text/plain', "\r\nContent-Type: image/png", "\r\ncontent-type:text/plain", ""]
    body = "".join(f"--b\r\nContent-Disposition: form-data; name=x{head}\r\n\r\n{at}\r\n" for at, head in enumerate(heads))
    assert multipart_files(body.encode() + b"--b--", "multipart/form-data; boundary=b", 8) == [b"0", b"1"]


def test_thousands_of_parts_are_refused_at_the_first_too_many(client: TestClient) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/predict", content=part * 5000 + b"--b--\r\n", headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (413, "too-many-files")


def test_compressed_noise_of_any_size_is_only_noise(client: TestClient) -> None:
    answer = client.post("/v1/predict", content=zlib.compress(bytes(10_000_000)), headers={"content-encoding": "deflate"})
    assert answer.status_code == 415  # nothing is inflated on a header's word
