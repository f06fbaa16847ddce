"""Puts two evaluated models side by side: their reports' figures, and paired tests on the tiles that both were judged on."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from pydantic import Field, ValidationError

from historay.config import Config
from historay.errors import DataError, NotFound
from historay.evaluation.comparison import Comparison, Judged, compare
from historay.evaluation.page import render_comparison
from historay.evaluation.report import Report
from historay.log import log_event
from historay.models.bundle import BundleSpec, bundle_prefix, read_spec
from historay.models.registry import resolve
from historay.storage import Store, open_store
from historay.training.run import read_test_predictions


class CompareConfig(Config):
    """Compares two evaluated models on the same test tiles, with paired tests."""

    models: Annotated[tuple[str, str], tyro.conf.Positional]
    """Both models: ``name``, ``name@alias`` or ``name@version``; the differences are the first's less the second's."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    num_resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples behind each interval."""
    seed: int = 0
    """Decides the resamples."""


@dataclass(frozen=True)
class CompareResult:
    """What a comparison made."""

    comparison: Comparison
    page: str  # address of comparison.html


def compare_models(config: CompareConfig) -> CompareResult:
    """Compares two models and writes comparison.json and comparison.html; DataError if their test tiles differ."""
    store = open_store(config.store)
    references = [resolve(store, reference) for reference in config.models]
    specs = [read_spec(store, name, version) for name, version in references]
    if specs[0].dataset_digest != specs[1].dataset_digest:
        raise DataError(
            f"{config.models[0]} was judged on {specs[0].dataset}, {config.models[1]} on {specs[1].dataset}; "
            "evaluate both on the same data set version"
        )
    names = [f"{name}@{version}" for name, version in references]
    first, second = (
        Judged(read_test_predictions(store, *reference), spec.operating_point)
        for reference, spec in zip(references, specs, strict=True)
    )
    found = compare(first, second, config.num_resamples, config.seed)
    prefix = f"comparisons/{names[0]}-and-{names[1]}"
    store.write(f"{prefix}/comparison.json", found.model_dump_json(indent=2).encode())
    page = render_comparison(names, [_shown(spec) for spec in specs], found, [_report(store, *one) for one in references])
    store.write(f"{prefix}/comparison.html", page.encode())
    difference = found.figures["roc_auc"]
    log_event("compare done", roc_auc_difference=difference.difference.value, p_value=difference.p_value)
    return CompareResult(found, store.locate(f"{prefix}/comparison.html"))


def _report(store: Store, name: str, version: str) -> Report | None:
    """Reads a bundle's report; None where it has none, or one of another format: the predictions are compared all the same."""
    try:
        return Report.model_validate_json(store.read(f"{bundle_prefix(name, version)}/report.json"))
    except (NotFound, ValidationError):
        return None


def _shown(spec: BundleSpec) -> dict[str, Any]:
    """What tells one model from another, for the page."""
    point = spec.operating_point
    return {
        "architecture": spec.architecture,
        "run": spec.run,
        "seed": spec.seed,
        "data set": spec.dataset,
        "calibration": spec.calibration.in_words(),
        "threshold": f"{point.positive_class} from {point.threshold:.4f} on" if point else "the most probable class",
        "accepted leaks": ", ".join(spec.accepted_leaks) or "none",
        "made": spec.created,
    }
