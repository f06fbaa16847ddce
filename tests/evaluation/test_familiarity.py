"""Distances are Mahalanobis's, and limits let pass what they promise to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from scipy.stats import ortho_group
from sklearn.covariance import LedoitWolf

from historay.evaluation.familiarity import Familiarity, held_out_distance, joint_limits

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(size=(300, 12)) @ RNG.normal(size=(12, 12))
OTHERS = 2 * RNG.normal(size=(20, 12))


def test_with_all_axes_the_distance_is_mahalanobis_with_ledoit_and_wolf_s_covariance() -> None:
    fitted = LedoitWolf().fit(REFERENCE)
    expected = [mahalanobis(row, fitted.location_, fitted.precision_) for row in OTHERS]
    found = Familiarity.fit(REFERENCE, 12).distance(OTHERS) * np.sqrt(12)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_with_few_axes_the_others_share_their_mean_variance() -> None:
    fitted = Familiarity.fit(REFERENCE, 5)
    covariance = fitted.axes_FK @ np.diag(fitted.variance_K - fitted.rest) @ fitted.axes_FK.T + fitted.rest * np.eye(12)
    assert np.trace(covariance) == pytest.approx(np.trace(LedoitWolf().fit(REFERENCE).covariance_))
    expected = [mahalanobis(row, fitted.mean_F, np.linalg.inv(covariance)) for row in OTHERS]
    np.testing.assert_allclose(fitted.distance(OTHERS) * np.sqrt(12), expected, rtol=1e-6)


@pytest.mark.parametrize("num_axes", [4, 12, 64])
def test_turning_the_feature_space_changes_no_distance(num_axes: int) -> None:
    turn = ortho_group.rvs(12, random_state=1)
    plain = Familiarity.fit(REFERENCE, num_axes).distance(OTHERS)
    turned = Familiarity.fit(REFERENCE @ turn, num_axes).distance(OTHERS @ turn)
    np.testing.assert_allclose(turned, plain, rtol=1e-6)


def test_features_that_never_vary_and_fewer_tiles_than_features_give_finite_distances() -> None:
    constant = np.hstack([REFERENCE[:8], np.zeros((8, 30))])
    assert np.isfinite(Familiarity.fit(constant, 64).distance(constant)).all()
    assert np.isfinite(Familiarity.fit(np.ones((8, 3)), 64).distance(np.ones((2, 3)))).all()


def test_a_tile_lies_farther_from_a_fit_without_its_patient_than_from_one_with_it() -> None:
    patients = np.repeat([f"patient {n}" for n in range(10)], 30)
    clustered = RNG.normal(size=(10, 40)).repeat(30, axis=0) + 0.1 * RNG.normal(size=(300, 40))
    by_patient = held_out_distance(clustered, patients, 40, seed=0)
    by_tile = held_out_distance(clustered, None, 40, seed=0)
    assert np.median(by_patient) > 2 * np.median(by_tile)


def test_tiles_lie_farther_from_a_fit_to_others_than_from_their_own() -> None:
    few = RNG.normal(size=(100, 40)) @ RNG.normal(size=(40, 40))
    assert held_out_distance(few, None, 40, seed=0).mean() > 1.05 * Familiarity.fit(few, 40).distance(few).mean()


values = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.just(-np.inf) | st.floats(-9, 9)), min_size=1, max_size=60)


@given(values, st.floats(0.001, 0.5))
def test_no_more_of_the_reference_exceeds_the_limits_than_may(rows: list[tuple[float, float, float]], share: float) -> None:
    value_NM = np.array(rows)
    exceeds = (value_NM > joint_limits(value_NM, share)).any(axis=1)
    assert exceeds.sum() <= share * (len(rows) + 1) + 1e-9


@given(values, st.floats(0.001, 0.4))
def test_a_larger_share_never_raises_a_limit(rows: list[tuple[float, float, float]], share: float) -> None:
    value_NM = np.array(rows)
    assert (joint_limits(value_NM, share + 0.1) <= joint_limits(value_NM, share)).all()


@pytest.mark.parametrize("num", [50, 1000])
def test_of_further_tiles_no_more_exceed_the_limits_than_promised(num: int) -> None:
    """Mean over 400 fits, three checks that go together in part; of 50 tiles none can be given up for 1 %."""
    rates = []
    for _ in range(400):
        value_NM = RNG.normal(size=(num + 200, 3)) + RNG.normal(size=(num + 200, 1))
        limits = joint_limits(value_NM[:num], 0.01)
        rates.append((value_NM[num:] > limits).any(axis=1).mean())
    promised = 0.01 if num == 1000 else 3 / 51
    assert np.mean(rates) <= 1.2 * promised
    assert np.mean(rates) >= 0.4 * promised
