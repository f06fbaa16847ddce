"""DeLong's variance agrees with its definition, with the published example, and, by patients, with the bootstrap."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from historay.evaluation.delong import auc_by_delong, delong, difference_by_delong
from historay.evaluation.intervals import auc_tally, draw, units_of


def by_definition(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """DeLong et al. 1988, equations 3 to 6, pair by pair."""
    wins = [(s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive]) for s in scores]
    of_positives, of_negatives = np.stack([w.mean(axis=1) for w in wins]), np.stack([w.mean(axis=0) for w in wins])
    return np.cov(of_positives) / positive.sum() + np.cov(of_negatives) / (~positive).sum()


@given(st.integers(0, 10_000))
def test_the_covariance_is_that_of_the_definition_ties_included(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positive = np.arange(40) % 3 == 0
    scores = np.round(generator.normal(size=(2, 40)) + positive, 1)
    found = delong(positive, scores)
    np.testing.assert_allclose(found.covariance_MM, by_definition(positive, scores), atol=1e-12)
    expected = [sklearn.metrics.roc_auc_score(positive, score) for score in scores]
    np.testing.assert_allclose(found.auc_M, expected, atol=1e-12)


def test_the_published_example_of_hanley_and_mcneil_has_its_area_and_error() -> None:
    """Hanley and McNeil 1982, table I: 109 CT images in five grades; area 0.893, error by DeLong 0.0307 (as Stata prints)."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    grades = np.arange(1, 6)
    score = np.concatenate([np.repeat(grades, normal), np.repeat(grades, abnormal)]).astype(float)
    positive = np.arange(len(score)) >= sum(normal)
    found = delong(positive, score[None])
    assert found.auc_M[0] == pytest.approx(0.8932, abs=5e-5)
    assert np.sqrt(found.covariance_MM[0, 0]) == pytest.approx(0.0307, abs=5e-5)


def test_single_tiles_as_patients_give_delongs_own_variance() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(300) < 0.4
    score = generator.normal(size=(1, 300)) + positive
    plain, clustered = delong(positive, score), delong(positive, score, np.arange(300))
    # A tile is positive or negative, so its two parts never meet: only the cross term of sums is left, and it is zero.
    np.testing.assert_allclose(clustered.covariance_MM, plain.covariance_MM, rtol=1e-9)


def test_with_patients_the_variance_is_that_of_the_patient_bootstrap() -> None:
    generator = np.random.default_rng(1)
    patient = np.repeat(np.arange(150), 12)
    positive = generator.random(1800) < 0.5
    score = positive + np.repeat(generator.normal(size=150), 12) + generator.normal(size=1800)
    units = units_of(patient.astype(str), 1800, 0)
    drawn = draw([auc_tally("auc", positive, score, units)], units, 2000, 0).resampled["auc"]
    clustered = delong(positive, score[None], units.group_N).covariance_MM[0, 0]
    assert np.sqrt(clustered) == pytest.approx(drawn.std(), rel=0.06)


def test_an_interval_of_an_auc_stays_within_0_and_1_and_says_why_there_is_none() -> None:
    positive = np.array([True] * 20 + [False] * 20)
    near_perfect = np.where(positive, 1.0, 0.0)
    near_perfect[0] = -1.0
    found = auc_by_delong(positive, near_perfect)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 0.95 < found.high < 1
    assert "without error" in str(auc_by_delong(positive, positive.astype(float)).reason)
    assert auc_by_delong(np.ones(3, dtype=bool), np.arange(3.0)).value is None


def test_equal_models_do_not_differ_and_a_false_alarm_comes_once_in_twenty() -> None:
    positive, score = np.arange(50) % 2 == 0, np.arange(50.0)
    same, p_value = difference_by_delong(delong(positive, np.stack([score, score])))
    assert (same.value, p_value, same.reason) == (0.0, 1.0, "the two models rank alike")
    p_values = []
    for seed in range(400):
        generator = np.random.default_rng(seed)
        positive = generator.random(200) < 0.5
        common = positive + generator.normal(size=200)
        scores = common + 0.7 * generator.normal(size=(2, 200))
        p_values.append(difference_by_delong(delong(positive, scores))[1])
    assert scipy.stats.binomtest(int(np.sum(np.array(p_values) < 0.05)), 400, 0.05).pvalue > 0.001
