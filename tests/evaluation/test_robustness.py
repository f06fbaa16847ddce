"""A loss under mild spoiling is told, with its size and what caused it; a model that does not mind has none to tell."""

import numpy as np
import pytest
import sklearn.metrics

from historay.evaluation.predictions import Predictions
from historay.evaluation.robustness import judge_robustness


def probabilities_of(score: np.ndarray) -> np.ndarray:
    positive = 1 / (1 + np.exp(-score))
    return np.column_stack([1 - positive, positive])


def test_a_model_that_blur_blinds_is_found_and_one_that_jpeg_leaves_alone_is_not() -> None:
    generator = np.random.default_rng(0)
    labels = (np.arange(600) % 2).astype(np.int64)
    patients = np.repeat([f"p{number}" for number in range(30)], 20)
    score = 3.0 * labels + generator.normal(size=600)
    noise = generator.normal(size=600)
    spoilt = {
        "blur": {severity: probabilities_of(score + 1.5 * severity * noise) for severity in range(1, 6)},
        "jpeg": {severity: probabilities_of(score + 0.01 * severity * noise) for severity in range(1, 6)},
    }
    ids = np.array([f"{number:03d}" for number in range(600)])
    clean = Predictions(ids, labels, probabilities_of(score), patients, ("normal", "tumour"))
    found = judge_robustness(clean, spoilt, [1], num_resamples=400, seed=0)
    assert found.clean.value == pytest.approx(sklearn.metrics.roc_auc_score(labels, score))
    blur, jpeg = found.curves
    aucs = [point.roc_auc.value for point in blur.points]
    assert aucs == sorted(aucs, reverse=True)  # type: ignore[type-var]
    assert [point.level for point in jpeg.points] == [80, 60, 40, 20, 10]
    (told,) = found.weaknesses()
    assert "Blur (standard deviation of the blur, pixels: 1.5) costs" in told
