"""Evaluation: a run's best weights on validation, for the threshold, and once on test; out come the report and the bundle."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from historay.config import Config, Name
from historay.data.dataset import Dataset, open_dataset
from historay.data.loading import TileBatch, iter_tiles
from historay.errors import DataError
from historay.evaluation.intervals import Estimate
from historay.evaluation.judgement import Judgement, judge
from historay.evaluation.operating_point import OperatingPoint, ThresholdRule, choose_threshold
from historay.evaluation.predictions import Predictions
from historay.evaluation.report import IntervalMethod, Provenance, example, make_report, pick_errors, render_html
from historay.evaluation.shortcut import ColourModel, colour_histograms, gather_histograms
from historay.log import log_event, track
from historay.models.bundle import BundleSpec, save_bundle
from historay.models.inference import predict_logits, probabilities
from historay.models.registry import CANDIDATE, set_alias
from historay.storage import open_store
from historay.training.run import RunRecord, load_run, read_metrics, run_key

_COLOUR_TILES = 20_000  # more do not change a linear model on 48 numbers


class EvaluateConfig(Config):
    """Judges a run once on its untouched test split; writes the report and the bundle."""

    run: Name
    """The run to judge."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    name: Name | None = None
    """What the model is called in the registry; the run's name if not given."""
    positive_class: str | None = None
    """Of two classes, the one that is looked for; the second if not given."""
    threshold_rule: ThresholdRule = "youden"
    """How the threshold is chosen on validation: largest sensitivity + specificity, or a target sensitivity."""
    target_sensitivity: float = Field(default=0.95, gt=0, le=1)
    """For threshold_rule sensitivity."""
    num_resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples behind each interval."""
    batch_size: int = Field(default=256, ge=1)
    """Tiles per forward pass."""
    seed: int = 0
    """Decides the resamples."""


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation made."""

    reference: str  # name@version of the bundle
    report: str  # address of report.html
    headline: dict[str, Estimate]


def evaluate_run(config: EvaluateConfig) -> EvaluationResult:
    """Judges a run, writes predictions and report beside it, saves the bundle and points the alias ``candidate`` at it."""
    store = open_store(config.store)
    record, model = load_run(store, config.run, "best")
    dataset = open_dataset(store, record.dataset)
    dataset.refuse_leaks(record.accepted_leaks)
    patients = _patients(dataset)

    validation, _ = _predict(model, record, dataset, "val", patients, config.batch_size)
    point = _operating_point(validation, config)
    test, colours = _predict(model, record, dataset, "test", patients, config.batch_size)
    judgement = judge(test, point, _colour_baseline(record, dataset, colours), config.num_resamples, config.seed)

    for split, predictions in {"val": validation, "test": test}.items():
        store.write(run_key(config.run, f"predictions-{split}.parquet"), predictions.to_parquet())
    documents = _documents(config, record, dataset, test, judgement, point)
    for name, data in documents.items():
        store.write(run_key(config.run, name), data)
    spec = _spec(config, record, point)
    bundle = save_bundle(store, spec, model, documents)
    set_alias(store, spec.name, CANDIDATE, bundle, f"evaluated run {config.run}")
    shown = {name: figure.value for name, figure in judgement.headline.items() if name in {"roc_auc", "accuracy"}}
    log_event("evaluate done", model=f"{spec.name}@{bundle}", **shown, colour_only_auc=judgement.colour_only.value)
    report = store.locate(run_key(config.run, "report.html"))
    return EvaluationResult(f"{spec.name}@{bundle}", report, judgement.headline)


def _patients(dataset: Dataset) -> dict[str, str | None]:
    columns = dataset.manifest(["tile_id", "patient"]).to_pydict()
    return dict(zip(columns["tile_id"], columns["patient"], strict=True))


def _predict(
    model: nn.Module, record: RunRecord, dataset: Dataset, split: str, patients: dict[str, str | None], batch_size: int
) -> tuple[Predictions, NDArray[np.float64]]:
    """Returns a split's predictions, sorted by tile_id, and the colour histograms of the same tiles."""
    batches = iter_tiles(dataset, split, record.preprocessing.input_px, batch_size)
    num_batches = -(-dataset.record.num_tiles[split] // batch_size)
    tile_ids, labels, found, colours = [], [], [], []
    for batch in track(batches, f"evaluate: batches of {split}", total=num_batches):
        tile_ids += batch.tile_ids
        labels.append(batch.labels)
        found.append(probabilities(predict_logits(model, batch.tiles_BHWC, record.preprocessing)))
        colours.append(colour_histograms(batch.tiles_BHWC))
    order = np.argsort(tile_ids)
    known = [patients[tile_ids[row]] for row in order]
    predictions = Predictions(
        tile_ids=np.array(tile_ids)[order],
        labels=np.concatenate(labels)[order],
        probabilities=np.concatenate(found)[order],
        patients=None if None in known else np.array(known),
        classes=record.classes,
    )
    return predictions, np.concatenate(colours)[order]


def _operating_point(validation: Predictions, config: EvaluateConfig) -> OperatingPoint | None:
    classes = validation.classes
    if len(classes) != 2:
        return None
    positive = config.positive_class or classes[1]
    if positive not in classes:
        raise DataError(f"positive_class={positive!r} is no class of this run; it has {' and '.join(classes)}")
    index = classes.index(positive)
    threshold = choose_threshold(
        validation.labels == index, validation.probabilities[:, index], config.threshold_rule, config.target_sensitivity
    )
    rules = {
        "youden": "largest sensitivity + specificity on validation",
        "sensitivity": f"sensitivity of at least {config.target_sensitivity:.0%} on validation",
    }
    return OperatingPoint(positive_class=positive, threshold=threshold, rule=rules[config.threshold_rule])


def _colour_baseline(record: RunRecord, dataset: Dataset, colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Trains the colour-only model on training tiles and returns its probabilities of the test tiles."""
    batches = iter_tiles(dataset, "train", record.preprocessing.input_px, batch_size=512)
    features, labels = gather_histograms(batches, _COLOUR_TILES)
    return ColourModel(features, labels, len(record.classes)).probabilities(colours)


def _documents(
    config: EvaluateConfig,
    record: RunRecord,
    dataset: Dataset,
    test: Predictions,
    judgement: Judgement,
    point: OperatingPoint | None,
) -> dict[str, bytes]:
    provenance = Provenance(
        model=config.name or config.run,
        run=config.run,
        architecture=record.architecture,
        dataset=record.dataset,
        dataset_digest=record.dataset_digest,
        accepted_leaks=record.accepted_leaks,
        seed=record.seed,
        historay=version("historay"),
    )
    method = IntervalMethod(
        unit=judgement.unit, num_units=judgement.num_units, num_resamples=config.num_resamples, seed=config.seed
    )
    notes = tuple(f"CONFOUNDED: {confound.message}" for confound in dataset.record.confounds)
    report = make_report(provenance, test, judgement, point, method, notes)
    page = render_html(report, test, read_metrics(dataset.store, config.run), _examples(record, dataset, test, judgement))
    return {"report.json": report.model_dump_json(indent=2).encode(), "report.html": page.encode()}


def _examples(record: RunRecord, dataset: Dataset, test: Predictions, judgement: Judgement) -> list[dict[str, Any]]:
    """Reads the tiles that the report shows as errors."""
    rows = pick_errors(test, judgement.predicted)
    wanted = {str(test.tile_ids[row]): int(row) for row in rows}
    pixels: dict[int, NDArray[np.uint8]] = {}
    for tile_id, tile in _each(iter_tiles(dataset, "test", record.preprocessing.input_px, batch_size=256)):
        if tile_id in wanted:
            pixels[wanted[tile_id]] = tile
    return [example(pixels[int(row)], test, judgement.predicted, int(row)) for row in rows]


def _each(batches: Iterator[TileBatch]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for batch in batches:
        yield from zip(batch.tile_ids, batch.tiles_BHWC, strict=True)


def _spec(config: EvaluateConfig, record: RunRecord, point: OperatingPoint | None) -> BundleSpec:
    return BundleSpec(
        name=config.name or config.run,
        architecture=record.architecture,
        dropout=record.dropout,
        classes=record.classes,
        preprocessing=record.preprocessing,
        mpp=record.mpp,
        operating_point=point,
        dataset=record.dataset,
        dataset_digest=record.dataset_digest,
        accepted_leaks=record.accepted_leaks,
        run=config.run,
        seed=record.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        historay=version("historay"),
    )
