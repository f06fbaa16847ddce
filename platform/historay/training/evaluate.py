"""Evaluation: a run's best weights, fitted to validation and judged once on test; out come the report and the bundle."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from json import loads

import numpy as np
import torch
from pydantic import Field
from torch import nn

from historay.config import Name
from historay.cpus import available_cpus
from historay.data.dataset import Dataset, open_dataset
from historay.data.loading import load_tiles
from historay.evaluation.assessment import Assessment, Policy, assess, positive_index
from historay.evaluation.flow import Flow, flow_of
from historay.evaluation.intervals import Estimate
from historay.evaluation.judgement import chosen_classes
from historay.evaluation.page import render_report
from historay.evaluation.pdf import print_pdf
from historay.evaluation.predictions import Predictions
from historay.evaluation.report import Finding, Provenance, Report, make_report
from historay.evaluation.robustness import Robustness, judge_robustness
from historay.log import log_event
from historay.models.averaging import Averaging, averaged
from historay.models.bundle import BundleSpec, Probes, make_probes, save_bundle, weights_digest
from historay.models.registry import CANDIDATE, set_alias
from historay.storage import open_store
from historay.training.mlflow_mirror import mirror_model
from historay.training.passes import fit_shortcuts, gather, read_origins, spoil
from historay.training.pictures import take_pictures
from historay.training.references import References, fit_references
from historay.training.run import RunRecord, load_run, read_metrics, run_key, write_predictions
from historay.training.unseen import joined, judged_on, open_unseen

_NUM_PROBES = 12  # tiles that travel in the bundle
_SETTINGS = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "schedule",
    "label_smoothing",
    "dropout",
    "ema_decay",
    "augment",
    "stain_normalisation",
    "class_weights",
    "monitor",
    "seed",
)


class EvaluateConfig(Policy):
    """Judges a run once on its untouched test split; writes the report and the bundle."""

    run: Name
    """The run to judge."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    name: Name | None = None
    """What the model is called in the registry; the run's name if not given."""
    dataset: str | None = None
    """Data set version that judges the run with its val and test, such as a newer one; the run's own if not given. It is
    refused where the run has seen any of that."""
    robustness_tiles: int = Field(default=500, ge=0)
    """Test tiles that are spoilt in 25 ways, each a pass of the network; 0 leaves robustness out."""
    averaging: Averaging = "none"
    """d4: the mean of the logits over a tile's turns and mirror images, here and in the bundle; 8 times the cost."""
    notes: tuple[str, ...] = ()
    """Said in the report as they stand, such as how many candidates were compared."""


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation made."""

    reference: str  # name@version of the bundle
    report: str  # address of report.html
    headline: dict[str, Estimate]
    findings: tuple[Finding, ...]


def evaluate_run(config: EvaluateConfig) -> EvaluationResult:
    """Judges a run, writes predictions and report beside it, saves the bundle and points the alias ``candidate`` at it."""
    torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))  # torch knows nothing of a pod's limit
    store = open_store(config.store)
    record, network = load_run(store, config.run, "best")
    model = averaged(network, config.averaging)
    trained = dataset = open_dataset(store, record.dataset)
    dataset.refuse_leaks(record.accepted_leaks)
    positive_index(record.classes, config.positive_class)
    origins = read_origins(trained)
    if config.dataset is not None:
        dataset = open_unseen(trained, record, config.dataset)
        record, origins = judged_on(record, dataset), joined(origins, read_origins(dataset))
        note = f"Trained on {trained.reference}, judged on {dataset.reference}, of which the run has seen neither val nor test"
        config = config.model_copy(update={"notes": (*config.notes, note)})

    baselines = fit_shortcuts(trained, record, origins)
    seen = gather(model, record, dataset, "val", origins, {})
    validation = seen.predictions
    assessment = assess(validation, gather(model, record, dataset, "test", origins, baselines), config)
    robustness = _robustness(model, record, dataset, assessment, config) if config.robustness_tiles else None

    report = make_report(
        assessment, _provenance(config, record, model, dataset), _flow(dataset), _confounds(dataset), robustness
    )
    pictures = take_pictures(model, record, dataset, assessment, assessment.slices.slices)
    page = render_report(report, assessment.test, read_metrics(store, config.run), pictures).encode()
    documents = {"report.json": report.model_dump_json(indent=2).encode(), "report.html": page}
    if (printed := print_pdf(page)) is not None:
        documents["report.pdf"] = printed
    calibrated = validation.with_probabilities(assessment.calibration.choice.calibration.apply(validation.probabilities))
    kept = {
        split: write_predictions(store, config.run, split, predictions)
        for split, predictions in {"val": calibrated, "test": assessment.test}.items()
    }
    for name, data in documents.items():
        store.write(run_key(config.run, name), data)
    references = fit_references(dataset, calibrated, seen.features_NF, record.preprocessing.input_px, config.seed)
    spec = _spec(config, record, assessment, references, kept)
    probes = _probes(model, record, dataset, calibrated)
    bundle = save_bundle(store, spec, model, documents, probes, references.space)
    set_alias(store, spec.name, CANDIDATE, bundle, f"evaluated run {config.run}")
    _log(f"{spec.name}@{bundle}", report)
    if record.logger == "mlflow":
        mirror_model(store, record, f"{spec.name}@{bundle}")
    return EvaluationResult(
        f"{spec.name}@{bundle}", store.locate(run_key(config.run, "report.html")), report.headline, report.findings
    )


def _robustness(
    model: nn.Module, record: RunRecord, dataset: Dataset, assessment: Assessment, config: EvaluateConfig
) -> Robustness:
    """Spoils a seeded choice of test tiles; calibration is applied as to any other tile."""
    test, calibration = assessment.test, assessment.calibration.choice.calibration
    rows = np.random.default_rng(config.seed).permutation(len(test.labels))[: config.robustness_tiles]
    tiles = load_tiles(dataset, "test", test.tile_ids[rows].tolist(), record.preprocessing.input_px)
    spoilt = spoil(model, record, np.stack([tiles[tile] for tile in test.tile_ids[rows].tolist()]), config.seed)
    calibrated = {
        name: {severity: calibration.apply(found) for severity, found in of_name.items()} for name, of_name in spoilt.items()
    }
    chosen = chosen_classes(record.classes, assessment.chosen.point)
    return judge_robustness(test.at(rows), calibrated, chosen, num_resamples=config.num_resamples, seed=config.seed)


def _probes(model: nn.Module, record: RunRecord, dataset: Dataset, validation: Predictions) -> Probes:
    """Takes validation tiles from the least to the most certain of the last class, so that no range is left unproved."""
    order = np.argsort(validation.probabilities[:, -1], kind="stable")
    rows = order[np.linspace(0, len(order) - 1, min(_NUM_PROBES, len(order))).round().astype(int)]
    tile_ids = validation.tile_ids[rows].tolist()
    tiles = load_tiles(dataset, "val", tile_ids, record.preprocessing.input_px)
    return make_probes(model, np.stack([tiles[tile] for tile in tile_ids]), record.preprocessing)


def _flow(dataset: Dataset) -> Flow:
    return flow_of(loads(dataset.store.read(f"{dataset.prefix}/card.json")))


def _confounds(dataset: Dataset) -> tuple[str, ...]:
    return tuple(confound.message for confound in dataset.record.confounds)


def _provenance(config: EvaluateConfig, record: RunRecord, model: nn.Module, dataset: Dataset) -> Provenance:
    history = read_metrics(dataset.store, config.run)
    return Provenance(
        model=config.name or config.run,
        run=config.run,
        architecture=record.architecture,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_sha256=weights_digest(model),
        dataset=record.dataset,
        dataset_digest=record.dataset_digest,
        accepted_leaks=record.accepted_leaks,
        leaks=tuple(f"{leak.kind}: {leak.num_pairs} pairs across {' and '.join(leak.splits)}" for leak in dataset.record.leaks),
        seed=record.seed,
        num_epochs=len(history),
        num_steps=record.num_steps,
        num_workers=record.world_size,
        training_seconds=sum(line["epoch_seconds"] for line in history),
        settings={name: str(record.config[name]) for name in _SETTINGS if record.config.get(name) is not None}
        | {"averaging": config.averaging},
        input_px=record.preprocessing.input_px,
        mpp=record.mpp,
        machine=f"{platform.machine()}, {platform.system()}",
        versions={**record.versions, "historay": version("historay")},
        notes=config.notes,
    )


def _spec(
    config: EvaluateConfig, record: RunRecord, assessment: Assessment, references: References, predictions: dict[str, str]
) -> BundleSpec:
    return BundleSpec(
        name=config.name or config.run,
        architecture=record.architecture,
        dropout=record.dropout,
        classes=record.classes,
        preprocessing=record.preprocessing,
        mpp=record.mpp,
        averaging=config.averaging,
        calibration=assessment.calibration.choice.calibration,
        operating_point=assessment.chosen.point,
        conformal=assessment.chosen.conformal,
        input_gate=references.gate,
        drift_reference=references.drift,
        dataset=record.dataset,
        dataset_digest=record.dataset_digest,
        accepted_leaks=record.accepted_leaks,
        run=config.run,
        predictions=predictions,
        seed=record.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        historay=version("historay"),
    )


def _log(reference: str, report: Report) -> None:
    best = report.shortcuts.verdict.best
    log_event(
        "evaluate done",
        model=reference,
        tile_roc_auc=report.headline["roc_auc"].value,
        tile_accuracy=report.headline["accuracy"].value,
        best_shortcut=best,
        gain=report.shortcuts.gains[best].value if best else None,
        findings=len(report.findings),
    )
