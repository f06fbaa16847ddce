"""A training run ends where it was meant to end, whatever is killed on the way, and what it made can be judged and served."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from processes import COMMAND, actors_seen, environment, historay, kill_all, processes_of, wait_for_an_empty_cluster, wait_until
from runs import assert_complete

from historay.data.dataset import Dataset
from historay.errors import ConfigError, TrainingError
from historay.storage import Store
from historay.training.run import complete_epochs, load_run, read_metrics, read_run
from historay.training.settings import TrainConfig
from historay.training.train import train

# Ray's own deprecation warnings are not ours to mend.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="session")
def unbroken(dataset: Dataset) -> TrainConfig:
    config = TrainConfig(
        run="unbroken", dataset=dataset.reference, store=dataset.store.uri, epochs=12, batch_size=64, lr=2e-3, ema_decay=0.9
    )
    train(config)
    return config


def test_two_workers_train_a_model_that_learns(dataset: Dataset, unbroken: TrainConfig) -> None:
    assert_complete(dataset, unbroken)
    lines = read_metrics(dataset.store, "unbroken")
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert set(complete_epochs(dataset.store, "unbroken")) <= {line["epoch"] for line in lines}
    assert len(complete_epochs(dataset.store, "unbroken")) <= 2, "the last and the best"


def test_nothing_of_a_run_outlives_it_though_its_driver_does(unbroken: TrainConfig) -> None:
    wait_for_an_empty_cluster()


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(dataset: Dataset, unbroken: TrainConfig) -> None:
    assert train(unbroken) == "unbroken"
    with pytest.raises(ConfigError, match=r"run unbroken exists with other settings: lr was 0\.002, now 0\.1"):
        train(unbroken.model_copy(update={"lr": 0.1}))


def test_a_worker_killed_in_mid_epoch_is_replaced_and_the_run_ends_as_an_unbroken_one(
    dataset: Dataset, unbroken: TrainConfig, own_home: Path
) -> None:
    config = unbroken.model_copy(update={"run": "worker-killed"})
    runner = threading.Thread(target=train, args=(config,))
    runner.start()
    wait_until(lambda: len(read_metrics(dataset.store, config.run)) >= 2, 600, "the second epoch")
    workers = processes_of(own_home, "RayTrainWorker")
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    runner.join(timeout=600)
    assert_complete(dataset, config)
    broken, whole = (load_run(dataset.store, name, "last")[1].state_dict() for name in ("worker-killed", "unbroken"))
    assert all(torch.equal(broken[name], whole[name]) for name in whole), "a resumed epoch draws what it would have drawn"


def test_a_gradient_that_is_not_finite_ends_the_run_at_once_and_the_last_good_checkpoint_stays(
    dataset: Dataset, unbroken: TrainConfig
) -> None:
    config = unbroken.model_copy(update={"run": "exploding", "epochs": unbroken.epochs + 1})
    copy_unfinished(dataset.store, "unbroken", config)
    key = "runs/exploding/checkpoints/epoch-0012/state.json"
    state = json.loads(dataset.store.read(key))
    state["groups"][0]["lr"] = 1e30
    dataset.store.write(key, json.dumps(state).encode())
    before = num_workers_started()
    with pytest.raises(TrainingError, match=r"in epoch 13 after \d+ steps .* the last good checkpoint is kept"):
        train(config)
    assert num_workers_started() == before + 2, "not tried again"
    assert complete_epochs(dataset.store, "exploding")[-1] == 12
    weights = load_run(dataset.store, "exploding", "last")[1].state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_a_driver_whose_run_is_taken_over_ends_at_once_and_says_so(dataset: Dataset, unbroken: TrainConfig) -> None:
    config = unbroken.model_copy(update={"run": "taken-over", "epochs": 60})
    errors: list[TrainingError] = []

    def driver() -> None:
        try:
            train(config)
        except TrainingError as error:
            errors.append(error)

    before, runner = num_workers_started(), threading.Thread(target=driver)
    runner.start()
    wait_until(lambda: bool(read_metrics(dataset.store, config.run)), 600, "the first epoch")
    record = read_run(dataset.store, config.run)
    dataset.store.write("runs/taken-over/run.json", record.model_copy(update={"attempt": "another"}).model_dump_json().encode())
    runner.join(timeout=600)
    assert "another driver has taken over run taken-over" in str(errors[0])
    assert num_workers_started() == before + 2, "not tried again"


def copy_unfinished(store: Store, run: str, config: TrainConfig) -> None:
    """Makes a run of longer settings that stands where a finished one ended."""
    for item in list(store.list(f"runs/{run}")):
        store.write(item.key.replace(f"runs/{run}/", f"runs/{config.run}/", 1), store.read(item.key))
    record = read_run(store, config.run)
    longer = {**record.config, "run": config.run, "epochs": config.epochs}
    unfinished = record.model_copy(update={"run": config.run, "status": "running", "num_steps": None, "config": longer})
    store.write(f"runs/{config.run}/run.json", unfinished.model_dump_json().encode())


def num_workers_started() -> int:
    """How many training workers this cluster has seen, alive and dead."""
    return sum(name.endswith("RayTrainWorker") for name in actors_seen())


def test_a_share_too_large_for_memory_is_streamed_and_ends_with_the_same_steps(dataset: Dataset, unbroken: TrainConfig) -> None:
    config = unbroken.model_copy(update={"run": "streamed", "epochs": 4, "cache_gib": 0.0})
    train(config)
    assert_complete(dataset, config)
    lines = read_metrics(dataset.store, "streamed")
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_a_killed_driver_is_followed_by_another_that_ends_the_run(
    dataset: Dataset, unbroken: TrainConfig, tmp_path: Path
) -> None:
    config = unbroken.model_copy(update={"run": "driver-killed"})
    flags = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in ("run", "dataset", "store", "epochs", "lr")]
    command = ["train", *flags, "--batch-size=64", "--ema-decay=0.9"]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen([COMMAND, *command], env=environment(tmp_path), stderr=log)
        wait_until(lambda: len(read_metrics(dataset.store, config.run)) >= 2, 600, "the second epoch")
        driver.kill()
        driver.wait()
        kill_all(tmp_path)
    assert read_run(dataset.store, config.run).status == "running"
    assert historay(*command, home=tmp_path, cwd=tmp_path).returncode == 0
    assert_complete(dataset, config)
