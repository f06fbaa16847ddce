"""Faults on a real cluster of several nodes: the run ends, with its steps exact, its checkpoints whole, nobody left behind."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from datasets import textures
from processes import COMMAND, environment, historay, wait_until
from runs import assert_complete

from historay.data.dataset import Dataset, open_dataset
from historay.data.synthetic import SyntheticConfig, write_synthetic
from historay.storage import LocalStore
from historay.training.run import read_metrics
from historay.training.settings import TrainConfig

# Ray's own deprecation warnings are not ours to mend.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]

PATIENCE_S = 400  # of the tests, on a busy machine
STORE_BYTES = 80 * 2**20
# A worker that hangs does not answer when its process group is taken down; Ray Train then asks for 30 s.
CLUSTER = {"RAY_worker_niceness": "0", "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5"}
DRIVER = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}


@pytest.fixture(scope="module")
def head(own_home: Path) -> Iterator[Any]:
    """A cluster of a head without CPUs, where the drivers stand."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in CLUSTER.items():
            patch.setenv(name, value)
        # As in Ray without its dashboard: each node's agent, which has 15 s to start, then loads less.
        patch.setattr("ray._private.utils.get_dashboard_dependency_error", lambda: ImportError("not wanted"))
        cluster = started(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node_settings()}))
        yield cluster
        cluster.shutdown()
    del cluster
    gc.collect()  # Ray leaves sockets open, of which Python complains here and not after the last test


@pytest.fixture
def cluster(head: Any) -> Iterator[Any]:
    """The cluster, without the nodes that a test has added."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return textures(LocalStore(str(tmp_path_factory.mktemp("store"))), tiles_each=20)


def add_node(cluster: Any, num_cpus: int = 1) -> Any:
    return started(lambda: cluster.add_node(num_cpus=num_cpus, **node_settings()))


def node_settings() -> dict[str, Any]:
    return {"include_dashboard": False, "object_store_memory": STORE_BYTES}


def started(start: Callable[[], Any]) -> Any:
    """Starts a node, again if it must: its agents have 15 s for that, and a busy machine is no failure."""
    for _ in range(5):
        with suppress(Exception):
            return start()
    return start()


def workers_on(node: Any) -> list[int]:
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for one in psutil.Process(raylet).children(recursive=True):
        with suppress(psutil.Error):  # it ended while we looked
            if "RayTrainWorker" in "".join(one.cmdline()):
                found.append(one.pid)
    return found


def run_of(dataset: Dataset, **settings: Any) -> TrainConfig:
    return TrainConfig(
        dataset=dataset.reference, store=dataset.store.uri, input_px=32, batch_size=33, num_workers=3, monitor="val_loss",
        **settings,
    )  # fmt: skip


@contextmanager
def training(cluster: Any, config: TrainConfig, home: Path, folder: Path) -> Iterator[None]:
    """Trains in a driver of its own while the block does harm; afterwards the run must end well."""
    (folder / "train.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    log = folder / "log"
    with log.open("wb") as stream:
        variables = {**environment(home), **DRIVER, "RAY_ADDRESS": cluster.address}
        driver = subprocess.Popen([COMMAND, "train", folder / "train.yaml"], env=variables, cwd=folder, stderr=stream)
        try:
            yield
            assert driver.wait(2 * PATIENCE_S) == 0, log.read_text()
        finally:
            driver.kill()
            driver.wait()
            print(log.read_text())


def wait_for(dataset: Dataset, config: TrainConfig, num_workers: int, num_epochs: int = 1) -> None:
    """Waits for so many epochs in all, the last of them by so many workers."""

    def happened() -> bool:
        lines = read_metrics(dataset.store, config.run)
        return len(lines) >= num_epochs and lines[-1]["workers"] == num_workers

    wait_until(happened, PATIENCE_S, f"an epoch by {num_workers} workers")


def test_a_worker_that_hangs_is_replaced_after_the_stated_time(
    cluster: Any, dataset: Dataset, own_home: Path, tmp_path: Path
) -> None:
    add_node(cluster, num_cpus=2)
    second = add_node(cluster)
    config = run_of(dataset, run="hanging", epochs=6, hang_timeout_s=30)
    with training(cluster, config, own_home, tmp_path):
        wait_for(dataset, config, num_workers=3)
        (stopped,) = workers_on(second)
        os.kill(stopped, signal.SIGSTOP)
    assert_complete(dataset, config)
    assert not psutil.pid_exists(stopped)


def test_a_run_goes_on_as_nodes_die_come_and_are_preempted(
    cluster: Any, dataset: Dataset, own_home: Path, tmp_path: Path
) -> None:
    first, second = add_node(cluster), add_node(cluster, num_cpus=2)
    config = run_of(dataset, run="moving", epochs=60, min_workers=1)
    with training(cluster, config, own_home, tmp_path):
        wait_for(dataset, config, num_workers=3)
        cluster.remove_node(second, allow_graceful=False)
        wait_for(dataset, config, num_workers=1)
        third = add_node(cluster)
        wait_for(dataset, config, num_workers=2)
        preempt(cluster, first)
        wait_until(lambda: not workers_on(first), PATIENCE_S, "the end of the workers on the node that is preempted")
        cluster.remove_node(first, allow_graceful=True)
        wait_for(dataset, config, num_workers=1)
        assert len(workers_on(third)) == 1
    assert_complete(dataset, config)


def preempt(cluster: Any, node: Any) -> None:
    """Tells the cluster what a cloud tells it of a spot machine: that the node goes in 5 s."""
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "5"]
    command = [COMMAND.with_name("ray"), "drain-node", "--address", cluster.address, "--node-id", node._node_id, *why]
    subprocess.run(command, check=True, capture_output=True)


def test_an_ingest_ends_while_the_object_stores_are_full(cluster: Any, own_home: Path, tmp_path: Path) -> None:
    add_node(cluster, num_cpus=4)
    write_synthetic(SyntheticConfig(out=str(tmp_path / "tiles"), num_tiles=200, num_patients=10, tile_px=64))
    spilled = Path(cluster.head_node.get_session_dir_path())
    filler = Path(__file__).parents[1] / "support" / "fill_objects.py"
    variables = {**environment(own_home), "RAY_ADDRESS": cluster.address}
    command = [sys.executable, filler]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert any(line == "full\n" for line in holder.stdout), "Ray may print of the nodes that died before"
        assert list(spilled.glob("ray_spilled_objects*/*")), "more than the stores hold"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", cluster.address)
            flags = ["--name", "small", "--source", "tiles/manifest.csv", "--store", "store"]
            done = historay("ingest", *flags, home=own_home, cwd=tmp_path)
        holder.communicate("")
    assert done.returncode == 0, done.stderr
    record = open_dataset(LocalStore(str(tmp_path / "store")), "small").record
    num_images = len((tmp_path / "tiles" / "manifest.csv").read_text().splitlines()) - 1
    assert sum(record.num_tiles.values()) + record.num_quarantined == num_images
