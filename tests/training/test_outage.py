"""A checkpoint is saved and read back though the S3 server, or the bucket, is away for some seconds."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from processes import free_port
from s3_server import S3_KEYS, s3_server_over

from historay import storage
from historay.models.zoo import build_model
from historay.storage import PatientStore, open_store
from historay.training.checkpoint import load_checkpoint, save_checkpoint
from historay.training.loop import Learner
from historay.training.optim import build_optimizer, build_schedule
from historay.training.run import complete_epochs

pytestmark = pytest.mark.s3


class Server:
    """A real S3 server of the test's own, which goes and comes back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.running = folder, free_port(), ExitStack()

    def start(self) -> None:
        self.running.enter_context(s3_server_over(self.folder, self.port))

    def stop(self) -> None:
        self.running.close()

    def lose_bucket(self) -> None:
        (self.folder / "buckets" / "tiles").rename(self.folder / "lost")

    def find_bucket(self) -> None:
        (self.folder / "lost").rename(self.folder / "buckets" / "tiles")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path)
    for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}.items():
        monkeypatch.setenv(name, value)
    storage._s3_client.cache_clear()
    server.start()
    yield server
    server.stop()
    storage._s3_client.cache_clear()


def learner(seed: int) -> Learner:
    torch.manual_seed(seed)
    model = build_model("small_cnn", 2, 32, dropout=0.0)
    optimizer = build_optimizer(model, "sgd", 0.1, 0.9, 1e-3)
    return Learner(model, optimizer, build_schedule(optimizer, "cosine", 2, 40), None)


def during(back: Callable[[], None], away_s: float, work: Callable[[], None]) -> None:
    """Does the work while something is away that comes back after so many seconds; the work must have had to wait."""
    timer = threading.Timer(away_s, back)
    started = time.monotonic()
    timer.start()
    try:
        work()
    finally:
        timer.join()
    assert time.monotonic() - started >= away_s


@pytest.mark.parametrize("outage", ["server", "bucket"])
def test_a_checkpoint_is_saved_and_read_through_an_outage(server: Server, outage: str) -> None:
    away, back = (server.stop, server.start) if outage == "server" else (server.lose_bucket, server.find_bucket)
    store, saved, loaded = PatientStore(open_store("s3://tiles/outage")), learner(1), learner(2)
    save_checkpoint(store, "r", 1, saved, {})
    away()
    during(back, 5.0, lambda: save_checkpoint(store, "r", 2, saved, {"best": None}))
    assert complete_epochs(store, "r") == [1, 2]
    away()
    during(back, 5.0, lambda: assert_loaded(store, saved, loaded))


def assert_loaded(store: PatientStore, saved: Learner, loaded: Learner) -> None:
    assert load_checkpoint(store, "r", 2, loaded) == {"best": None}
    theirs = saved.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.model.state_dict().items())
