"""The parts of a report that go beyond the headline, each computed from arrays and kept as one closed model."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.evaluation.calibration import CalibrationChoice
from historay.evaluation.conformal import ConformalRule, Kind, fit_conformal, judge_sets
from historay.evaluation.decision import DecisionCurve, decision_curve, decision_tally, move_prevalence, predictive_values
from historay.evaluation.intervals import Estimate, Named, Resampling, estimate
from historay.evaluation.metrics import Floats
from historay.evaluation.miscalibration import CalibrationTest, ReliabilityBin, calibration_test, reliability_diagram
from historay.evaluation.operating_point import OperatingPoint, decide
from historay.evaluation.origin_probe import OriginProbe, probe_origin
from historay.evaluation.pooling import Level, PoolingRule, fit_pooling, judge_pooled, pool
from historay.evaluation.predictions import UNKNOWN, Predictions
from historay.evaluation.reliability import (
    BrierParts,
    CalibrationLine,
    brier_parts,
    calibration_line,
    calibration_tally,
    events,
)
from historay.evaluation.selective import SelectiveRule, confidence, judge_selective, risk_coverage
from historay.evaluation.shortcut_verdict import ShortcutVerdict
from historay.evaluation.weighting import Weighted, weighted_means_tally

_NUM_PERMUTATIONS = 99  # tells a p-value of 0.01
_USUAL = (0.01, 0.05, 0.2)  # prevalences, from screening to a clinic


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationFigures(_Section):
    """How far the probabilities of test are from frequencies."""

    figures: dict[str, Estimate]  # ece_width, ece_mass, brier, nll
    parts: BrierParts
    line: CalibrationLine
    test: CalibrationTest
    diagram: tuple[ReliabilityBin, ...]


class CalibrationSection(_Section):
    """The map chosen on validation, and the figures on test without and with it."""

    choice: CalibrationChoice
    event: str  # whose probability is looked at
    before: CalibrationFigures
    after: CalibrationFigures


class AbstentionSection(_Section):
    """Prediction sets of every kind that can be fitted, and answering only where confident."""

    shipped: Kind
    rules: dict[str, ConformalRule]
    sets: dict[str, dict[str, Estimate]]  # by kind, then figure
    selective: SelectiveRule
    answered: dict[str, Estimate]
    coverage_T: tuple[float, ...]
    risk_T: tuple[float, ...]


class ShortcutSection(_Section):
    """What tells the class without looking at tissue, and what the model's features tell of the origin."""

    aucs: dict[str, Estimate]
    gains: dict[str, Estimate]
    verdict: ShortcutVerdict
    probes: tuple[OriginProbe, ...]


class PredictiveRow(_Section):
    """What a call is worth at one prevalence."""

    prevalence: float
    origin: str  # where that prevalence comes from
    ppv: Estimate
    npv: Estimate


class DecisionSection(_Section):
    """Predictive values at several prevalences, and the decision curve at one."""

    predictive: tuple[PredictiveRow, ...]
    curve: DecisionCurve
    sentence: str


def decision_section(
    test: Predictions,
    point: OperatingPoint,
    calibrated_at: float,
    prevalence: float | None,
    resampling: Resampling,
) -> DecisionSection:
    """Judges decisions at the stated prevalence, or at some usual ones and that of test.

    ``calibrated_at`` is the share of positives in validation, on which the probabilities were calibrated.
    """
    k = test.classes.index(point.positive_class)
    positive_N, probability_N = test.labels == k, test.probabilities[:, k]
    own = float(positive_N.mean())
    origins = dict.fromkeys(_USUAL, "") if prevalence is None else {prevalence: "as stated"}
    origins |= {own: "that of the test split"} if 0 < own < 1 else {}
    aimed = own if prevalence is None else prevalence
    called_N = probability_N >= point.threshold
    shares: dict[str, Weighted] = {"sensitivity": (called_N, positive_N), "specificity": (~called_N, ~positive_N)}

    def derive(named: Named) -> Named:
        values = {share: predictive_values(named["sensitivity"], named["specificity"], share) for share in origins}
        return {f"{name}:{share}": getattr(both, name) for share, both in values.items() for name in ("ppv", "npv")}

    moved_N = probability_N if calibrated_at == aimed else move_prevalence(probability_N, calibrated_at, aimed)
    units = resampling.units
    tallies = [weighted_means_tally(shares, units), decision_tally(positive_N, moved_N, aimed, units)]
    found = estimate(tallies, *resampling, derive, undefined="nothing is called so")
    return DecisionSection(
        predictive=tuple(
            PredictiveRow(prevalence=share, origin=origin, ppv=found[f"ppv:{share}"], npv=found[f"npv:{share}"])
            for share, origin in sorted(origins.items())
        ),
        curve=decision_curve(found, aimed),
        sentence=(
            f"Decision curve at a prevalence of {aimed:.3g} ({origins.get(aimed) or 'as stated'}). Only prevalence is moved: "
            "where positives in practice look harder than those of the data set, all of this is too good."
        ),
    )


class PooledSection(_Section):
    """Figures of whole slides or patients, whose probabilities are pooled from those of their tiles."""

    unit: Level
    num_units: int
    rule: PoolingRule
    figures: dict[str, Estimate]
    sentence: str


def pooled_sections(
    validation: Predictions, test: Predictions, positive: int | None, num_resamples: int, seed: int
) -> tuple[PooledSection, ...]:
    """Judges test by slide and by patient, where both splits know them."""
    known: dict[Level, bool] = {
        "slide": validation.slides is not None and test.slides is not None,
        "patient": validation.patients is not None and test.patients is not None,
    }
    found = []
    for level in (level for level, is_known in known.items() if is_known):
        result = pool(test, fit_pooling(validation, level, positive, seed))
        words = result.reason or f"{result.how}; tiles are pooled by {result.rule.method}. {result.rule.reason}."
        found.append(
            PooledSection(
                unit=level,
                num_units=len(result.label_U),
                rule=result.rule,
                figures=judge_pooled(result, num_resamples, seed),
                sentence=words[:1].upper() + words[1:],
            )
        )
    return tuple(found)


def calibration_section(
    choice: CalibrationChoice, raw: Predictions, positive: int | None, resampling: Resampling
) -> CalibrationSection:
    """Judges the probabilities of test as the network gives them, and as calibrated."""
    units, seed = resampling.units, resampling.seed

    def figures(probability_NK: Floats) -> CalibrationFigures:
        tally = calibration_tally(probability_NK, raw.labels, positive, units)
        probability_N, happened_N = events(probability_NK, raw.labels, positive)
        return CalibrationFigures(
            figures=estimate([tally], *resampling),
            parts=brier_parts(probability_N, happened_N),
            line=calibration_line(probability_N, happened_N, units),
            test=calibration_test(probability_N, happened_N, units, seed),
            diagram=reliability_diagram(probability_N, happened_N, "mass", units, seed),
        )

    event = "the class named is the true one" if positive is None else f"the tile is {raw.classes[positive]}"
    before = figures(raw.probabilities)
    none_kept = choice.calibration.kind == "none"
    after = before if none_kept else figures(choice.calibration.apply(raw.probabilities))
    return CalibrationSection(choice=choice, event=event, before=before, after=after)


def fit_rules(validation: Predictions, alpha: float) -> dict[str, ConformalRule]:
    """Fits prediction sets of every kind that validation allows."""
    kinds: list[Kind] = ["marginal", "class", *(["site"] if validation.sites is not None else [])]  # type: ignore[list-item]
    return {kind: fit_conformal(validation, alpha, kind) for kind in kinds}


def abstention_section(
    rules: Mapping[str, ConformalRule],
    shipped: Kind,
    selective: SelectiveRule,
    test: Predictions,
    point: OperatingPoint | None,
    resampling: Resampling,
) -> AbstentionSection:
    """Judges sets and confident answers on test."""
    confidence_N = confidence(test.probabilities, test.classes, point)
    wrong_N = decide(test.probabilities, test.classes, point) != test.labels
    curve = risk_coverage(confidence_N, wrong_N)
    return AbstentionSection(
        shipped=shipped,
        rules=dict(rules),
        sets={kind: judge_sets(rule, test, *resampling) for kind, rule in rules.items()},
        selective=selective,
        answered=judge_selective(selective, test, point, *resampling),
        coverage_T=tuple(curve.coverage_T.tolist()),
        risk_T=tuple(curve.risk_T.tolist()),
    )


def probes(test: Predictions, features_NF: NDArray[np.float32], colours_NF: Floats, seed: int) -> tuple[OriginProbe, ...]:
    """Asks the model's features for the site and for the patient of each test tile, where these are known."""
    found = []
    both = (features_NF, colours_NF)
    if test.sites is not None:
        sites = [None if site == UNKNOWN else site for site in test.sites.tolist()]
        patients = None if test.patients is None else test.patients.tolist()
        found.append(probe_origin("site", sites, patients, both, _NUM_PERMUTATIONS, seed))
    if test.patients is not None:
        slides = None if test.slides is None else test.slides.tolist()
        found.append(probe_origin("patient", test.patients.tolist(), slides, both, _NUM_PERMUTATIONS, seed))
    return tuple(found)
