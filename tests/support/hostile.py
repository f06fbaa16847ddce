"""Requests that nobody of good will sends, as raw bytes for a socket; each kind draws from the generator that it is given."""

import io
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable

from images import encoded, png_of_claimed_size, texture

_PNG, _JPEG = encoded(texture(1, 48), "PNG"), encoded(texture(2, 48))
_TYPES = (
    "image/png",
    "image/jpeg",
    "application/octet-stream",
    "application/zip",
    "multipart/form-data",
    "text/html",
    "a/b;c",
    "",
)


def post(body: bytes, *headers: str, kind: str = "image/png", length: int | None = None, path: str = "/v1/predict") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", "Connection: close", *headers]
    if length != -1:
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def flipped(rng: random.Random) -> bytes:
    data = bytearray(rng.choice((_PNG, _JPEG)))
    for _ in range(rng.choice((1, 3, 30, 300))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return post(bytes(data), kind=rng.choice(_TYPES[:3]))


def cut_off(rng: random.Random) -> bytes:
    data = rng.choice((_PNG, _JPEG))
    return post(data[: rng.randrange(len(data))] + rng.choice((b"", bytes(50), data[:40])))


def claimed(rng: random.Random) -> bytes:
    return post(png_of_claimed_size(rng.choice((2**16, 2**31 - 1, 2**32 - 1)), rng.choice((0, 1, 2**20, 2**32 - 1))))


def mislabelled(rng: random.Random) -> bytes:
    return post(rng.choice((_PNG, _JPEG, rng.randbytes(rng.randrange(2000)))), kind=rng.choice(_TYPES))


def misled(rng: random.Random) -> bytes:
    """A Content-Length that lies in either direction, or twice, or is no number."""
    lie = rng.choice((len(_PNG) - rng.randrange(1, 200), len(_PNG) + rng.randrange(1, 10**6), 10**12, 0))
    odd = rng.choice(("", "", f"Content-Length: {rng.choice(('-1', '1e3', '0x10', '٣', '9' * 40, '5, 6'))}"))
    return post(_PNG, *([odd.encode().decode("latin-1")] if odd else []), length=-1 if odd else lie)


def chunked(rng: random.Random) -> bytes:
    size = rng.choice((b"5", b"-5", b"ffffffffffffffffff", b"zz", b"0", b"5;" + b"x" * 5000, b""))
    body = b"".join(size + rng.choice((b"\r\n", b"\n", b"")) + rng.randbytes(5) + b"\r\n" for _ in range(rng.randrange(1, 20)))
    smuggled = rng.choice(((), ("Content-Length: 5",), ("Transfer-Encoding: gzip",)))
    return post(body, "Transfer-Encoding: chunked", *smuggled, length=-1)


def zipped(rng: random.Random) -> bytes:
    """A bomb, a nest, too many entries, or a zip with wrong bytes in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        match rng.randrange(4):
            case 0:
                archive.writestr("../../etc/bomb.png", bytes(2_000_000))
            case 1:
                for number in range(200):
                    archive.writestr(f"{number}", _PNG)
            case 2:
                archive.writestr("a.zip", buffer.getvalue() or b"PK\5\6" + bytes(18))
            case _:
                archive.writestr("\u202e.png", _PNG, zipfile.ZIP_STORED)
    data = bytearray(buffer.getvalue())
    for _ in range(rng.choice((0, 1, 5))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.3:  # the directory lies about sizes, count and place
        struct.pack_into("<HHII", data, len(data) - 14, *(rng.choice((0, 1, 0xFFFF)) for _ in range(2)), rng.getrandbits(32), 9)
    return post(bytes(data), kind="application/zip")


def parts(rng: random.Random) -> bytes:
    """A multipart body of thousands of parts, or broken somewhere."""
    name = rng.choice(('name="a"; filename="b"', 'name="a"', 'filename="../../x\0"', "name=" + "n" * 9000, ""))
    part = f"--X\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + rng.choice((b"", _PNG)) + b"\r\n"
    body = bytearray(part * rng.choice((1, 3, 3000 if len(part) < 200 else 20)) + rng.choice((b"--X--\r\n", b"--X", b"")))
    for _ in range(rng.choice((0, 0, 1, 20))):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return post(
        bytes(body), kind=rng.choice(("multipart/form-data; boundary=X", "multipart/x; boundary=", "multipart/form-data"))
    )


def headed(rng: random.Random) -> bytes:
    """Headers that are huge, many or malformed."""
    many = [f"X-{number}: {'v' * rng.choice((1, 50))}" for number in range(rng.choice((1, 500)))]
    odd = rng.choice(
        ("Authorization: Bearer " + "k" * 60_000, "X: \x00", "no colon", ": no name", "Authorization: \xff\xfe", "X :y")
    )
    return post(_PNG, *many, odd)


def misrouted(rng: random.Random) -> bytes:
    method = rng.choice(("GET", "POST", "PUT", "TRACE", "OPTIONS", "CONNECT", "B\xffD", ""))
    path = rng.choice(
        (
            "/../../etc/passwd", "/static/..%2f..%2fhttp.py", "/static/%00", "//evil.example/", "/v1/predict?explain=%ff",
            "/v1/predict?explain=2&explain=x", "/" + "a" * 70_000, "*", "http://evil.example/v1/model", "/v1/model/", "/\xff",
            "", "/v1/model%2fcard", "/metrics?name[]=x", "/healthz/../metrics",
        )
    )  # fmt: skip
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")


def noise(rng: random.Random) -> bytes:
    return rng.choice(
        (
            rng.randbytes(300),
            b"\x16\x03\x01" + bytes(200),
            b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
            zlib.compress(_PNG),
            b"PRI * HTTP/2.0",
        )
    )


Kind = Callable[[random.Random], bytes]
KINDS: dict[Kind, int] = {
    flipped: 300,
    cut_off: 150,
    claimed: 30,
    mislabelled: 100,
    misled: 80,
    chunked: 80,
    zipped: 90,
    parts: 60,
    headed: 40,
    misrouted: 50,
    noise: 20,
}

KNOWN = {200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 431}
"""What they may be answered with."""


def sent(port: int, data: bytes, timeout_s: float = 20.0) -> bytes:
    """Sends bytes and returns all that comes back until the server hangs up."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        try:
            connection.sendall(data)
            if b"\r\n\r\n" not in data:
                connection.shutdown(socket.SHUT_WR)  # uvicorn waits for a head's end as long as the client does
            while part := connection.recv(65536):
                received += part
        except (ConnectionResetError, BrokenPipeError):
            pass  # it hung up on what we were still sending: what it said before counts
    return received


def status_of(answer: bytes) -> int | None:
    return int(answer[9:12]) if answer else None
