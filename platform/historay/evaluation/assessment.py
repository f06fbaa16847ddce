"""The whole judgement of a model from arrays: everything is chosen on validation, and test is looked at once."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from historay.config import Config
from historay.errors import DataError
from historay.evaluation.calibration import fit_calibration
from historay.evaluation.conformal import ConformalRule, Kind
from historay.evaluation.intervals import Resampling, units_of
from historay.evaluation.judgement import Judgement, judge
from historay.evaluation.metrics import Floats
from historay.evaluation.operating_point import Aim, OperatingPoint, ThresholdRule, choose_point
from historay.evaluation.predictions import Predictions
from historay.evaluation.reliability import calibration_tally
from historay.evaluation.sections import (
    AbstentionSection,
    CalibrationSection,
    DecisionSection,
    PooledSection,
    ShortcutSection,
    abstention_section,
    calibration_section,
    decision_section,
    fit_rules,
    pooled_sections,
    probes,
)
from historay.evaluation.selective import confidence, fit_selective
from historay.evaluation.shortcut_verdict import judge_shortcuts
from historay.evaluation.slices import SliceSearch, find_slices
from historay.evaluation.stain import stain_clusters
from historay.evaluation.subgroups import SubgroupJudgement, judge_subgroups


class Policy(Config):
    """How a model is judged."""

    positive_class: str | None = None
    """Of two classes, the one that is looked for; the second if not given."""
    threshold_rule: ThresholdRule = "youden"
    """How the threshold is chosen on validation: largest sensitivity + specificity, a target of either, or least cost."""
    target: float = Field(default=0.95, gt=0, le=1)
    """For threshold_rule sensitivity or specificity."""
    confidence: float | None = Field(default=None, gt=0, lt=1)
    """Confidence that the target holds beyond validation; not given, it holds on validation only."""
    cost_ratio: float = Field(default=10.0, gt=0)
    """For threshold_rule cost: what a missed positive costs, in false alarms."""
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Share of positive tiles where the model is to be used, for predictive values; that of the test split if not given."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """Share of prediction sets that may lack the true class."""
    prediction_sets: Kind = "class"
    """Which prediction sets ship with the model: one promise for all tiles, for each class, or for each site."""
    target_risk: float = Field(default=0.1, gt=0, lt=1)
    """Error rate allowed among the tiles answered confidently; 0.1 needs 60 validation patients without an error, 0.05 123."""
    num_resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples behind each interval."""
    seed: int = 0
    """Decides the resamples and every other draw."""


class Evidence(NamedTuple):
    """What one pass over a split gathers, rows sorted by tile_id."""

    predictions: Predictions  # uncalibrated
    features_NF: NDArray[np.float32]  # the input of the network's last layer
    stains_NC: Floats  # by which stain clusters are found
    colours_NF: Floats  # colour histograms
    shortcuts: dict[str, Floats]  # probabilities (N, K) of each baseline, by the family's name


class Chosen(NamedTuple):
    """What was fitted on validation and ships with the model."""

    point: OperatingPoint | None
    conformal: ConformalRule


@dataclass(frozen=True)
class Assessment:
    """Everything that follows from the arrays of validation and test."""

    chosen: Chosen
    test: Predictions  # calibrated
    confidence_N: Floats
    judgement: Judgement
    calibration: CalibrationSection
    abstention: AbstentionSection
    shortcuts: ShortcutSection
    decision: DecisionSection | None  # None: more than two classes
    pooled: tuple[PooledSection, ...]  # by slide, by patient
    subgroups: SubgroupJudgement
    slices: SliceSearch
    num_resamples: int
    seed: int


def assess(validation: Predictions, evidence: Evidence, policy: Policy) -> Assessment:
    """Chooses calibration, threshold and rules on validation, then judges test with them."""
    positive = positive_index(validation.classes, policy.positive_class)
    choice = fit_calibration(validation.probabilities, validation.labels, validation.patients, positive)
    raw = evidence.predictions
    calibrated, test = (each.with_probabilities(choice.calibration.apply(each.probabilities)) for each in (validation, raw))
    point = None if positive is None else _point(calibrated, positive, policy)
    rules, answering = fit_rules(calibrated, policy.alpha), fit_selective(calibrated, point, policy.target_risk)
    if policy.prediction_sets not in rules:
        raise DataError(f"prediction_sets={policy.prediction_sets}: validation knows no sites; choose class or marginal")

    seed, num_resamples = policy.seed, policy.num_resamples
    resampling = Resampling(units_of(test.patients, len(test.labels), seed), num_resamples, seed)
    calibration_figures = calibration_tally(test.probabilities, test.labels, positive, resampling.units)
    judgement = judge(test, point, evidence.shortcuts, num_resamples, seed, [calibration_figures])
    clusters = {"stain cluster": stain_clusters(evidence.stains_NC, seed)}
    return Assessment(
        chosen=Chosen(point, rules[policy.prediction_sets]),
        test=test,
        confidence_N=confidence(test.probabilities, test.classes, point),
        judgement=judgement,
        calibration=calibration_section(choice, raw, positive, resampling),
        abstention=abstention_section(rules, policy.prediction_sets, answering, test, point, resampling),
        shortcuts=_shortcuts(judgement, test, evidence, seed),
        decision=None if point is None else _decision(calibrated, test, point, policy.prevalence, resampling),
        pooled=pooled_sections(calibrated, test, positive, num_resamples, seed),
        subgroups=judge_subgroups(test, point, clusters, num_resamples, seed),
        slices=find_slices(evidence.features_NF, test.labels, judgement.predicted, test.patients, seed),
        num_resamples=num_resamples,
        seed=seed,
    )


def positive_index(classes: tuple[str, ...], positive_class: str | None) -> int | None:
    """Returns the index of the class that is looked for, None with more than two; DataError if there is no such class."""
    if len(classes) != 2:
        return None
    positive = positive_class or classes[1]
    if positive not in classes:
        raise DataError(f"positive_class={positive!r} is no class of this run; it has {' and '.join(classes)}")
    return classes.index(positive)


def _point(validation: Predictions, positive: int, policy: Policy) -> OperatingPoint:
    aim = Aim(
        rule=policy.threshold_rule,
        target=policy.target,
        confidence=policy.confidence,
        cost_ratio=policy.cost_ratio,
        prevalence=policy.prevalence,
    )
    units = units_of(validation.patients, len(validation.labels), policy.seed)
    is_positive = validation.labels == positive
    return choose_point(validation.classes[positive], is_positive, validation.probabilities[:, positive], aim, units)


def _decision(
    validation: Predictions, test: Predictions, point: OperatingPoint, prevalence: float | None, resampling: Resampling
) -> DecisionSection:
    share = float((validation.labels == validation.classes.index(point.positive_class)).mean())
    return decision_section(test, point, share, prevalence, resampling)


def _shortcuts(judgement: Judgement, test: Predictions, evidence: Evidence, seed: int) -> ShortcutSection:
    return ShortcutSection(
        aucs=judgement.shortcuts,
        gains=judgement.gains,
        verdict=judge_shortcuts(judgement.headline["roc_auc"], judgement.shortcuts, judgement.gains),
        probes=probes(test, evidence.features_NF, evidence.colours_NF, seed),
    )
