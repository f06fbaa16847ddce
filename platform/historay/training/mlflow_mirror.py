"""MLflow as a mirror: params and metrics of a run, and a bundle as artefacts and registered model version. Never needed.

The server is the one at MLFLOW_TRACKING_URI. What it refuses or does not answer is reported once and then left alone.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from historay.log import log_event
from historay.storage import Store
from historay.training.run import RunRecord

_EXPERIMENT = "historay"
# MLflow's own defaults, 7 retries of 120 s with growing pauses, would hold a run's log for a quarter of an hour.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def open_mirror(record: RunRecord) -> Callable[[dict[str, Any]], None]:
    """Returns what takes an epoch's figures to MLflow, under a run that it makes with the first of them."""
    client = _client()
    mirror: dict[str, str] = {}  # the MLflow run's id, once there is one

    def write(found: dict[str, Any]) -> None:
        if client is None or "off" in mirror:
            return
        try:
            if "run" not in mirror:
                mirror["run"] = _run_id(client, record)
            for name, value in numbers(found).items():
                client.log_metric(mirror["run"], name, value, step=found["epoch"])
            if found["epoch"] == record.config.get("epochs"):
                client.set_terminated(mirror["run"])
        except Exception as error:  # a mirror never ends a run, whatever its client raises
            log_event("WARNING mlflow failed, mirror off", error=type(error).__name__)
            mirror["off"] = "yes"

    return write


def mirror_model(store: Store, record: RunRecord, reference: str) -> str | None:
    """Copies a bundle, ``name@version``, to MLflow as artefacts of its run and as a model version; returns that version.

    None if MLflow is absent or dead, which is reported.
    """
    # Here, since every process of a training run imports this module and a bundle's imports take two seconds of CPU.
    from historay.models.bundle import read_spec, read_verified

    client = _client()
    if client is None:
        return None
    name, _, version = reference.partition("@")
    files, spec = read_verified(store, name, version), read_spec(store, name, version)
    try:
        run = _run_id(client, record)
        with tempfile.TemporaryDirectory(prefix="historay-mlflow-") as folder:
            for file, data in files.items():
                Path(folder, file).write_bytes(data)
            client.log_artifacts(run, folder, "bundle")
        if not client.search_registered_models(f"name='{name}'"):
            client.create_registered_model(name)
        source = f"{client.get_run(run).info.artifact_uri}/bundle"
        tags = {"historay.version": version, "historay.run": spec.run, "historay.dataset": spec.dataset}
        registered = client.create_model_version(name, source, run, tags=tags)
    except Exception as error:  # likewise
        log_event("WARNING mlflow failed, model not mirrored", model=reference, error=type(error).__name__)
        return None
    log_event("mlflow model", name=name, version=registered.version)
    return str(registered.version)


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """Returns an epoch's figures that are numbers, without its own."""
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float) and name != "epoch"}


def _client() -> Any | None:
    try:
        import mlflow
    except ModuleNotFoundError:
        log_event("WARNING mlflow is not installed", fix="pip install historay[mlflow]")
        return None
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    return mlflow.MlflowClient()


def _run_id(client: Any, record: RunRecord) -> str:
    """Finds the MLflow run of ours, or makes it with its params: a resumed run goes on in the same one."""
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT)
    tags = {"historay.run": record.run, "historay.created": record.created}
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    if there := client.search_runs([number], wanted, max_results=1):
        return str(there[0].info.run_id)
    run = client.create_run(number, run_name=record.run, tags=tags)
    for name, value in record.config.items():
        client.log_param(run.info.run_id, name, value)
    return str(run.info.run_id)
