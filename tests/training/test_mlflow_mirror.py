"""A real MLflow server gets params, metrics, artefacts and a model version; a dead one, or none, changes nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import PROBES, SPEC, network
from mlflow_server import running_server
from records import RECORD

from historay.models.bundle import save_bundle
from historay.storage import LocalStore
from historay.training.mlflow_mirror import Mirror, end_runs, mirror_model

# MLflow's client of its own libraries.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(server)
    mlflow.set_registry_uri(server)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def epoch(number: int) -> dict[str, float]:
    return {"epoch": number, "step": 3 * number, "val_auc": number / 10}


def runs_of(client: Any, name: str) -> list[Any]:
    experiment = client.get_experiment_by_name("historay")
    return [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]


def test_a_run_that_is_resumed_stays_one_run_with_its_params_and_every_epoch(client: Any) -> None:
    for number, status in ((1, "FAILED"), (2, "FINISHED")):
        mirror = Mirror(RECORD)
        mirror.write(epoch(number))
        assert runs_of(client, "r")[0].info.status == "RUNNING"
        mirror.close(status)  # type: ignore[arg-type]
        assert runs_of(client, "r")[0].info.status == status
    (run,) = runs_of(client, "r")
    assert run.data.params == {"lr": "0.001", "model": "small_cnn", "epochs": "2"}
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "val_auc")] == [0.1, 0.2]


def test_a_run_whose_process_was_killed_is_ended_afterwards_and_one_that_ended_by_itself_stays_as_it_is(client: Any) -> None:
    killed, ended, unknown = (RECORD.model_copy(update={"run": name}) for name in ("killed", "ended", "unknown"))
    Mirror(killed).write(epoch(1))
    mirror = Mirror(ended)
    mirror.write(epoch(1))
    mirror.close("FAILED")
    end_runs([killed, ended, unknown])
    assert [run.info.status for name in ("killed", "ended") for run in runs_of(client, name)] == ["KILLED", "FAILED"]
    assert runs_of(client, "unknown") == []


def test_a_bundle_becomes_artefacts_and_a_registered_version_that_names_ours(
    client: Any, store: LocalStore, tmp_path: Path
) -> None:
    version = save_bundle(store, SPEC, network(), {}, PROBES)
    record = RECORD.model_copy(update={"run": "bundled"})
    number = mirror_model(store, record, f"{SPEC.name}@{version}")
    assert number == "1"
    registered = client.get_model_version(SPEC.name, number)
    assert registered.tags["historay.version"] == version
    (run,) = runs_of(client, "bundled")
    assert registered.run_id == run.info.run_id
    folder = client.download_artifacts(run.info.run_id, "bundle", str(tmp_path))
    for item in store.list(f"models/{SPEC.name}/{version}"):
        name = Path(item.key).name
        if name != "bundle.json":
            assert Path(folder, name).read_bytes() == store.read(item.key)


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:9", "file:///nowhere", "foo://x"],
    ids=["nobody listens on the port of discard", "files are refused", "a scheme that is not known"],
)
def test_a_dead_server_or_a_wrong_address_is_reported_and_changes_nothing(
    uri: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(uri)
    version = save_bundle(store, SPEC, network(), {}, PROBES)
    with caplog.at_level("INFO", logger="historay"):
        mirror = Mirror(RECORD)
        mirror.write(epoch(1))
        mirror.write(epoch(2))
        mirror.close("FINISHED")
        assert mirror_model(store, RECORD, f"{SPEC.name}@{version}") is None
    mlflow.set_tracking_uri(None)
    told = [record.message for record in caplog.records if "mlflow failed" in record.message]
    assert len(told) == 2, "one line for the run, one for the model"


def test_without_mlflow_a_run_goes_on_and_the_way_to_install_it_is_said(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with caplog.at_level("INFO", logger="historay"):
        Mirror(RECORD).write(epoch(1))
        assert mirror_model(store, RECORD, "m@0") is None
    assert "pip install historay[mlflow]" in caplog.text
