"""What all tests share: a store, one Ray cluster, a real S3 server, the real data beside the checkout."""

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pcam import unpack_pcam
from processes import free_port
from s3_server import S3_KEYS, s3_server_over

from historay.storage import LocalStore

TESTS = Path(__file__).parent


# A busy machine is no failure: timings decide nothing here.
settings.register_profile("historay", deadline=None)
settings.load_profile("historay")
# A shell's background job ignores Ctrl-C and so would all that the tests start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
    unpack_pcam(shared_data / "pcam", folder)
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

    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers, and the drivers of jobs, otherwise give way to everything else on a busy machine.
        patch.setenv("RAY_worker_niceness", "0")
        connect_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts versitygw, a real S3 server over a folder, on loopback; yields its URL, with AWS_* set for it."""
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch, s3_server_over(folder, port):
        for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        yield url


@pytest.fixture
def s3_uri(s3_server: str) -> str:
    """A fresh, empty prefix in a bucket of the real S3 server."""
    return f"s3://tiles/{uuid.uuid4().hex[:8]}"
