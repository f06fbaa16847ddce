"""Whether probabilities are further from frequencies than chance explains: the reliability diagram with its band, and a test.

Both simulate what a calibrated model with the same probabilities would show (Bröcker and Smith 2007). Independent tiles draw
their events from the probabilities. Tiles of a patient resemble each other, so there each patient's surprise, event less
probability, gets a random sign as a whole (the wild cluster bootstrap of Cameron, Gelbach and Miller 2008): any likeness of
the tiles within a patient is kept. What it leaves out: patients are taken as independent, though those of a site may be alike,
and few patients have few signs (5 have 16 different pairs), so that with fewer than about 6 nothing can be found.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.evaluation.intervals import LEVEL, Units, wilson
from historay.evaluation.metrics import Floats
from historay.evaluation.reliability import NUM_BINS, Binning, bin_of

_NUM_SIMULATIONS = 2000
# Events of tiles with almost the same probability are drawn as one binomial count. Over 256 equal shares of the tiles its
# variance is too large by that of the probabilities in a share, some 1e-5 of it.
_NUM_SHARES = 256


class ReliabilityBin(BaseModel):
    """One bin of the diagram that holds tiles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    mean_probability: float
    frequency: float  # of the event
    band_low: float  # where 95 % of the frequencies of a calibrated model would lie, in this bin alone
    band_high: float
    wilson_low: float  # 95 % interval of the frequency; takes tiles as independent
    wilson_high: float


class CalibrationTest(BaseModel):
    """The calibration error over equal-mass bins, against that of a calibrated model with the same probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: float
    expected: float  # mean of the simulated errors: what is only noise
    limit: float  # their 95 % quantile
    p_value: float
    miscalibrated: bool  # error above limit
    sentence: str


def reliability_diagram(
    probability_N: Floats, happened_N: NDArray[np.bool_], binning: Binning, units: Units, seed: int
) -> tuple[ReliabilityBin, ...]:
    """Returns the bins that hold tiles, by rising probability."""
    bin_N = bin_of(probability_N, binning)
    simulated_SB = _simulated_surprise(probability_N, happened_N, bin_N, units, seed)
    count_B = np.bincount(bin_N, minlength=NUM_BINS)
    sum_B, events_B = (np.bincount(bin_N, value, NUM_BINS) for value in (probability_N, happened_N))
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    bins = []
    for b in np.flatnonzero(count_B):
        count, mean = int(count_B[b]), float(sum_B[b] / count_B[b])
        band_low, band_high = np.clip(mean + np.quantile(simulated_SB[:, b], tails) / count, 0, 1).tolist()
        wilson_low, wilson_high = wilson(float(events_B[b]), count)
        bins.append(
            ReliabilityBin(
                count=count,
                mean_probability=mean,
                frequency=float(events_B[b] / count),
                band_low=band_low,
                band_high=band_high,
                wilson_low=wilson_low,
                wilson_high=wilson_high,
            )
        )
    return tuple(bins)


def calibration_test(probability_N: Floats, happened_N: NDArray[np.bool_], units: Units, seed: int) -> CalibrationTest:
    """Tests whether the probabilities can be frequencies; of a calibrated model it finds 1 in 20 miscalibrated.

    Where patients are unknown and tiles are taken as units, likeness of tiles within a patient makes it find more than that.
    Many tiles show a small error; ``error`` says whether it matters.
    """
    bin_N = bin_of(probability_N, "mass")
    surprise_B = np.bincount(bin_N, weights=happened_N - probability_N, minlength=NUM_BINS)
    error = float(np.abs(surprise_B).sum() / len(bin_N))
    simulated_SB = _simulated_surprise(probability_N, happened_N, bin_N, units, seed)
    simulated_S = np.abs(simulated_SB).sum(axis=1) / len(bin_N)
    limit, expected = float(np.quantile(simulated_S, LEVEL)), float(simulated_S.mean())
    # The signs can repeat the tiles as they are; rounding must not decide whether that is as much as was seen.
    p_value = float((1 + np.sum(simulated_S >= error * (1 - 1e-9))) / (1 + len(simulated_S)))
    found = error > limit * (1 + 1e-9)
    return CalibrationTest(
        error=error,
        expected=expected,
        limit=limit,
        p_value=p_value,
        miscalibrated=found,
        sentence=_sentence(found, error, expected, limit, p_value, units),
    )


def _sentence(found: bool, error: float, expected: float, limit: float, p_value: float, units: Units) -> str:
    what = "MISCALIBRATED" if found else "No miscalibration is shown"
    caveat = "" if units.unit == "patient" else "; patients are unknown, and tiles that are alike make this come too easily"
    return (
        f"{what}: the calibration error is {error:.3f}, where a calibrated model with the same probabilities would have "
        f"{expected:.3f} on average and at most {limit:.3f} in 95 of 100 cases (p={p_value:.2g}{caveat})."
    )


def _simulated_surprise(
    probability_N: Floats, happened_N: NDArray[np.bool_], bin_N: NDArray[np.int64], units: Units, seed: int
) -> Floats:
    """Simulates the sum over each bin's tiles of event less probability, were the model calibrated: (S, B)."""
    generator = np.random.default_rng(seed)
    if units.unit == "patient":
        cell_N = units.group_N * NUM_BINS + bin_N
        surprise = np.bincount(cell_N, weights=happened_N - probability_N, minlength=units.num_groups * NUM_BINS)
        signs_SG = generator.choice(np.array([-1.0, 1.0]), size=(_NUM_SIMULATIONS, units.num_groups))
        return np.asarray(signs_SG @ surprise.reshape(units.num_groups, NUM_BINS))
    share_N = np.searchsorted(_share_edges(probability_N), probability_N)
    _, cell_N, count_C = np.unique(bin_N * (_NUM_SHARES + 1) + share_N, return_inverse=True, return_counts=True)
    mean_C = np.minimum(np.bincount(cell_N, weights=probability_N) / count_C, 1.0)
    surprise_SC = generator.binomial(count_C, mean_C, size=(_NUM_SIMULATIONS, len(count_C))) - count_C * mean_C
    bin_C = np.zeros(len(count_C), dtype=np.int64)
    bin_C[cell_N] = bin_N
    return np.asarray(surprise_SC @ (bin_C[:, None] == np.arange(NUM_BINS)).astype(np.float64))


def _share_edges(probability_N: Floats) -> Floats:
    return np.unique(np.quantile(probability_N, np.linspace(0, 1, _NUM_SHARES + 1)[1:-1]))
