"""Promotion: a model's report and its comparison with production held against the gate, and the alias moved if all holds."""

from collections.abc import Sequence
from typing import NamedTuple

from historay.errors import BundleError, ConfigError
from historay.evaluation.comparison import Comparison
from historay.evaluation.intervals import Estimate
from historay.evaluation.report import Report
from historay.evaluation.subgroups import SubgroupColumn
from historay.models.bundle import read_spec, read_verified
from historay.models.gate import Check, GateFacts, GatePolicy, Incumbent, Interval, Subgroup, evaluate_gate, in_words, refusals
from historay.models.registry import PRODUCTION, Gate, Terms, production_of, resolve, set_alias, write_promotions
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
    PROMOTIONS.md beside the model card, which the endpoint shows with it. Raises BundleError if the model was never
    evaluated, and Conflict if production was moved while it was compared.
    """
    if force is not None and len(force.split()) < _MIN_WORDS:
        raise ConfigError(f"--force {force!r}: say in at least {_MIN_WORDS} words why; it stays with the model card")
    name, version = resolve(store, reference)
    facts = gather_facts(store, name, version, policy)
    checks = evaluate_gate(policy, facts)
    refused = refusals(checks)
    if refused and force is None:
        return Promotion(f"{name}@{version}", checks, promoted=False)
    gate = Gate(
        overridden=tuple(refused),
        why=force if refused else None,
        policy=policy.model_dump(mode="json"),
        checks=in_words(checks),
    )
    # From what it was compared with alone: another promotion may have come between.
    incumbent = facts.incumbent.version if facts.incumbent else None
    set_alias(store, name, PRODUCTION, version, reason, Terms(gate, expected=incumbent))
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
            f"{column.column}:{name}": found
            for column in report.subgroups.columns
            for name, found in _subgroups(column, metric).items()
        },
        incumbent=incumbent,
    )


def _compared(store: Store, name: str, version: str, incumbent: str, policy: GatePolicy) -> Incumbent:
    candidate, present = read_spec(store, name, version), read_spec(store, name, incumbent)
    if version == incumbent or candidate.dataset_digest != present.dataset_digest:
        return Incumbent(incumbent, present.dataset_digest, None, None)
    pair = (f"{name}@{version}", f"{name}@{incumbent}")
    found = compare_models(CompareConfig(models=pair, store=store.uri)).comparison
    figure = found.figures.get(policy.metric)
    return Incumbent(
        incumbent,
        present.dataset_digest,
        _interval(figure.difference) if figure else None,
        _delong(found, candidate.classes, policy.metric),
    )


def _delong(found: Comparison, classes: Sequence[str], metric: str) -> Interval | None:
    """None where no such test exists; of two classes it does, and then one that was not made leaves its check to fail."""
    if metric != "roc_auc":
        return None
    made = [test.difference for test in found.tests if "ROC-AUC" in test.name and test.difference is not None]
    if made:
        return _interval(made[0])
    return Interval(None, None, None) if len(classes) == 2 else None


def _subgroups(column: SubgroupColumn, metric: str) -> dict[str, Subgroup]:
    """Returns the figure of every group that the report has one of: beyond the 20 largest there is no interval but a value."""
    name = "accuracy" if metric == "accuracy" else "roc_auc"
    large = {group.name: Subgroup(group.num_tiles, getattr(group, name).value) for group in column.groups}
    further = {group.name: Subgroup(group.num_tiles, getattr(group, name)) for group in column.further}
    return large | further


def _interval(estimate: Estimate) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high)
