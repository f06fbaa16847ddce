"""What the workers report is shown, and mirrored to TensorBoard or MLflow when asked; a dead mirror never ends a run."""

import queue
import threading
from pathlib import Path

import pytest
from records import RECORD
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from historay.storage import LocalStore
from historay.training.metrics_log import Event, follow
from historay.training.settings import TrainConfig


def metrics_of(epoch: int) -> Event:
    names = ("train_loss", "val_loss", "val_auc", "val_accuracy", "lr", "tiles_per_s", "epoch_seconds")
    return {"epoch": epoch, "step": 3 * epoch, **dict.fromkeys(names, epoch / 10)}


def follow_two_epochs(store: LocalStore, logger: str) -> None:
    events: queue.Queue[Event] = queue.Queue()
    for epoch in (1, 2):
        for step in (1, 2, 3):
            events.put({"epoch": epoch, "step": step, "of": 3})
        events.put({"metrics": metrics_of(epoch)})
    events.put({"finished": True})
    done = threading.Event()
    done.set()
    config = TrainConfig(run="r", dataset="d", epochs=2, logger=logger)  # type: ignore[arg-type]
    follow(events, done, config, RECORD, store)


def test_tensorboard_finds_each_epochs_figures_in_the_store(store: LocalStore, tmp_path: Path) -> None:
    follow_two_epochs(store, "tensorboard")
    for item in store.list("runs/r/tensorboard"):
        (tmp_path / Path(item.key).name).write_bytes(store.read(item.key))
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(event.step, pytest.approx(event.value)) for event in read.Scalars("val_auc")] == [(1, 0.1), (2, 0.2)]


def test_a_store_that_refuses_tensorboard_s_files_is_reported_and_the_epochs_go_on(
    store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.write("runs/r/tensorboard", b"a file where the folder should be")
    with caplog.at_level("INFO", logger="historay"):
        follow_two_epochs(store, "tensorboard")
    told = [record.message for record in caplog.records]
    assert sum("tensorboard not written" in message for message in told) == 2
    assert sum("epoch n=" in message for message in told) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MLflow of its own file store
def test_mlflow_gets_the_settings_and_each_epochs_figures(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    follow_two_epochs(store, "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("historay")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("r", "FINISHED")
    assert found.data.params == {"lr": "0.001", "model": "small_cnn", "epochs": "2"}
    assert [metric.value for metric in client.get_metric_history(found.info.run_id, "val_auc")] == [0.1, 0.2]


def test_a_mirror_that_does_not_answer_is_reported_and_left_alone(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")  # nobody listens on the port of "discard"
    with caplog.at_level("INFO", logger="historay"):
        follow_two_epochs(store, "mlflow")
    told = [record.message for record in caplog.records if "mlflow failed" in record.message]
    assert len(told) == 1
    assert sum("epoch n=" in record.message for record in caplog.records) == 2, "the epochs go on"
