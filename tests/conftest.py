"""What all tests share: a store, one Ray cluster, a real S3 server, the real data beside the checkout."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import free_port

from historay.storage import LocalStore

TESTS = Path(__file__).parent
S3_KEYS = {"AWS_ACCESS_KEY_ID": "historay-test", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that stands beside the checkout, here and in CI."""
    folder = TESTS.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data are not on this machine: {folder} is missing")
    return folder


@pytest.fixture(scope="session")
def pcam_source(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 18,000 PCam tiles, unpacked, with their manifest.csv."""
    folder = tmp_path_factory.mktemp("pcam")
    for archive in ("train", "valid", "test"):
        shutil.unpack_archive(shared_data / "pcam" / f"{archive}.tar", folder, filter="data")
    shutil.copyfile(shared_data / "pcam" / "manifest.csv", folder / "manifest.csv")
    return folder


@pytest.fixture(scope="session")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of the tests' own: a local Ray writes its token there. Short, since Ray puts sockets under it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def ray_cluster(own_home: Path) -> Iterator[None]:
    """One real Ray cluster on this machine for the whole session."""
    import ray

    from historay.ray_session import connect_ray

    connect_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts versitygw, a real S3 server over a folder, on loopback; yields its URL, with AWS_* set for it."""
    program = _built("github.com/versity/versitygw/cmd/versitygw")
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    (folder / "buckets" / "tiles").mkdir(parents=True)
    (folder / "sidecar").mkdir()
    url = f"http://127.0.0.1:{port}"
    command = [program, "--port", f"127.0.0.1:{port}", "--access", S3_KEYS["AWS_ACCESS_KEY_ID"]]
    command += ["--secret", S3_KEYS["AWS_SECRET_ACCESS_KEY"], "--quiet", "posix"]
    command += ["--sidecar", str(folder / "sidecar"), str(folder / "buckets")]
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for_port(port, server)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=10)


@pytest.fixture
def s3_uri(s3_server: str) -> str:
    """A fresh, empty prefix in a bucket of the real S3 server."""
    return f"s3://tiles/{uuid.uuid4().hex[:8]}"


def _built(package: str) -> str:
    """Builds a Go program of tests/tools once per pinned go.sum, outside the checkout."""
    if shutil.which("go") is None:
        pytest.skip(f"{package} is built with Go, and there is no go on this machine")
    tools = TESTS / "tools"
    pin = hashlib.sha256((tools / "go.sum").read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "/var/tmp")) / "historay-tools"
    program = cache / f"{package.rsplit('/', 1)[1]}-{pin}"
    if not program.exists():
        print(f"building {package} (about a minute, once)", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        subprocess.run(["go", "build", "-o", unfinished, package], cwd=tools, check=True, timeout=900)
        unfinished.replace(program)
    return str(program)


def _wait_for_port(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, f"{server.args!r} ended with status {server.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port} after 30 s")
