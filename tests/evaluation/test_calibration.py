"""A calibration map is the reference's, keeps what it must, and is kept only where validation shows that it helps."""

import json

import numpy as np
import pytest
import scipy.special
import sklearn.isotonic
import sklearn.linear_model
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from historay.evaluation.calibration import Calibration, CalibrationChoice, Kind, fit_calibration, fit_map

Binary = tuple[NDArray[np.float64], NDArray[np.int64]]


def calibrated(seed: int, num: int = 2000, overconfidence: float = 1.0) -> Binary:
    """Probabilities (N, 2), on a grid so that no two are closer than rounding, and labels drawn from them; then overdone."""
    generator = np.random.default_rng(seed)
    true = generator.integers(20, 980, size=num) / 1000
    label = (generator.random(num) < true).astype(np.int64)
    claimed = scipy.special.expit(overconfidence * scipy.special.logit(true))
    return np.column_stack([1 - claimed, claimed]), label


def platts(label: NDArray[np.int64]) -> tuple[float, float]:
    """What Platt's targets make of a frequency of 0 and of 1."""
    return 1 / ((label == 0).sum() + 2), (label.sum() + 1) / (label.sum() + 2)


def fitted_map(probability: NDArray[np.float64], label: NDArray[np.int64], kind: Kind) -> Calibration:
    return fit_map(kind, probability, label, 1)


MAPS = [
    Calibration(),
    Calibration(kind="temperature", temperature=2.5),
    Calibration(kind="beta", positive=1, beta=(0.6, 1.4, -0.3)),
    Calibration(kind="isotonic", positive=1, knots=((0.1, 0.05), (0.3, 0.05), (0.5, 0.4), (0.9, 1.0))),
]


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_is_scikit_learns_with_platts_targets(seed: int) -> None:
    probability, label = calibrated(seed, num=300)
    low, high = platts(label)
    reference = sklearn.isotonic.IsotonicRegression(out_of_bounds="clip")
    reference.fit(probability[:, 1], np.where(label == 1, high, low))
    new, _ = calibrated(seed + 100)
    expected = reference.predict(new[:, 1])
    np.testing.assert_allclose(fitted_map(probability, label, "isotonic").apply(new)[:, 1], expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_beta_is_the_logistic_regression_on_its_two_logarithms(seed: int) -> None:
    probability, label = calibrated(seed, overconfidence=1.7)
    low, high = platts(label)
    features = np.column_stack([np.log(probability[:, 1]), -np.log(probability[:, 0])])
    # A target between 0 and 1 is a tile of each class with a weight.
    weight = np.where(label == 1, high, low)
    reference = sklearn.linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    reference.fit(np.vstack([features, features]), np.repeat([1, 0], len(label)), np.concatenate([weight, 1 - weight]))
    found = fitted_map(probability, label, "beta").apply(probability)[:, 1]
    np.testing.assert_allclose(found, reference.predict_proba(features)[:, 1], atol=1e-6)


def test_temperature_is_the_inverse_of_the_overconfidence_that_was_planted_for_two_classes_and_for_five() -> None:
    assert fitted_map(*calibrated(0, num=10_000, overconfidence=3.0), "temperature").temperature == pytest.approx(3.0, rel=0.05)
    generator = np.random.default_rng(0)
    logit = 1.5 * generator.normal(size=(10_000, 5))
    true = scipy.special.softmax(logit, axis=1)
    label = (true.cumsum(axis=1) < generator.random((10_000, 1))).sum(axis=1).astype(np.int64)
    choice = fit_calibration(scipy.special.softmax(3 * logit, axis=1), label, None, None)
    assert choice.calibration.temperature == pytest.approx(3.0, rel=0.05)
    assert [one.kind for one in choice.candidates] == ["temperature"]


def test_no_temperature_has_a_lower_log_loss_than_the_one_fitted() -> None:
    probability, label = calibrated(4, num=500, overconfidence=2.0)
    fitted = fitted_map(probability, label, "temperature").temperature
    assert fitted is not None

    def loss(temperature: float) -> float:
        mapped = Calibration(kind="temperature", temperature=temperature).apply(probability)
        low, high = platts(label)
        return float(
            -np.mean(
                np.where(label == 1, high, low) @ np.log(mapped[:, 1])
                + np.where(label == 1, 1 - high, 1 - low) @ np.log(mapped[:, 0])
            )
        )

    assert loss(fitted) < min(loss(fitted * 1.001), loss(fitted / 1.001))


@pytest.mark.parametrize("calibration", MAPS[1:])
@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_classes=st.integers(2, 5), sharpness=st.floats(0, 400))
def test_rows_sum_to_one_strictly_within_0_and_1_even_for_certain_probabilities(
    calibration: Calibration, seed: int, num_classes: int, sharpness: float
) -> None:
    num_classes = num_classes if calibration.kind == "temperature" else 2
    logit = sharpness * np.random.default_rng(seed).normal(size=(20, num_classes))
    found = calibration.apply(np.vstack([scipy.special.softmax(logit, axis=1), np.eye(num_classes)]))
    assert ((found > 0) & (found < 1)).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.3, 10), num_classes=st.integers(2, 6))
def test_a_temperature_keeps_the_most_probable_class(seed: int, temperature: float, num_classes: int) -> None:
    probability = np.random.default_rng(seed).dirichlet(np.ones(num_classes), size=50)
    found = Calibration(kind="temperature", temperature=temperature).apply(probability)
    np.testing.assert_array_equal(found.argmax(axis=1), probability.argmax(axis=1))


@pytest.mark.parametrize("kind", ["temperature", "beta"])
@settings(deadline=None)
@given(seed=st.integers(0, 200), overconfidence=st.floats(0.3, 4))
def test_temperature_and_beta_leave_roc_auc_alone(kind: Kind, seed: int, overconfidence: float) -> None:
    probability, label = calibrated(seed, num=60)
    label[:2] = [0, 1]
    claimed, _ = calibrated(seed, num=60, overconfidence=overconfidence)
    mapped = fitted_map(claimed, label, kind).apply(probability)
    expected = sklearn.metrics.roc_auc_score(label, probability[:, 1])
    assert sklearn.metrics.roc_auc_score(label, mapped[:, 1]) == pytest.approx(expected, abs=1e-12)


def test_beta_still_rises_where_the_events_fall_with_their_probability() -> None:
    probability, label = calibrated(0, num=500)
    fitted = fitted_map(probability, 1 - label, "beta")
    assert fitted.beta is not None
    assert min(fitted.beta[:2]) == pytest.approx(1e-3)
    grid = np.linspace(0.01, 0.99, 99)
    assert (np.diff(fitted.apply(np.column_stack([1 - grid, grid]))[:, 1]) > 0).all()


def test_isotonic_never_falls_and_says_how_many_levels_tie() -> None:
    fitted = fitted_map(*calibrated(0), "isotonic")
    grid = np.linspace(0, 1, 1001)
    mapped = fitted.apply(np.column_stack([1 - grid, grid]))[:, 1]
    assert (np.diff(mapped) >= 0).all()
    assert f"isotonic with {len(set(np.array(fitted.knots)[:, 1]))} levels; tiles of one level tie" in fitted.in_words()


@settings(deadline=None)
@given(seed=st.integers(0, 200), power=st.floats(0.3, 3))
def test_a_rising_map_of_the_probabilities_leaves_what_isotonic_makes_of_the_tiles(seed: int, power: float) -> None:
    probability, label = calibrated(seed, num=80)
    label[:2] = [0, 1]
    raised = probability[:, 1] ** power
    turned = np.column_stack([1 - raised, raised])
    before, after = (
        fitted_map(probability, label, "isotonic").apply(probability),
        fitted_map(turned, label, "isotonic").apply(turned),
    )
    np.testing.assert_allclose(after, before, atol=1e-9)


@pytest.mark.parametrize("kind", ["temperature", "beta", "isotonic"])
@settings(deadline=None)
@given(seed=st.integers(0, 100))
def test_swapping_the_classes_swaps_what_comes_out(kind: Kind, seed: int) -> None:
    probability, label = calibrated(seed, num=100, overconfidence=2.0)
    label[:2] = [0, 1]
    swapped = fitted_map(probability[:, ::-1], 1 - label, kind).apply(probability[:, ::-1])
    np.testing.assert_allclose(swapped[:, ::-1], fitted_map(probability, label, kind).apply(probability), atol=1e-5)


def test_the_order_of_the_tiles_has_no_influence_with_patients_and_without() -> None:
    probability, label = calibrated(0, num=600, overconfidence=2.0)
    order = np.random.default_rng(1).permutation(600)
    patients = np.repeat([f"p{number}" for number in range(30)], 20)
    for known in (None, patients):
        plain = fit_calibration(probability, label, known, 1)
        turned = fit_calibration(probability[order], label[order], None if known is None else known[order], 1)
        assert plain.calibration.kind == turned.calibration.kind
        for one, other in zip(plain.candidates, turned.candidates, strict=True):
            assert one.nll_after == pytest.approx(other.nll_after, abs=1e-6)


def test_an_overconfident_model_gets_a_map_that_lowers_its_log_loss_on_tiles_it_never_saw() -> None:
    choice = fit_calibration(*calibrated(0, overconfidence=3.0), None, 1)
    assert choice.calibration.kind != "none"
    new, label = calibrated(1, num=10_000, overconfidence=3.0)
    assert sklearn.metrics.log_loss(label, choice.calibration.apply(new)) < sklearn.metrics.log_loss(label, new) - 0.1
    best = next(one for one in choice.candidates if one.kept)
    assert best.nll_before == pytest.approx(sklearn.metrics.log_loss(*calibrated(0, overconfidence=3.0)[::-1]), rel=0.01)
    assert best.gain == pytest.approx(best.nll_before - best.nll_after)
    assert f"from {best.nll_before:.4f} to {best.nll_after:.4f}" in choice.reason


def test_a_calibrated_model_is_mostly_left_alone_and_never_made_much_worse() -> None:
    kinds = []
    for seed in range(25):
        choice = fit_calibration(*calibrated(seed, num=500), None, 1)
        kinds.append(choice.calibration.kind)
        new, label = calibrated(1000 + seed, num=5000)
        harm = sklearn.metrics.log_loss(label, choice.calibration.apply(new)) - sklearn.metrics.log_loss(label, new)
        assert harm < 0.02
    assert kinds.count("none") >= 15


def test_a_patient_is_never_on_both_sides_so_a_map_that_only_learns_patients_is_not_kept() -> None:
    """All tiles of a patient are of one class and alike: between tiles isotonic seems to help, between patients it does not."""
    generator = np.random.default_rng(0)
    probability = np.repeat(generator.uniform(0.3, 0.7, size=12), 100)
    label = np.repeat((generator.random(12) < 0.5).astype(np.int64), 100)
    both = np.column_stack([1 - probability, probability])
    patients = np.repeat([f"p{number}" for number in range(12)], 100)
    assert fit_calibration(both, label, None, 1).calibration.kind == "isotonic"
    assert fit_calibration(both, label, patients, 1).calibration.kind == "none"


def test_too_few_patients_or_classes_are_left_uncalibrated_with_the_reason() -> None:
    probability, label = calibrated(0, num=40, overconfidence=3.0)
    two = fit_calibration(probability, label, np.repeat(["a", "b"], 20), 1)
    assert (two.calibration, two.reason) == (Calibration(), "no calibration: 2 patients are too few")
    alone = fit_calibration(probability, np.repeat([0, 0, 0, 1], 10), np.repeat(["a", "b", "c", "d"], 10), 1)
    assert "leaves a single class" in alone.reason


def test_tiles_told_apart_without_error_are_not_sharpened_to_certainty() -> None:
    label = np.arange(100) % 2
    probability = np.where(label == 1, 0.8, 0.2)
    choice = fit_calibration(np.column_stack([1 - probability, probability]), label, None, 1)
    mapped = choice.calibration.apply(np.array([[0.2, 0.8]]))[0, 1]
    assert 0.9 < mapped <= 51 / 52 + 1e-9


@pytest.mark.parametrize("calibration", MAPS)
def test_a_calibration_comes_back_from_json_bit_by_bit(calibration: Calibration) -> None:
    again = Calibration.model_validate(json.loads(calibration.model_dump_json()))
    assert again == calibration
    probability, _ = calibrated(0)
    np.testing.assert_array_equal(again.apply(probability), calibration.apply(probability))


def test_a_choice_comes_back_from_json() -> None:
    choice = fit_calibration(*calibrated(0, overconfidence=3.0), None, 1)
    assert CalibrationChoice.model_validate_json(choice.model_dump_json()) == choice


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "temperature"}, "temperature needs {'temperature'}, got none"),
        ({"kind": "none", "temperature": 2.0}, "none needs no parameters, got {'temperature'}"),
        ({"kind": "beta", "beta": (1.0, 1.0, 0.0)}, "beta has positive=None"),
        ({"kind": "temperature", "temperature": -1.0}, "greater than 0"),
    ],
)
def test_a_map_without_its_parameters_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Calibration.model_validate(fields)
