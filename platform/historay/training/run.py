"""What a training run leaves under ``runs/<run>/``: run.json, metrics.jsonl, best.json and whole checkpoints."""

import hashlib
import json
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load as load_tensors
from torch import nn

from historay.data.transforms import Preprocessing
from historay.errors import BundleError, NotFound, TrainingError
from historay.evaluation.predictions import Predictions
from historay.models.bundle import bundle_prefix, read_spec
from historay.models.zoo import build_model
from historay.storage import Store

Logger = Literal["none", "tensorboard", "mlflow"]
WEIGHTS = "model.safetensors"


class RunRecord(BaseModel):
    """The content of run.json: what is trained, on what, and how far it came."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    attempt: str  # of the driver that may write; a later driver's replaces it, and the earlier one then stops
    status: Literal["running", "finished"]
    config: dict[str, Any]
    dataset: str  # name@version
    dataset_digest: str
    accepted_leaks: tuple[str, ...]
    classes: tuple[str, ...]
    architecture: str
    dropout: float
    preprocessing: Preprocessing
    mpp: float | None
    seed: int
    world_size: int
    steps_per_epoch: int
    num_steps: int | None  # None until it is finished
    created: str  # ISO 8601, UTC
    versions: dict[str, str]
    logger: Logger = "none"  # who hears of its epochs, and with mlflow of its bundle


class Best(BaseModel):
    """The content of best.json: the epoch whose weights count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    monitor: str
    value: float


def run_key(run: str, name: str) -> str:
    """Returns the key of a run's file."""
    return f"runs/{run}/{name}"


def checkpoint_prefix(run: str, epoch: int) -> str:
    """Returns the folder of an epoch's checkpoint; epochs count from 1."""
    return run_key(run, f"checkpoints/epoch-{epoch:04d}")


def read_run(store: Store, run: str) -> RunRecord:
    """Reads run.json; NotFound names the runs that there are."""
    try:
        return RunRecord.model_validate_json(store.read(run_key(run, "run.json")))
    except NotFound:
        there = sorted(item.key.split("/")[1] for item in store.list("runs") if item.key.endswith("/run.json"))
        raise NotFound(f"{store.uri}: no run {run!r}; there is {', '.join(there) or 'none'}") from None


def read_metrics(store: Store, run: str) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, one per epoch."""
    try:
        text = store.read(run_key(run, "metrics.jsonl")).decode()
    except NotFound:
        return []
    return [json.loads(line) for line in text.splitlines()]


def complete_epochs(store: Store, run: str) -> list[int]:
    """Returns the epochs whose checkpoint is whole, in order: state.json is written last."""
    keys = (item.key.split("/") for item in store.list(run_key(run, "checkpoints")))
    return sorted(int(key[-2].removeprefix("epoch-")) for key in keys if key[-1] == "state.json")


def write_predictions(store: Store, run: str, split: str, predictions: Predictions) -> str:
    """Keeps predictions under their own digest, so that judging the run again replaces none; returns the SHA-256."""
    data = predictions.to_parquet()
    digest = hashlib.sha256(data).hexdigest()
    store.write(_predictions_key(run, split, digest), data)
    return digest


def read_test_predictions(store: Store, name: str, version: str) -> Predictions:
    """Reads what this very model said of the test tiles; NotFound where that is no longer kept."""
    spec, reference = read_spec(store, name, version), f"{name}@{version}"
    digest = spec.predictions.get("test")
    if digest is None:
        return _latest_predictions(store, spec.run, reference, bundle_prefix(name, version))
    key = _predictions_key(spec.run, "test", digest)
    try:
        data = store.read(key)
    except NotFound:
        raise NotFound(f"{store.locate(key)}: the test predictions of {reference} are gone; restore them from a copy") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise BundleError(f"{store.locate(key)}: was changed after it was written; restore it from a copy")
    return Predictions.from_parquet(data)


def _predictions_key(run: str, split: str, digest: str) -> str:
    return run_key(run, f"predictions-{split}-{digest[:16]}.parquet")


def _latest_predictions(store: Store, run: str, reference: str, bundle: str) -> Predictions:
    """Reads those that a run kept before they had digests: of its latest evaluation, which the reports tell."""
    try:
        predictions = Predictions.from_parquet(store.read(run_key(run, "predictions-test.parquet")))
        if store.read(run_key(run, "report.json")) == store.read(f"{bundle}/report.json"):
            return predictions
    except NotFound:
        raise NotFound(f"{store.uri}: run {run} keeps no test predictions; historay evaluate makes them") from None
    raise NotFound(f"{store.uri}: run {run} of {reference} was judged again since; historay evaluate makes a model to compare")


def load_run(store: Store, run: str, which: Literal["best", "last"] = "best") -> tuple[RunRecord, nn.Module]:
    """Loads a run's network in evaluation mode: the averaged weights, where the run kept an average."""
    record = read_run(store, run)
    epochs = complete_epochs(store, run)
    if not epochs:
        raise TrainingError(f"{store.uri}: run {run} has no checkpoint yet; historay train goes on with it")
    epoch = epochs[-1]
    if which == "best":
        epoch = Best.model_validate_json(store.read(run_key(run, "best.json"))).epoch
    tensors = load_tensors(store.read(f"{checkpoint_prefix(run, epoch)}/{WEIGHTS}"))
    model = build_model(record.architecture, len(record.classes), record.preprocessing.input_px, record.dropout)
    model.load_state_dict(tensors)
    return record, model.eval().requires_grad_(requires_grad=False).to(torch.float32)
