"""Figures of calibration are the references', and a miscalibrated model is found while a calibrated one is left in peace."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from statsmodels.stats.proportion import proportion_confint

from historay.evaluation import reliability
from historay.evaluation.intervals import draw, estimate, resample_weights, units_of
from historay.evaluation.miscalibration import calibration_test, reliability_diagram
from historay.evaluation.reliability import Binning

Events = tuple[NDArray[np.float64], NDArray[np.bool_]]
BINNINGS: tuple[Binning, ...] = ("width", "mass")


def tiles(seed: int, num: int = 3000, overconfidence: float = 1.0) -> Events:
    """Probabilities and events that happen as often as these say; then the logits are overdone."""
    generator = np.random.default_rng(seed)
    logit = 1.5 * generator.normal(size=num)
    return scipy.special.expit(overconfidence * logit), generator.random(num) < scipy.special.expit(logit)


def clustered(
    seed: int, num_patients: int = 60, num: int = 40
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.str_]]:
    """A calibrated model on tiles that rise and fall together with their patient: the model sees a half of what decides."""
    generator = np.random.default_rng(seed)
    seen, hidden = generator.normal(size=(num_patients, num)), generator.normal(size=(num_patients, 1))
    happened = seen + hidden + 0.3 * generator.normal(size=seen.shape) > 0
    probability = scipy.stats.norm.cdf(seen / np.hypot(1, 0.3))
    return probability.ravel(), happened.ravel(), np.repeat(np.arange(num_patients).astype(str), num)


def both(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([1 - probability, probability])


@st.composite
def cases(draw: st.DrawFn) -> Events:
    """Few tiles with probabilities that often tie, 0 and 1 and the edges of the bins among them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num = draw(st.integers(2, 60))
    on_edges = generator.integers(16, size=num) / 15
    tied = generator.random(num) < draw(st.sampled_from([0, 0.5, 1]))
    return np.where(tied, on_edges, generator.random(num)), generator.random(num) < draw(st.sampled_from([0.1, 0.5]))


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_the_bins_are_those_of_scikit_learns_calibration_curve(binning: Binning, strategy: str, case: Events) -> None:
    probability, happened = case
    units = units_of(None, len(happened), 0)
    share, mean = calibration_curve(happened, probability, n_bins=15, strategy=strategy)
    found = reliability_diagram(probability, happened, binning, units, 0)
    np.testing.assert_allclose([one.mean_probability for one in found], mean, atol=1e-12)
    np.testing.assert_allclose([one.frequency for one in found], share, atol=1e-12)
    weights = np.array([one.count for one in found]) / len(happened)
    expected = float(weights @ np.abs(share - mean))
    assert reliability.calibration_error(probability, happened, binning) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("binning", BINNINGS)
@settings(deadline=None)
@given(case=cases())
def test_the_parts_of_the_brier_score_add_up_to_scikit_learns(binning: Binning, case: Events) -> None:
    probability, happened = case
    parts = reliability.brier_parts(probability, happened, binning)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_variance - parts.within_covariance
    assert parts.brier == pytest.approx(total, abs=1e-12)
    assert parts.brier == pytest.approx(sklearn.metrics.brier_score_loss(happened, probability, pos_label=True), abs=1e-12)
    assert min(parts.reliability, parts.resolution, parts.uncertainty, parts.within_variance) >= 0


def test_a_model_that_knows_only_the_base_rate_has_neither_resolution_nor_a_calibration_error() -> None:
    happened = np.arange(100) < 30
    parts = reliability.brier_parts(np.full(100, 0.3), happened)
    assert (parts.resolution, parts.within_variance) == pytest.approx((0, 0), abs=1e-12)
    assert parts.brier == pytest.approx(parts.uncertainty)
    assert reliability.calibration_error(np.full(100, 0.3), happened, "mass") == pytest.approx(0, abs=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 500), num_classes=st.integers(2, 5))
def test_log_loss_and_brier_score_of_more_classes_are_scikit_learns(seed: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    probability = generator.dirichlet(np.ones(num_classes), size=40)
    label = generator.integers(num_classes, size=40)
    names = list(range(num_classes))
    found = reliability.log_losses(probability, label).mean()
    assert found == pytest.approx(sklearn.metrics.log_loss(label, probability, labels=names), rel=1e-6)
    expected = sklearn.metrics.brier_score_loss(label, probability, labels=names, scale_by_half=False)
    assert reliability.brier_scores(probability, label, None).mean() == pytest.approx(expected, abs=1e-12)


def test_a_certain_error_costs_much_but_not_everything() -> None:
    losses = reliability.log_losses(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert losses == pytest.approx([0, 27.6], abs=0.1)


def test_the_event_is_the_positive_class_of_two_and_the_top_label_of_more() -> None:
    probability, happened = reliability.events(np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]), np.array([1, 2]), None)
    assert (probability.tolist(), happened.tolist()) == ([0.5, 0.6], [True, False])
    probability, happened = reliability.events(np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([0, 1]), 0)
    assert (probability.tolist(), happened.tolist()) == ([0.2, 0.6], [True, False])


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 3.0])
def test_slope_and_intercepts_are_those_of_statsmodels_with_its_errors_by_cluster(overconfidence: float) -> None:
    probability, happened = tiles(0, num=1200, overconfidence=overconfidence)
    patients = np.repeat(np.arange(60).astype(str), 20)
    units, logit = units_of(patients, 1200, 0), scipy.special.logit(probability)
    found = reliability.calibration_line(probability, happened, units)
    options = {"cov_type": "cluster", "cov_kwds": {"groups": units.group_N, "df_correction": True}}
    line = sm.GLM(happened.astype(float), sm.add_constant(logit), family=sm.families.Binomial()).fit(**options)
    large = sm.GLM(happened.astype(float), np.ones(1200), family=sm.families.Binomial(), offset=logit).fit(**options)
    reach = scipy.stats.t.ppf(0.975, 59)
    # statsmodels also multiplies by (N - 1) / (N - parameters).
    for ours, fit, row in ((found.intercept, line, 0), (found.slope, line, 1), (found.in_the_large, large, 0)):
        assert ours.value == pytest.approx(fit.params[row], abs=1e-6)
        assert ours.high == pytest.approx(fit.params[row] + reach * fit.bse[row], abs=2e-4)
    assert found.slope.value == pytest.approx(1 / overconfidence, rel=0.2)


def test_a_line_that_has_no_maximum_is_null_with_its_reason() -> None:
    units = units_of(None, 4, 0)
    same = reliability.calibration_line(np.full(4, 0.3), np.array([True, False, True, False]), units)
    assert (same.slope.value, same.in_the_large.value) == (
        None,
        pytest.approx(scipy.special.logit(0.5) - scipy.special.logit(0.3)),
    )
    apart = reliability.calibration_line(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]), units)
    assert apart.slope.value is None
    assert "told apart without error" in str(apart.slope.reason)
    never = reliability.calibration_line(np.array([0.1, 0.2, 0.8, 0.9]), np.zeros(4, dtype=bool), units)
    assert never.slope.reason == "the event happened on all tiles, or on none"


def test_each_resample_of_the_tally_has_the_figures_of_the_tiles_drawn() -> None:
    probability, happened = tiles(1, num=300, overconfidence=2.0)
    label = happened.astype(np.int64)
    units = units_of(np.repeat(np.arange(15).astype(str), 20), 300, 0)
    drawn = draw([reliability.calibration_tally(both(probability), label, 1, units)], units, 5, seed=3)
    for binning in BINNINGS:
        expected = reliability.calibration_error(probability, happened, binning)
        assert drawn.point[f"ece_{binning}"][0] == pytest.approx(expected, abs=1e-12)
    for row, weights in enumerate(next(resample_weights(units, 5, 3, 5))):
        of_tile = weights[units.group_N]
        brier = sklearn.metrics.brier_score_loss(happened, probability, sample_weight=of_tile, pos_label=True)
        assert drawn.resampled["brier"][row] == pytest.approx(brier, abs=1e-12)
        loss = sklearn.metrics.log_loss(label, both(probability), sample_weight=of_tile)
        assert drawn.resampled["nll"][row] == pytest.approx(loss, abs=1e-9)
        again = np.repeat(np.arange(300), of_tile.astype(int))
        width = reliability.calibration_error(probability[again], happened[again], "width")
        assert drawn.resampled["ece_width"][row] == pytest.approx(width, abs=1e-12)


@pytest.mark.parametrize("positive", [1, None])
def test_figures_of_calibration_do_not_depend_on_the_order_of_the_tiles(positive: int | None) -> None:
    probability, happened = tiles(2, num=400)
    label, patients = happened.astype(np.int64), np.repeat(np.arange(20).astype(str), 20)
    order = np.random.default_rng(0).permutation(400)
    found = []
    for rows in (np.arange(400), order):
        units = units_of(patients[rows], 400, 0)
        tally = reliability.calibration_tally(both(probability)[rows], label[rows], positive, units)
        found.append({name: (one.value, one.low, one.high) for name, one in estimate([tally], units, 100, 0).items()})
    for name, expected in found[0].items():
        assert found[1][name] == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(case=cases())
def test_turning_the_event_round_leaves_brier_score_and_error_of_equal_bins(case: Events) -> None:
    probability, happened = case
    before, after = reliability.brier_parts(probability, happened), reliability.brier_parts(1 - probability, ~happened)
    assert after.brier == pytest.approx(before.brier, abs=1e-12)
    assert after.uncertainty == pytest.approx(before.uncertainty, abs=1e-12)
    # Away from the edges, of which a bin holds the upper only.
    within = (15 * probability) % 1 > 1e-6
    if within.any():
        errors = [
            reliability.calibration_error(p[within], y[within], "width")
            for p, y in ((probability, happened), (1 - probability, ~happened))
        ]
        assert errors[0] == pytest.approx(errors[1], abs=1e-9)


def test_the_band_is_that_of_the_binomial_and_wilson_is_statsmodels() -> None:
    probability = np.repeat([0.1, 0.35, 0.8], 200)
    happened = np.random.default_rng(0).random(600) < probability
    found = reliability_diagram(probability, happened, "width", units_of(None, 600, 0), 0)
    assert [one.mean_probability for one in found] == pytest.approx([0.1, 0.35, 0.8])
    for one in found:
        expected = scipy.stats.binom.ppf([0.025, 0.975], 200, one.mean_probability) / 200
        assert [one.band_low, one.band_high] == pytest.approx(expected, abs=1.01 / 200)
        interval = proportion_confint(round(one.frequency * 200), 200, method="wilson")
        assert (one.wilson_low, one.wilson_high) == pytest.approx(interval, abs=1e-9)


def rejections(found: list[bool], rate: float = 0.05) -> float:
    return float(scipy.stats.binomtest(sum(found), len(found), rate).pvalue)


def test_a_calibrated_model_is_found_miscalibrated_once_in_twenty() -> None:
    found = [calibration_test(*tiles(seed, num=400), units_of(None, 400, 0), seed).miscalibrated for seed in range(200)]
    assert rejections(found) > 0.001


def test_with_patients_a_calibrated_model_is_left_in_peace_where_single_tiles_would_raise_the_alarm() -> None:
    by_patient, by_tile = [], []
    for seed in range(150):
        probability, happened, patients = clustered(seed)
        by_patient.append(calibration_test(probability, happened, units_of(patients, len(happened), 0), seed).miscalibrated)
        if seed < 20:
            by_tile.append(calibration_test(probability, happened, units_of(None, len(happened), 0), seed).miscalibrated)
    assert rejections(by_patient) > 0.001
    assert sum(by_tile) > 10


def test_logits_times_three_are_found_by_tile_and_by_patient() -> None:
    probability, happened = tiles(0, num=1200, overconfidence=3.0)
    for patients in (None, np.repeat(np.arange(60).astype(str), 20)):
        found = calibration_test(probability, happened, units_of(patients, 1200, 0), 0)
        assert found.miscalibrated
        assert found.p_value < 0.001
        assert found.error > found.limit > found.expected
        assert found.sentence.startswith(f"MISCALIBRATED: the calibration error is {found.error:.3f}")
        assert ("patients are unknown" in found.sentence) == (patients is None)
    calm = calibration_test(*tiles(1, num=1200), units_of(None, 1200, 0), 0)
    assert calm.sentence.startswith("No miscalibration is shown")


def test_a_handful_of_patients_proves_nothing() -> None:
    probability, happened = tiles(0, num=1000, overconfidence=3.0)
    found = calibration_test(probability, happened, units_of(np.repeat(np.arange(4).astype(str), 250), 1000, 0), 0)
    assert not found.miscalibrated
    assert found.p_value > 0.05


def test_the_simulated_error_is_that_of_tiles_drawn_one_by_one() -> None:
    probability, happened = tiles(3, num=5000)
    found = calibration_test(probability, happened, units_of(None, 5000, 0), 0)
    generator = np.random.default_rng(1)
    errors = [reliability.calibration_error(probability, generator.random(5000) < probability, "mass") for _ in range(1000)]
    assert found.expected == pytest.approx(np.mean(errors), rel=0.03)
    assert found.limit == pytest.approx(np.quantile(errors, 0.95), rel=0.05)
