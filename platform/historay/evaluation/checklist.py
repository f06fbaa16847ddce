"""Fills the checklists of TRIPOD+AI and CLAIM 2024 from facts of the report, and leaves blank what the platform cannot know."""

from collections.abc import Mapping
from string import Formatter
from typing import Literal

from pydantic import BaseModel, ConfigDict

from historay.evaluation.checklist_items import CLAIM, TRIPOD_AI, Item

Guideline = Literal["TRIPOD+AI", "CLAIM"]
_SAID_AS_THEY_ARE = (
    "split_rule",
    "preprocessing",
    "initialisation",
    "selection",
    "candidates",
    "intervals",
    "calibration",
    "shortcuts",
    "subgroups",
    "heterogeneity",
    "robustness",
    "explanation",
    "failures",
)
GUIDELINES: dict[Guideline, tuple[Item, ...]] = {"TRIPOD+AI": TRIPOD_AI, "CLAIM": CLAIM}


class Row(BaseModel):
    """One item of a guideline; ``answer`` is None where the authors have to fill it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    guideline: Guideline
    item: str
    subject: str
    answer: str | None


class Facts(BaseModel):
    """What the platform knows of data, model and evaluation; None is what it does not know. Sentences have no full stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str | None = None  # name@version
    dataset_digest: str | None = None
    classes: tuple[str, ...] | None = None
    positive_class: str | None = None
    input_px: int | None = None
    mpp: float | None = None  # micrometres per pixel
    sites: tuple[str, ...] | None = None
    scanners: tuple[str, ...] | None = None
    num_found: int | None = None
    quarantined: dict[str, int] | None = None  # images by reason
    tiles_by_split: dict[str, int] | None = None
    patients_by_split: dict[str, int] | None = None  # None: not known
    train_by_class: dict[str, int] | None = None
    test_by_class: dict[str, int] | None = None
    split_rule: str | None = None  # how tiles were shared out
    leaks: tuple[str, ...] | None = None  # what the leak check found; () is nothing, None is not checked
    accepted_leaks: tuple[str, ...] | None = None
    preprocessing: str | None = None
    augmentation: str | None = None
    architecture: str | None = None
    num_parameters: int | None = None
    weights_sha256: str | None = None
    initialisation: str | None = None
    training: dict[str, str] | None = None  # essentials: epochs, optimizer, learning rate, batch size, seed
    class_weights: str | None = None
    selection: str | None = None  # of the epoch whose weights count
    candidates: str | None = None  # how many models were trained and compared
    ensembling: str | None = None
    versions: dict[str, str] | None = None
    metrics: dict[str, str] | None = None  # by title, with interval
    intervals: str | None = None  # method, unit and number of resamples
    calibration: str | None = None
    threshold_rule: str | None = None
    abstention: str | None = None
    shortcuts: str | None = None  # the verdict's sentence
    subgroups: str | None = None  # which were judged, and the worst
    heterogeneity: str | None = None  # between sites or scanners
    robustness: str | None = None
    explanation: str | None = None
    failures: str | None = None
    warnings: tuple[str, ...] | None = None  # alarms and cautions of the report
    disclaimer: str | None = None


def fill(facts: Facts) -> tuple[Row, ...]:
    """Returns the rows of both guidelines in their order. An item is answered only if all facts that it takes are known."""
    known = {name: phrase for name, phrase in phrases(facts).items() if phrase is not None}
    return tuple(
        Row(guideline=guideline, item=item.number, subject=item.subject, answer=_answer(item, known))
        for guideline, items in GUIDELINES.items()
        for item in items
    )


def needed(item: Item) -> set[str]:
    """Returns the names of the phrases that an item's answer takes."""
    return {name for _, name, _, _ in Formatter().parse(item.answer) if name}


def _answer(item: Item, known: Mapping[str, str]) -> str | None:
    if not needed(item) or not needed(item) <= known.keys():
        return None
    answer = item.answer.format(**known)
    return f"{answer} Authors add: {item.left}." if item.left else answer


def phrases(facts: Facts) -> dict[str, str | None]:
    """Returns what the facts say, in words; None where a fact is missing."""
    found = {name: _sentence(getattr(facts, name)) for name in _SAID_AS_THEY_ARE}
    return found | _of_data(facts) | _of_split(facts) | _of_model(facts) | _of_training(facts) | _of_results(facts)


def _of_data(facts: Facts) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(("data", "classes", "sites", "acquisition", "inputs", "quarantine"))
    if facts.dataset and facts.dataset_digest:
        found["data"] = f"Data set {facts.dataset}, digest {facts.dataset_digest}"
    if facts.classes:
        found["classes"] = f"Each tile has one of the classes {', '.join(facts.classes)}"
    if facts.sites:
        found["sites"] = f"Sites: {', '.join(facts.sites)}"
    scanners = [f"scanners: {', '.join(facts.scanners)}"] if facts.scanners else []
    mpp = [f"{facts.mpp:g} micrometres per pixel"] if facts.mpp else []
    if scanners or mpp:
        found["acquisition"] = _sentence("; ".join(scanners + mpp))
    if facts.input_px:
        size = f"{facts.input_px} x {facts.input_px} pixels"
        found["inputs"] = "; ".join([f"The pixels of a tile and nothing else: RGB, {size}", *mpp])
    if facts.num_found is not None and facts.quarantined is not None:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in facts.quarantined.items())
        total = sum(facts.quarantined.values())
        found["quarantine"] = f"{facts.num_found:,} images found, {total:,} left out" + (f" ({reasons})" if reasons else "")
    return found


def _of_split(facts: Facts) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(
        ("splits", "disjoint", "leaks", "train_classes", "test_classes", "same_source", "num_evaluated")
    )
    if facts.tiles_by_split:
        patients = f"patients: {_counts(facts.patients_by_split)}" if facts.patients_by_split else "patients not known"
        found["splits"] = f"Tiles: {_counts(facts.tiles_by_split)}; {patients}"
    if facts.leaks is not None:
        found["leaks"] = _leaks(facts.leaks, facts.accepted_leaks or ())
        found["disjoint"] = _disjoint(facts)
    if facts.train_by_class:
        found["train_classes"] = f"Training tiles: {_counts(facts.train_by_class)}"
    if facts.test_by_class:
        found["test_classes"] = f"Test tiles: {_counts(facts.test_by_class)}"
        found["num_evaluated"] = f"{sum(facts.test_by_class.values()):,} tiles of the test split were judged"
    if facts.dataset and facts.tiles_by_split:
        found["same_source"] = f"Internal: training, validation and test are splits of the one data set {facts.dataset}"
    return found


def _of_model(facts: Facts) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(("model", "bundle", "output", "threshold", "input_checks"))
    if facts.architecture and facts.num_parameters:
        found["model"] = f"Convolutional network {facts.architecture}, {facts.num_parameters:,} parameters"
    if facts.weights_sha256:
        found["bundle"] = (
            "The bundle holds weights, preprocessing, calibration and threshold, and `historay predict` applies them; "
            f"SHA-256 of the weights: {facts.weights_sha256}"
        )
    if facts.classes:
        found["output"] = f"A probability for each of {', '.join(facts.classes)}"
    if facts.threshold_rule:
        called = f"Called {facts.positive_class} by threshold: " if facts.positive_class else ""
        found["threshold"] = called + facts.threshold_rule
    if facts.abstention:
        found["input_checks"] = f"Images that cannot be decoded are refused with the reason; {facts.abstention}"
    return found


def _of_training(facts: Facts) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(("augmentation", "training", "class_weights", "ensembling", "versions"))
    if facts.augmentation:
        found["augmentation"] = f"Augmentation: {facts.augmentation}"
    if facts.training:
        found["training"] = "Training: " + ", ".join(f"{name} {value}" for name, value in facts.training.items())
    if facts.class_weights:
        found["class_weights"] = f"Class weights in the loss: {facts.class_weights}"
    if facts.ensembling:
        found["ensembling"] = f"Ensembling: {facts.ensembling}"
    if facts.versions:
        found["versions"] = "Software: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return found


def _of_results(facts: Facts) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(("measures", "results", "limitations", "disclaimer"))
    if facts.metrics:
        found["measures"] = f"Measures: {', '.join(facts.metrics)}"
        found["results"] = "; ".join(f"{title} {value}" for title, value in facts.metrics.items())
    if facts.warnings is not None:
        # No warning is no evidence of no limitation, so it answers nothing.
        found["limitations"] = ". ".join(text.rstrip(".") for text in facts.warnings) or None
    if facts.disclaimer:
        found["disclaimer"] = facts.disclaimer
    return found


def _leaks(leaks: tuple[str, ...], accepted: tuple[str, ...]) -> str:
    text = "Leak check by patient, slide, identical pixels and near-duplicates: " + ("; ".join(leaks) or "nothing found")
    return text + (f"; accepted: {', '.join(accepted)}" if accepted else "")


def _disjoint(facts: Facts) -> str:
    if facts.leaks or facts.accepted_leaks:
        return "Not disjoint, as the leak check says"
    if facts.patients_by_split:
        return "Disjoint by patient"
    return "Disjoint by tile; patients are not known, so that one may stand on both sides"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _sentence(text: str | None) -> str | None:
    """Begins with a capital and ends without a full stop; an empty text is no fact."""
    stripped = (text or "").strip().rstrip(".")
    return stripped[:1].upper() + stripped[1:] if stripped else None
