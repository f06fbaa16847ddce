"""How the ranking holds when tiles are spoilt in ways that happen between microscope and model."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from historay.data.corruptions import CORRUPTIONS, SEVERITIES
from historay.evaluation.intervals import Estimate, Named, Tally, auc_tally, estimate, units_of
from historay.evaluation.metrics import Floats, mean_over_classes
from historay.evaluation.predictions import Predictions

_WORTH_TELLING = 0.05  # of ROC-AUC lost
_MILD = 3  # the highest severity that a laboratory's daily work may well bring


class SpoiltFigure(BaseModel):
    """ROC-AUC at one severity, and what is lost against the same tiles unspoilt (paired)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: int
    level: float  # in the unit of the curve's parameter
    roc_auc: Estimate
    loss: Estimate


class RobustnessCurve(BaseModel):
    """One way to spoil tiles, from slight to severe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    parameter: str  # what is varied, with its unit
    points: tuple[SpoiltFigure, ...]


class Robustness(BaseModel):
    """Every curve, over one seeded choice of test tiles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_tiles: int
    clean: Estimate
    curves: tuple[RobustnessCurve, ...]

    def weaknesses(self) -> tuple[str, ...]:
        """Says where a mild spoiling costs at least 0.05 of ROC-AUC beyond doubt, worst first."""
        found = []
        for curve in self.curves:
            shown = [p for p in curve.points if p.severity <= _MILD and p.loss.low is not None and p.loss.low > 0]
            worst = max(shown, key=lambda point: point.loss.value or 0.0, default=None)
            if worst is not None and worst.loss.value is not None and worst.loss.value >= _WORTH_TELLING:
                text = f"{curve.title} ({curve.parameter}: {worst.level:g}) costs {worst.loss.value:.3f} of ROC-AUC"
                found.append((worst.loss.value, text))
        return tuple(text for _, text in sorted(found, reverse=True))


def judge_robustness(
    clean: Predictions,
    spoilt: Mapping[str, Mapping[int, Floats]],
    chosen: list[int],
    *,
    num_resamples: int,
    seed: int,
) -> Robustness:
    """Estimates the mean ROC-AUC over the ``chosen`` classes for each kind and severity.

    ``spoilt`` holds the probabilities (N, K) of the same tiles, by name in CORRUPTIONS and severity.
    """
    labels_N = clean.labels
    units = units_of(clean.patients, len(labels_N), seed)

    def tallies(name: str, probability_NK: Floats) -> list[Tally]:
        return [auc_tally(f"{name}:{k}", labels_N == k, probability_NK[:, k], units) for k in chosen]

    keys = [(kind, severity) for kind in spoilt for severity in SEVERITIES if severity in spoilt[kind]]
    every = tallies("clean", clean.probabilities)
    for kind, severity in keys:
        every += tallies(f"{kind}-{severity}", spoilt[kind][severity])

    def derive(named: Named) -> Named:
        mean = {name: mean_over_classes([named[f"{name}:{k}"] for k in chosen]) for name in ["clean", *map(_name, keys)]}
        return mean | {f"loss-{_name(key)}": mean["clean"] - mean[_name(key)] for key in keys}

    found = estimate(every, units, num_resamples, seed, derive, undefined="one class has no tiles")
    return Robustness(
        num_tiles=len(labels_N),
        clean=found["clean"],
        curves=tuple(_curve(kind, [key for key in keys if key[0] == kind], found) for kind in spoilt),
    )


def _name(key: tuple[str, int]) -> str:
    return f"{key[0]}-{key[1]}"


def _curve(kind: str, keys: list[tuple[str, int]], found: Mapping[str, Estimate]) -> RobustnessCurve:
    corruption = CORRUPTIONS[kind]
    points = tuple(
        SpoiltFigure(
            severity=key[1],
            level=corruption.levels[SEVERITIES.index(key[1])],
            roc_auc=found[_name(key)],
            loss=found[f"loss-{_name(key)}"],
        )
        for key in keys
    )
    return RobustnessCurve(name=kind, title=corruption.title, parameter=corruption.parameter, points=points)
