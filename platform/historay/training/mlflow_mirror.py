"""MLflow as a mirror: params and metrics of a run, and a bundle as artefacts and registered model version. Never needed.

The server is the one at MLFLOW_TRACKING_URI. What it refuses or does not answer is reported once and then left alone.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from historay.log import log_event
from historay.storage import Store
from historay.training.run import RunRecord

Status = Literal["FINISHED", "FAILED"]
_EXPERIMENT = "historay"
# MLflow's own defaults, 7 retries of 120 s with growing pauses, would hold a run's log for a quarter of an hour.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class Mirror:
    """Takes a run's epochs to MLflow, under a run that it makes with the first of them."""

    def __init__(self, record: RunRecord) -> None:
        self.record, self.run = record, ""  # MLflow's id, once there is one
        self.client = _client()

    def write(self, found: dict[str, Any]) -> None:
        """Sends an epoch's figures."""

        def send(client: Any) -> None:
            if not self.run:
                self.run = _run_id(client, self.record)
                client.update_run(self.run, status="RUNNING")  # again, if it is resumed
            for name, value in numbers(found).items():
                client.log_metric(self.run, name, value, step=found["epoch"])

        self._try(send)

    def close(self, status: Status) -> None:
        """Says how the run ended, if it came so far as to have an epoch."""
        if self.run:
            self._try(lambda client: client.set_terminated(self.run, status))

    def _try(self, call: Callable[[Any], None]) -> None:
        if self.client is None:
            return
        try:
            call(self.client)
        except Exception as error:  # a mirror never ends a run, whatever its client raises
            log_event("WARNING mlflow failed, mirror off", error=type(error).__name__)
            self.client = None


def end_runs(records: Sequence[RunRecord]) -> None:
    """Ends those of our runs that MLflow still holds for running: their processes were killed before they could say so."""
    client = _client()
    if client is None:
        return
    try:
        for record in records:
            found = _find(client, _experiment(client), record)
            if found is not None and found.info.status == "RUNNING":
                client.set_terminated(found.info.run_id, "KILLED")
    except Exception as error:  # likewise
        log_event("WARNING mlflow failed, runs not ended", error=type(error).__name__)


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
    try:
        return mlflow.MlflowClient()
    except Exception as error:  # an address that its client refuses
        log_event("WARNING mlflow failed, mirror off", error=type(error).__name__, fix="look at MLFLOW_TRACKING_URI")
        return None


def _run_id(client: Any, record: RunRecord) -> str:
    """Finds the MLflow run of ours, or makes it with its params: a resumed run goes on in the same one."""
    experiment = _experiment(client)
    if (found := _find(client, experiment, record)) is not None:
        return str(found.info.run_id)
    run = client.create_run(experiment, run_name=record.run, tags=_tags(record))
    for name, value in record.config.items():
        client.log_param(run.info.run_id, name, value)
    return str(run.info.run_id)


def _experiment(client: Any) -> str:
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    return str(experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT))


def _find(client: Any, experiment: str, record: RunRecord) -> Any | None:
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in _tags(record).items())
    return next(iter(client.search_runs([experiment], wanted, max_results=1)), None)


def _tags(record: RunRecord) -> dict[str, str]:
    return {"historay.run": record.run, "historay.created": record.created}
