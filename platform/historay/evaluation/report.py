"""The report: all that is known of a model on one test split, as report.json. ``page`` renders it."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from historay.evaluation.assessment import Assessment
from historay.evaluation.checklist import Facts, Row, fill
from historay.evaluation.conformal import promised_coverage
from historay.evaluation.flow import Flow
from historay.evaluation.intervals import LEVEL, METHOD, Estimate, Unit
from historay.evaluation.operating_point import OperatingPoint
from historay.evaluation.robustness import Robustness
from historay.evaluation.sections import AbstentionSection, CalibrationSection, DecisionSection, PooledSection, ShortcutSection
from historay.evaluation.slices import SliceSearch
from historay.evaluation.subgroups import SubgroupColumn, SubgroupJudgement

DISCLAIMER = "Research software: not a medical device. Not for diagnosis, nor for any decision about a patient."
FORMAT = 2
_FEW_UNITS = 10
_CRITERIA = {"roc_auc": "ROC-AUC", "accuracy": "accuracy"}
_SAID_ELSEWHERE = {"augment", "averaging", "class_weights", "monitor"}
_ENSEMBLING = {
    "none": "none, a single network looks at each tile once",
    "d4": "none, a single network; its logits are averaged over the 8 turns and mirror images of a tile",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IntervalMethod(_Part):
    """How the intervals were made."""

    level: float = LEVEL
    method: str = METHOD
    unit: Unit  # what was drawn with replacement
    num_units: int
    num_resamples: int
    seed: int


class Provenance(_Part):
    """Where the figures come from: everything needed to make them again."""

    model: str  # name; the version is a digest over this very report, so it cannot stand in it
    run: str
    architecture: str
    num_parameters: int
    weights_sha256: str
    dataset: str  # name@version
    dataset_digest: str
    accepted_leaks: tuple[str, ...]
    leaks: tuple[str, ...]  # what the leak check found, in words
    seed: int
    num_epochs: int
    num_steps: int | None
    num_workers: int
    training_seconds: float
    settings: dict[str, str]  # of the training run, as a reader needs them
    input_px: int
    mpp: float | None  # of the training tiles
    machine: str
    versions: dict[str, str]
    notes: tuple[str, ...] = ()  # what whoever asked for the evaluation wants said, e.g. how many candidates were compared


class Finding(_Part):
    """Something that a reader must not miss."""

    level: Literal["alarm", "caution", "note"]
    text: str


class Report(_Part):
    """The content of report.json. No figure is NaN: it is null, with the reason beside it."""

    format: int = FORMAT
    disclaimer: str = DISCLAIMER
    provenance: Provenance
    findings: tuple[Finding, ...]
    flow: Flow
    classes: tuple[str, ...]
    operating_point: OperatingPoint | None  # None: more than two classes, the most probable is named
    num_tiles: dict[str, int]  # test tiles by class
    headline: dict[str, Estimate]
    checks: dict[str, Estimate]  # some of the headline without a bootstrap: DeLong or Obuchowski, Wilson
    by_class: dict[str, dict[str, Estimate]]
    confusion: list[list[int]]  # rows are the true classes
    pooled: tuple[PooledSection, ...]  # by slide and by patient, where they are known
    shortcuts: ShortcutSection
    calibration: CalibrationSection
    decision: DecisionSection | None  # None: more than two classes
    abstention: AbstentionSection
    subgroups: SubgroupJudgement
    slices: SliceSearch
    robustness: Robustness | None  # None: not asked for
    intervals: IntervalMethod
    checklist: tuple[Row, ...]


def make_report(
    assessment: Assessment,
    provenance: Provenance,
    flow: Flow,
    confounds: Iterable[str],
    robustness: Robustness | None,
) -> Report:
    """Puts everything together with the findings that it calls for; ``confounds`` are the data set's, in words."""
    judgement, test = assessment.judgement, assessment.test
    counts = judgement.confusion.sum(axis=1)
    report = Report(
        provenance=provenance,
        findings=find(assessment, provenance, confounds, robustness),
        flow=flow,
        classes=test.classes,
        operating_point=assessment.chosen.point,
        num_tiles={name: int(count) for name, count in zip(test.classes, counts, strict=True)},
        headline=judgement.headline,
        checks=judgement.checks,
        by_class=judgement.by_class,
        confusion=judgement.confusion.tolist(),
        pooled=assessment.pooled,
        shortcuts=assessment.shortcuts,
        calibration=assessment.calibration,
        decision=assessment.decision,
        abstention=assessment.abstention,
        subgroups=assessment.subgroups,
        slices=assessment.slices,
        robustness=robustness,
        intervals=IntervalMethod(
            unit=judgement.unit,
            num_units=judgement.num_units,
            num_resamples=assessment.num_resamples,
            seed=assessment.seed,
        ),
        checklist=(),
    )
    return report.model_copy(update={"checklist": fill(facts_of(report))})


def find(
    assessment: Assessment, provenance: Provenance, confounds: Iterable[str], robustness: Robustness | None
) -> tuple[Finding, ...]:
    """Puts into words what a reader must not miss, alarms first."""
    found = [
        *_of_data(assessment, provenance, confounds),
        *_of_shortcuts(assessment),
        *_of_calibration(assessment),
        *_of_abstention(assessment),
        *_of_groups(assessment),
    ]
    if robustness is not None:
        found += [Finding(level="caution", text=f"NOT ROBUST: {weakness}") for weakness in robustness.weaknesses()]
    found += [Finding(level="note", text=note) for note in provenance.notes]
    order = {"alarm": 0, "caution": 1, "note": 2}
    return tuple(sorted(found, key=lambda finding: order[finding.level]))


def _of_data(assessment: Assessment, provenance: Provenance, confounds: Iterable[str]) -> list[Finding]:
    judgement, found = assessment.judgement, []
    if provenance.accepted_leaks:
        kinds = ", ".join(provenance.accepted_leaks)
        text = f"LEAKS ACCEPTED: {kinds}. Tiles of one origin stand on both sides of the split; every figure is too good"
        found.append(Finding(level="alarm", text=text))
    found += [Finding(level="alarm", text=f"CONFOUNDED: {confound}") for confound in confounds]
    if judgement.unit == "tile":
        text = (
            "PATIENTS UNKNOWN: tiles of one patient may stand in train and in test, and the intervals draw single tiles, "
            "so they are narrower than they should be"
        )
        found.append(Finding(level="caution", text=text))
    elif judgement.num_units < _FEW_UNITS:
        text = f"FEW PATIENTS: the intervals draw {judgement.num_units} patients, too few to be relied on"
        found.append(Finding(level="caution", text=text))
    return found


def _of_shortcuts(assessment: Assessment) -> list[Finding]:
    verdict, found = assessment.shortcuts.verdict, []
    if verdict.verdict in {"alarm", "caution"}:
        level: Literal["alarm", "caution"] = "alarm" if verdict.verdict == "alarm" else "caution"
        found.append(Finding(level=level, text=f"SHORTCUT: {verdict.sentence}"))
    elif verdict.verdict == "unknown":
        found.append(Finding(level="caution", text=f"SHORTCUT UNKNOWN: {verdict.sentence}"))
    return found


def _of_calibration(assessment: Assessment) -> list[Finding]:
    section, found = assessment.calibration, []
    kept = section.choice.calibration.kind
    if section.before.test.miscalibrated and kept != "none":
        text = f"THE NETWORK ITSELF IS MISCALIBRATED, and {kept} calibration was applied: {section.before.test.sentence}"
        found.append(Finding(level="note", text=text))
    if section.after.test.miscalibrated:
        # The sentence begins with the word.
        found.append(Finding(level="caution", text=section.after.test.sentence))
    return found


def _of_abstention(assessment: Assessment) -> list[Finding]:
    section, found = assessment.abstention, []
    rule = section.rules[section.shipped]
    for group, coverage in promised_coverage(rule, section.sets[section.shipped]).items():
        if coverage.high is not None and coverage.high < 1 - rule.alpha:
            held = f"of {group} tiles {coverage.value:.3f} of them hold the true class"
            found.append(Finding(level="caution", text=f"PREDICTION SETS FAIL: {held}; {1 - rule.alpha:g} was promised"))
    if any(threshold.score is None for threshold in rule.thresholds):
        found.append(Finding(level="note", text=f"PREDICTION SETS SAY LITTLE: {rule.guarantee}"))
    if section.selective.threshold is None:
        found.append(Finding(level="note", text=f"NO CONFIDENT ANSWERS: {section.selective.guarantee}"))
    return found


def _of_groups(assessment: Assessment) -> list[Finding]:
    found = []
    if num_slices := len(assessment.slices.slices):
        kinds = "kind" if num_slices == 1 else "kinds"
        text = f"ERROR SLICES: on {num_slices} {kinds} of tiles the model errs more often than elsewhere"
        found.append(Finding(level="caution", text=text))
    for column in assessment.subgroups.columns:
        for name in column.worse:
            text = f"WORSE SUBGROUP: {column.column} {name} is worse than the rest in {column.criterion} (Holm-adjusted)"
            found.append(Finding(level="caution", text=text))
    return found


def facts_of(report: Report) -> Facts:
    """Collects what the report knows, for the checklists."""
    p, flow, point = report.provenance, report.flow, report.operating_point
    patients = {name: split.num_patients for name, split in flow.splits.items()}
    shipped = report.abstention.rules[report.abstention.shipped]
    columns = {column.column: column for column in report.subgroups.columns}
    return Facts(
        dataset=p.dataset,
        dataset_digest=p.dataset_digest,
        classes=report.classes,
        positive_class=point.positive_class if point else None,
        input_px=p.input_px,
        mpp=p.mpp,
        sites=_group_names(columns.get("site")),
        scanners=_group_names(columns.get("scanner")),
        num_found=flow.num_found,
        quarantined=flow.quarantined,
        tiles_by_split={name: split.num_tiles for name, split in flow.splits.items()},
        patients_by_split={name: count for name, count in patients.items() if count is not None} or None,
        train_by_class={name: counts.get("train", 0) for name, counts in flow.by_class.items()},
        test_by_class=report.num_tiles,
        split_rule=flow.split_rule,
        leaks=p.leaks,
        accepted_leaks=p.accepted_leaks,
        preprocessing=_preprocessing(p),
        augmentation=p.settings.get("augment"),
        architecture=p.architecture,
        num_parameters=p.num_parameters,
        weights_sha256=p.weights_sha256,
        initialisation="random weights, nothing pretrained",
        training={name: value for name, value in p.settings.items() if name not in _SAID_ELSEWHERE},
        class_weights=p.settings.get("class_weights"),
        selection=f"the epoch with the best {p.settings['monitor']} on validation" if "monitor" in p.settings else None,
        candidates="; ".join(p.notes) or "one model in this run, of other runs nothing is recorded",
        ensembling=_ENSEMBLING.get(p.settings.get("averaging", "")),
        versions=p.versions,
        metrics={name: figure.in_words() for name, figure in report.headline.items()},
        intervals=f"{report.intervals.method}; {report.intervals.num_resamples:,} resamples of {report.intervals.unit}s",
        calibration=report.calibration.choice.reason,
        threshold_rule=point.rule if point else None,
        abstention=f"prediction sets: {shipped.guarantee.rstrip('.')}",
        shortcuts=report.shortcuts.verdict.sentence,
        subgroups="; ".join(f"by {name}, worst {column.worst}" for name, column in columns.items() if column.worst)
        or "no groups are known by which tiles could be judged",
        heterogeneity="; ".join(_column_in_words(columns[name]) for name in ("site", "scanner") if name in columns) or None,
        robustness=_robustness_in_words(report.robustness),
        explanation="Grad-CAM of example tiles",
        failures=_slices_in_words(report.slices, report.classes),
        warnings=tuple(finding.text for finding in report.findings if finding.level != "note"),
        disclaimer=report.disclaimer,
    )


def _preprocessing(p: Provenance) -> str:
    stain = p.settings.get("stain_normalisation", "none")
    first = "" if stain == "none" else f", stain normalised after {stain.title()} to training tiles"
    return f"resized to {p.input_px} x {p.input_px} pixels{first}, each channel standardised by training tiles"


def _group_names(column: SubgroupColumn | None) -> tuple[str, ...] | None:
    return tuple(group.name for group in column.groups) if column and column.groups else None


def _column_in_words(column: SubgroupColumn) -> str:
    groups = ", ".join(f"{group.name} {getattr(group, column.criterion).in_words()}" for group in column.groups)
    return f"{_CRITERIA[column.criterion]} by {column.column}: {groups}"


def _slices_in_words(search: SliceSearch, classes: tuple[str, ...]) -> str:
    found = [
        f"{one.num_tiles} tiles with an error rate of {one.error_rate.in_words()}, most often {classes[one.mistake[0]]} called "
        f"{classes[one.mistake[1]]}"
        for one in search.slices
    ]
    which = f"these err more than the rest: {'; '.join(found)}" if found else "none errs more than the rest"
    return f"of {search.num_tested} clusters of tiles by the model's own features, {which}"


def _robustness_in_words(robustness: Robustness | None) -> str | None:
    if robustness is None:
        return None
    return "; ".join(robustness.weaknesses()) or "no mild spoiling costs 0.05 of ROC-AUC"
