"""Promotion: a model's report and its comparison with production held against the gate, and the alias moved if all holds."""

from typing import NamedTuple

from historay.errors import BundleError, ConfigError
from historay.evaluation.intervals import Estimate
from historay.evaluation.report import Report
from historay.models.bundle import read_spec, read_verified
from historay.models.gate import Check, GateFacts, GatePolicy, Incumbent, Interval, Subgroup, evaluate_gate, refusals
from historay.models.registry import PRODUCTION, Gate, production_of, resolve, set_alias, write_promotions
from historay.storage import Store
from historay.training.compare import CompareConfig, compare_models

_MIN_WORDS = 3  # of a reason to override the gate


class Promotion(NamedTuple):
    """What the gate said, and whether the alias moved."""

    reference: str  # name@version
    checks: list[Check]
    promoted: bool


def promote(store: Store, reference: str, policy: GatePolicy, reason: str, force: str | None = None) -> Promotion:
    """Points production at a model that passes every check; with ``force``, a written reason, at one that does not.

    Every byte of the bundle is checked first. Who, when, why, and what was overridden stay in the alias's history and in
    PROMOTIONS.md beside the model card. Raises BundleError if the model was never evaluated.
    """
    if force is not None and len(force.split()) < _MIN_WORDS:
        raise ConfigError(f"--force {force!r}: say in at least {_MIN_WORDS} words why; it stays beside the model card")
    name, version = resolve(store, reference)
    checks = evaluate_gate(policy, gather_facts(store, name, version, policy))
    refused = refusals(checks)
    if refused and force is None:
        return Promotion(f"{name}@{version}", checks, promoted=False)
    set_alias(store, name, PRODUCTION, version, reason, Gate(overridden=tuple(refused), why=force if refused else None))
    write_promotions(store, name, version)
    return Promotion(f"{name}@{version}", checks, promoted=True)


def gather_facts(store: Store, name: str, version: str, policy: GatePolicy) -> GateFacts:
    """Reads what the gate looks at, from the report within the verified bundle and a paired comparison with production."""
    files = read_verified(store, name, version)
    if "report.json" not in files:
        raise BundleError(f"{name}@{version} has no report.json; historay evaluate judges it")
    report = Report.model_validate_json(files["report.json"])
    incumbent = production_of(store, name)
    return facts_of(
        report, policy.metric, version, None if incumbent is None else _compared(store, name, version, incumbent, policy)
    )


def facts_of(report: Report, metric: str, version: str, incumbent: Incumbent | None) -> GateFacts:
    """Turns a report into the gate's facts; the subgroups' figure is ROC-AUC, or accuracy if that is the metric."""
    if metric not in report.headline:
        raise ConfigError(f"gate: metric={metric!r} is not in the report; it has {', '.join(report.headline)}")
    return GateFacts(
        version=version,
        dataset_digest=report.provenance.dataset_digest,
        leaks=report.provenance.accepted_leaks,
        figure=_interval(report.headline[metric]),
        calibration_error=report.calibration.after.figures["ece_mass"].value,
        gains={shortcut: _interval(gain) for shortcut, gain in report.shortcuts.gains.items()},
        subgroups={
            f"{column.column}:{group.name}": Subgroup(
                group.num_tiles, (group.accuracy if metric == "accuracy" else group.roc_auc).value
            )
            for column in report.subgroups.columns
            for group in column.groups
        },
        incumbent=incumbent,
    )


def _compared(store: Store, name: str, version: str, incumbent: str, policy: GatePolicy) -> Incumbent:
    digests = [read_spec(store, name, one).dataset_digest for one in (version, incumbent)]
    if version == incumbent or digests[0] != digests[1]:
        return Incumbent(incumbent, digests[1], None, None)
    pair = (f"{name}@{version}", f"{name}@{incumbent}")
    found = compare_models(CompareConfig(models=pair, store=store.uri)).comparison
    closed = [test.difference for test in found.tests if "ROC-AUC" in test.name and test.difference is not None]
    figure = found.figures.get(policy.metric)
    return Incumbent(
        incumbent,
        digests[1],
        _interval(figure.difference) if figure else None,
        _interval(closed[0]) if closed and policy.metric == "roc_auc" else None,
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high)
