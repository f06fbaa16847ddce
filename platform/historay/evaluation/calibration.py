"""Maps that turn a model's probabilities into frequencies, fitted on validation and kept only where they help there."""

from typing import Literal

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from historay.evaluation.intervals import Unit
from historay.evaluation.logistic import fit_logistic
from historay.evaluation.metrics import Floats
from historay.evaluation.reliability import inside, log_losses

Kind = Literal["none", "temperature", "beta", "isotonic"]
Labels = NDArray[np.int64]

_MAX_FOLDS, _MIN_FOLDS = 10, 3
# With fewer, isotonic maps follow single tiles: seen to be kept on 450 tiles of 6 patients, and to double the log loss of test.
_ISOTONIC_TILES, _ISOTONIC_PATIENTS = 1000, 20
_LOG_TEMPERATURES = (-3.0, 3.0)  # 0.05 to 20
# The two slopes of a beta map stay above 0, so that it keeps the ranking.
_MIN_SLOPE = 1e-3
_NEEDS = {"none": None, "temperature": "temperature", "beta": "beta", "isotonic": "knots"}


class Calibration(BaseModel):
    """A fitted map of probabilities; it is part of a bundle's model.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "none"
    positive: int | None = None  # beta and isotonic: index of the class whose probability is mapped
    temperature: float | None = Field(default=None, gt=0)  # logits are divided by it; above 1 the model was too sure
    beta: tuple[float, float, float] | None = None  # a, b, c: logit = a ln p - b ln(1 - p) + c (Kull et al. 2017)
    knots: tuple[tuple[float, float], ...] | None = None  # isotonic: (probability, calibrated), rising, linear between

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "Calibration":
        given = {name for name in ("temperature", "beta", "knots") if getattr(self, name) is not None}
        needed = {_NEEDS[self.kind]} - {None}
        if given != needed:
            raise ValueError(f"calibration of kind {self.kind} needs {needed or 'no parameters'}, got {given or 'none'}")
        if (self.kind in {"beta", "isotonic"}) != (self.positive is not None):
            raise ValueError(f"calibration of kind {self.kind} has positive={self.positive}; beta and isotonic need it alone")
        return self

    def apply(self, probability_NK: Floats) -> Floats:
        """Maps rows of probabilities to rows within (0, 1) that sum to 1; kind ``none`` returns its argument.

        Temperature keeps the most probable class of every row. Temperature for two classes and beta rise strictly, so that
        ROC-AUC stays. Isotonic only does not fall: tiles between two knots of equal height tie, and ROC-AUC may move.
        """
        if self.kind == "none":
            return probability_NK
        if self.temperature is not None:
            return inside(scipy.special.softmax(np.log(inside(probability_NK)) / self.temperature, axis=1))
        assert self.positive is not None
        mapped_N = self._of_positive(probability_NK, self.positive)
        columns = (mapped_N, 1 - mapped_N) if self.positive == 0 else (1 - mapped_N, mapped_N)
        return inside(np.column_stack(columns))

    def in_words(self) -> str:
        """Describes the map for a reader."""
        if self.temperature is not None:
            return f"temperature {self.temperature:.3g}"
        if self.beta is not None:
            return "beta with a={:.3g}, b={:.3g}, c={:.3g}".format(*self.beta)
        if self.knots is not None:
            levels = len({height for _, height in self.knots})
            return f"isotonic with {levels} levels; tiles of one level tie, so ROC-AUC may differ from that of the raw model"
        return "none"

    def _of_positive(self, probability_NK: Floats, positive: int) -> Floats:
        if self.beta is not None:
            return np.asarray(scipy.special.expit(_beta_features(probability_NK, positive) @ np.array(self.beta)))
        assert self.knots is not None
        probability, height = np.array(self.knots).T
        return np.asarray(np.interp(probability_NK[:, positive], probability, height))


class Candidate(BaseModel):
    """One map as tried on validation; log losses in nats a tile, ``nll_after`` on folds that it was not fitted on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    nll_before: float
    nll_after: float
    gain: float  # before less after
    standard_error: float  # of the gain, from fold to fold
    kept: bool


class CalibrationChoice(BaseModel):
    """The map that is kept, fitted on all of validation, and how each candidate did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: Calibration
    candidates: tuple[Candidate, ...]
    num_folds: int
    unit: Unit
    reason: str


def fit_calibration(
    probability_NK: Floats, label_N: Labels, patients: NDArray[np.str_] | None, positive: int | None
) -> CalibrationChoice:
    """Tries temperature, and for two classes beta and isotonic, and keeps one only if validation shows that it helps.

    Up to 10 folds, none of which splits a patient, give each candidate's log loss on tiles that it was not fitted on. From
    none over temperature and beta to isotonic, the more flexible replaces the simpler only if its mean gain over it, and that
    over none, is above the gain's standard error from fold to fold. Isotonic is tried from 1,000 tiles and 20 patients on.
    With fewer than 3 patients, or where a fold would be fitted on a single class, none is kept. ``positive`` is the class
    that beta and isotonic map; None tries temperature alone.
    """
    unit: Unit = "tile" if patients is None else "patient"
    fold_N = _folds(probability_NK, label_N, patients)
    num_folds = int(fold_N.max()) + 1
    if num_folds < _MIN_FOLDS or any(len(np.unique(label_N[fold_N != fold])) < 2 for fold in range(num_folds)):
        reason = f"no calibration: {num_folds} {unit}s are too few" if num_folds < _MIN_FOLDS else _ONE_CLASS
        return CalibrationChoice(calibration=Calibration(), candidates=(), num_folds=num_folds, unit=unit, reason=reason)
    kinds: tuple[Kind, ...] = ("temperature",)
    if positive is not None:
        enough = len(label_N) >= _ISOTONIC_TILES and (patients is None or len(np.unique(patients)) >= _ISOTONIC_PATIENTS)
        kinds = ("temperature", "beta", "isotonic") if enough else ("temperature", "beta")
    loss = {kind: _held_out_losses(kind, probability_NK, label_N, fold_N, positive) for kind in ("none", *kinds)}
    chosen: Kind = "none"
    for kind in kinds:
        if all(np.greater(*_gain(loss[simpler], loss[kind])) for simpler in ("none", chosen)):
            chosen = kind
    calibration = fit_map(chosen, probability_NK, label_N, positive)
    candidates = tuple(_candidate(kind, loss["none"], loss[kind], kept=kind == chosen) for kind in kinds)
    reason = _reason(calibration, candidates)
    return CalibrationChoice(calibration=calibration, candidates=candidates, num_folds=num_folds, unit=unit, reason=reason)


_ONE_CLASS = "no calibration: leaving out a fold of patients leaves a single class; spread the classes over more patients"


def fit_map(kind: Kind, probability_NK: Floats, label_N: Labels, positive: int | None) -> Calibration:
    """Fits one kind of map; beta and isotonic need ``positive``."""
    if kind == "none":
        return Calibration()
    if kind == "temperature":
        return _fit_temperature(probability_NK, label_N)
    assert positive is not None
    return (_fit_beta if kind == "beta" else _fit_isotonic)(probability_NK, label_N, positive)


def _fit_temperature(probability_NK: Floats, label_N: Labels) -> Calibration:
    """Guo et al. 2017: the log loss is convex in 1/T, so it has one minimum."""
    log_NK, target_NK = np.log(inside(probability_NK)), _targets(label_N, probability_NK.shape[1])

    def loss(log_temperature: float) -> float:
        logit_NK = log_NK / np.exp(log_temperature)
        return float(np.mean(scipy.special.logsumexp(logit_NK, axis=1) - (target_NK * logit_NK).sum(axis=1)))

    found = scipy.optimize.minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-7})
    return Calibration(kind="temperature", temperature=float(np.exp(found.x)))


def _fit_beta(probability_NK: Floats, label_N: Labels, positive: int) -> Calibration:
    """A slope that would be negative is held at almost 0, as in Kull et al., and the rest fitted again."""
    features_N3, target_N = _beta_features(probability_NK, positive), _targets(label_N, 2)[:, positive]
    weight_3, free_3 = np.array([1.0, 1.0, 0.0]), np.ones(3, dtype=bool)
    for _ in range(3):  # at most both slopes are held, one after the other
        offset_N = features_N3[:, ~free_3] @ weight_3[~free_3]
        weight_3[free_3] = fit_logistic(features_N3[:, free_3], target_N, offset_N, weight_3[free_3]).weight_D
        negative_3 = free_3 & np.array([weight_3[0] < _MIN_SLOPE, weight_3[1] < _MIN_SLOPE, False])
        if not negative_3.any():
            break
        held = int(weight_3[:2].argmin())
        weight_3[held], free_3[held] = _MIN_SLOPE, False
    a, b, c = weight_3.tolist()
    return Calibration(kind="beta", positive=positive, beta=(a, b, c))


def _fit_isotonic(probability_NK: Floats, label_N: Labels, positive: int) -> Calibration:
    """Pools neighbours that would fall; a knot at the first and the last probability of each pool, as scikit-learn has it."""
    probability, position_N, count = np.unique(probability_NK[:, positive], return_inverse=True, return_counts=True)
    mean = np.bincount(position_N, weights=_targets(label_N, 2)[:, positive]) / count
    pools = scipy.optimize.isotonic_regression(mean, weights=count)
    # Of a pool of one probability both knots are the same.
    ends = np.unique(np.concatenate([pools.blocks[:-1], pools.blocks[1:] - 1]))
    knots = tuple(zip(probability[ends].tolist(), pools.x[ends].tolist(), strict=True))
    return Calibration(kind="isotonic", positive=positive, knots=knots)


def _beta_features(probability_NK: Floats, positive: int) -> Floats:
    """ln p, -ln(1 - p) and 1, for p of the positive class: (N, 3)."""
    log_N2 = np.log(inside(probability_NK))
    return np.column_stack([log_N2[:, positive], -log_N2[:, 1 - positive], np.ones(len(log_N2))])


def _targets(label_N: Labels, num_classes: int) -> Floats:
    """Platt's targets (1999), (N, K): as if one more tile of each class were seen, so that no map ever reaches 0 or 1."""
    num_N = np.bincount(label_N, minlength=num_classes)[label_N][:, None]
    return np.asarray((1 + num_N * (label_N[:, None] == np.arange(num_classes))) / (num_N + num_classes))


def _folds(probability_NK: Floats, label_N: Labels, patients: NDArray[np.str_] | None) -> NDArray[np.int64]:
    """Numbers each tile's fold (N,); the order of the tiles has no influence.

    Patients go, the largest first, to the fold with the fewest tiles. Tiles are dealt at random.
    """
    if patients is None:
        order = np.lexsort((*probability_NK.T, label_N))
        fold_N = np.empty(len(label_N), dtype=np.int64)
        fold_N[order] = np.random.default_rng(0).permutation(len(label_N)) % _MAX_FOLDS
        return fold_N
    _, patient_N, count = np.unique(patients, return_inverse=True, return_counts=True)
    num_tiles = np.zeros(min(_MAX_FOLDS, len(count)), dtype=np.int64)
    fold_of_patient = np.empty(len(count), dtype=np.int64)
    for patient in np.argsort(-count, kind="stable"):
        fold_of_patient[patient] = num_tiles.argmin()
        num_tiles[fold_of_patient[patient]] += count[patient]
    return np.asarray(fold_of_patient[patient_N])


def _held_out_losses(
    kind: Kind, probability_NK: Floats, label_N: Labels, fold_N: NDArray[np.int64], positive: int | None
) -> Floats:
    """Returns each fold's mean log loss (F,) under the map that was fitted on the other folds."""
    losses = []
    for fold in range(int(fold_N.max()) + 1):
        held = fold_N == fold
        fitted = fit_map(kind, probability_NK[~held], label_N[~held], positive)
        losses.append(log_losses(fitted.apply(probability_NK[held]), label_N[held]).mean())
    return np.array(losses)


def _gain(before_F: Floats, after_F: Floats) -> tuple[float, float]:
    """Mean gain over the folds, and its standard error."""
    gain_F = before_F - after_F
    return float(gain_F.mean()), float(gain_F.std(ddof=1) / np.sqrt(len(gain_F)))


def _candidate(kind: Kind, before_F: Floats, after_F: Floats, *, kept: bool) -> Candidate:
    gain, error = _gain(before_F, after_F)
    before, after = float(before_F.mean()), float(after_F.mean())
    return Candidate(kind=kind, nll_before=before, nll_after=after, gain=gain, standard_error=error, kept=kept)


def _reason(calibration: Calibration, candidates: tuple[Candidate, ...]) -> str:
    for one in candidates:
        if one.kept:
            return (
                f"{calibration.in_words()}: on folds of validation that it was not fitted on the log loss fell from "
                f"{one.nll_before:.4f} to {one.nll_after:.4f}, by {one.gain:.4f} (standard error {one.standard_error:.4f})"
            )
    return (
        "no calibration: on folds of validation that they were not fitted on, none lowers the log loss by more than its noise"
    )
