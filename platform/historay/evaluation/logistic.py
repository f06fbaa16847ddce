"""Logistic regression without a penalty on a handful of columns, for maps and lines of calibration."""

from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray

from historay.evaluation.metrics import Floats

_MAX_STEPS = 100  # far from the maximum some are halved; otherwise 5 to 10 do
_TOLERANCE = 1e-10


class LogisticFit(NamedTuple):
    """Weights (D,) at the maximum of the likelihood, each tile's gradient there (N, D), and the information (D, D)."""

    weight_D: Floats
    gradient_ND: Floats
    information_DD: Floats


def fit_logistic(
    design_ND: Floats, target_N: Floats | NDArray[np.bool_], offset_N: Floats | None = None, start_D: Floats | None = None
) -> LogisticFit:
    """Newton's method with halved steps; targets lie in 0 to 1, the offset joins the logit.

    Where the maximum is not unique the nearest to the start is taken; where there is none the weights have grown large.
    """
    offset_N = np.zeros(len(target_N)) if offset_N is None else offset_N
    weight_D = np.zeros(design_ND.shape[1]) if start_D is None else start_D

    def loss(weight: Floats) -> float:
        logit_N = offset_N + design_ND @ weight
        return float(np.mean(np.logaddexp(0, logit_N) - target_N * logit_N))

    for _ in range(_MAX_STEPS):
        gradient_ND, information_DD = _derivatives(design_ND, target_N, offset_N + design_ND @ weight_D)
        step_D = np.linalg.lstsq(information_DD, gradient_ND.sum(axis=0), rcond=1e-12)[0]
        before = loss(weight_D)
        scale = next((half for half in 0.5 ** np.arange(30) if loss(weight_D - half * step_D) <= before), 0.0)
        weight_D = weight_D - scale * step_D
        if np.abs(scale * step_D).max() < _TOLERANCE:
            break
    return LogisticFit(weight_D, *_derivatives(design_ND, target_N, offset_N + design_ND @ weight_D))


def _derivatives(design_ND: Floats, target_N: Floats | NDArray[np.bool_], logit_N: Floats) -> tuple[Floats, Floats]:
    fitted_N = scipy.special.expit(logit_N)
    weighted_ND = design_ND * (fitted_N * (1 - fitted_N))[:, None]
    return design_ND * (fitted_N - target_N)[:, None], weighted_ND.T @ design_ND
