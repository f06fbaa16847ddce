"""How far probabilities are from frequencies: calibration error, Brier score and its parts, log loss, calibration line.

Most figures are of one event a tile, with its probability: of two classes that the tile is of the positive one, of more that
the most probable class is the true one (top-label). ``events`` makes the pair; a function that takes (N, K) says what it does.
"""

from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.evaluation.intervals import LEVEL, Estimate, Named, Tally, Units, group_sums
from historay.evaluation.logistic import fit_logistic
from historay.evaluation.metrics import Floats, ratio

NUM_BINS = 15  # Guo et al. 2017
Binning = Literal["width", "mass"]

# A probability of 0 or 1 has no logit, and a single tile would make the log loss infinite.
_EDGE = 1e-12
# Beyond these the events are told apart without error, or nearly, and the likelihood has no maximum.
_MAX_WEIGHT, _MAX_CONDITION = 50.0, 1e12


class BrierParts(BaseModel):
    """Murphy's decomposition (1973) over bins, with the within-bin terms of Stephenson et al. (2008) that make it exact.

    brier = reliability - resolution + uncertainty + within_variance - within_covariance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    brier: float
    reliability: float  # squared distance of mean probability and frequency; 0 is best
    resolution: float  # variance of the frequencies between bins; more is better
    uncertainty: float  # of the event itself, whatever the model says
    within_variance: float  # of the probabilities in a bin
    within_covariance: float  # twice that of probability and event in a bin


class CalibrationLine(BaseModel):
    """The logit of the event's frequency as a line over the logit of its probability (Cox 1958)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slope: Estimate  # 1 is right, below 1 the model is too sure
    intercept: Estimate  # of that line; 0 is right
    in_the_large: Estimate  # intercept with the slope held at 1: below 0 the probabilities are too high on the whole


def events(probability_NK: Floats, label_N: NDArray[np.int64], positive: int | None) -> tuple[Floats, NDArray[np.bool_]]:
    """Returns the probability of each tile's event (N,) and whether it happened; ``positive`` None takes the top label."""
    if positive is not None:
        return probability_NK[:, positive], label_N == positive
    top_N = probability_NK.argmax(axis=1)
    return probability_NK[np.arange(len(top_N)), top_N], top_N == label_N


def inside(probability_NK: Floats) -> Floats:
    """Squeezes probabilities (..., K) by 1e-12 into the open interval; sums and order stay."""
    return np.asarray(_EDGE + (1 - probability_NK.shape[-1] * _EDGE) * probability_NK)


def log_losses(probability_NK: Floats, label_N: NDArray[np.int64]) -> Floats:
    """Returns each tile's negative log likelihood in nats (N,); a probability of 0 costs 27.6."""
    return np.asarray(-np.log(inside(probability_NK)[np.arange(len(label_N)), label_N]))


def brier_scores(probability_NK: Floats, label_N: NDArray[np.int64], positive: int | None) -> Floats:
    """Returns each tile's squared error (N,): of the positive class, 0 to 1; without one summed over the classes, 0 to 2."""
    error_NK = probability_NK - (label_N[:, None] == np.arange(probability_NK.shape[1]))
    return np.asarray(error_NK[:, positive] ** 2 if positive is not None else (error_NK**2).sum(axis=1))


def inner_edges(probability_N: Floats, binning: Binning) -> Floats:
    """Returns the 14 edges between 15 bins: of equal width, or at the quantiles, so that bins hold equally many tiles."""
    shares = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    return shares if binning == "width" else np.asarray(np.percentile(probability_N, 100 * shares))


def bin_of(probability_N: Floats, binning: Binning) -> NDArray[np.int64]:
    """Numbers each tile's bin; a bin holds its upper edge, as in scikit-learn, so equal probabilities share one."""
    return np.searchsorted(inner_edges(probability_N, binning), probability_N).astype(np.int64)


def calibration_error(probability_N: Floats, happened_N: NDArray[np.bool_], binning: Binning) -> float:
    """Expected calibration error: the mean over tiles of how far their bin's mean probability is from its frequency.

    It is above 0 for a calibrated model too, the more so the fewer tiles; ``calibration_test`` says how far.
    """
    residual_B = np.bincount(bin_of(probability_N, binning), weights=probability_N - happened_N)
    return float(np.abs(residual_B).sum() / len(probability_N))


def brier_parts(probability_N: Floats, happened_N: NDArray[np.bool_], binning: Binning = "mass") -> BrierParts:
    """Decomposes the Brier score of one event a tile."""
    bin_N, happened = bin_of(probability_N, binning), happened_N.astype(np.float64)
    count_B = np.bincount(bin_N, minlength=NUM_BINS)
    mean_B, share_B = (ratio(np.bincount(bin_N, value, NUM_BINS), count_B) for value in (probability_N, happened))
    spread_N, surprise_N = probability_N - mean_B[bin_N], happened - share_B[bin_N]
    base = float(happened.mean())
    return BrierParts(
        brier=float(np.mean((probability_N - happened) ** 2)),
        reliability=float(np.mean((mean_B - share_B)[bin_N] ** 2)),
        resolution=float(np.mean((share_B[bin_N] - base) ** 2)),
        uncertainty=base * (1 - base),
        within_variance=float(np.mean(spread_N**2)),
        within_covariance=float(2 * np.mean(spread_N * surprise_N)),
    )


def calibration_tally(probability_NK: Floats, label_N: NDArray[np.int64], positive: int | None, units: Units) -> Tally:
    """Tallies ece_width, ece_mass, brier and nll; the quantiles of ece_mass are those of all tiles in every resample.

    A resample has a larger calibration error than the tiles it is drawn from, by about the noise of the bins. BCa corrects
    for it in part; whether the error is more than noise is for ``calibration_test`` to say.
    """
    probability_N, happened_N = events(probability_NK, label_N, positive)
    residual_N = probability_N - happened_N
    by_bin = [
        np.bincount(cell_N, residual_N, units.num_groups * NUM_BINS).reshape(units.num_groups, NUM_BINS)
        for cell_N in (units.group_N * NUM_BINS + bin_of(probability_N, binning) for binning in ("width", "mass"))
    ]
    per_tile = [brier_scores(probability_NK, label_N, positive), log_losses(probability_NK, label_N), np.ones(len(label_N))]
    sums = np.hstack([*by_bin, group_sums(per_tile, units)])

    def figures(sums_RD: Floats) -> Named:
        width, mass, rest = np.split(sums_RD, [NUM_BINS, 2 * NUM_BINS], axis=1)
        parts = {"ece_width": np.abs(width).sum(axis=1), "ece_mass": np.abs(mass).sum(axis=1)}
        parts |= {"brier": rest[:, 0], "nll": rest[:, 1]}
        return {name: ratio(part, rest[:, 2]) for name, part in parts.items()}

    return Tally(sums, figures, borne_by={name: [slice(-1, None)] for name in ("ece_width", "ece_mass", "brier", "nll")})


def calibration_line(probability_N: Floats, happened_N: NDArray[np.bool_], units: Units) -> CalibrationLine:
    """Fits the line by maximum likelihood; intervals from the sandwich variance over units, so patients may cluster."""
    if happened_N.all() or not happened_N.any():
        missing = Estimate(value=None, low=None, high=None, reason="the event happened on all tiles, or on none")
        return CalibrationLine(slope=missing, intercept=missing, in_the_large=missing)
    pair = inside(np.column_stack([probability_N, 1 - probability_N]))
    logit_N = np.log(pair[:, 0] / pair[:, 1])
    ones = np.ones((len(logit_N), 1))
    intercept, slope = _logistic(np.column_stack([ones, logit_N]), np.zeros(len(logit_N)), happened_N, units)
    return CalibrationLine(slope=slope, intercept=intercept, in_the_large=_logistic(ones, logit_N, happened_N, units)[0])


def _logistic(design_ND: Floats, offset_N: Floats, happened_N: NDArray[np.bool_], units: Units) -> list[Estimate]:
    """Estimates each weight of a logistic regression; Student's t over the units."""
    fit = fit_logistic(design_ND, happened_N, offset_N)
    if np.linalg.cond(fit.information_DD) > _MAX_CONDITION or np.abs(fit.weight_D).max() > _MAX_WEIGHT:
        reason = "no finite line: the events are told apart without error, or all probabilities are the same"
        return [Estimate(value=None, low=None, high=None, reason=reason)] * len(fit.weight_D)
    num = units.num_groups
    if num < 2:
        reason = f"no interval: a single {units.unit}"
        return [Estimate(value=float(value), low=None, high=None, reason=reason) for value in fit.weight_D]
    spread_GD = group_sums(fit.gradient_ND.T, units) @ np.linalg.inv(fit.information_DD)
    deviation_D = np.sqrt((spread_GD**2).sum(axis=0) * num / (num - 1))
    half_D = scipy.stats.t.ppf((1 + LEVEL) / 2, num - 1) * deviation_D
    return [
        Estimate(value=float(value), low=float(value - half), high=float(value + half))
        for value, half in zip(fit.weight_D, half_D, strict=True)
    ]
