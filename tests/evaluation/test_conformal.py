"""The sets hold the true class as often as promised, for tiles of new patients too, and agree with crepes."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from crepes import ConformalClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pcam import read_pcam

from historay.data.decode import decode_tile
from historay.errors import DataError
from historay.evaluation.conformal import (
    ConformalRule,
    Kind,
    Threshold,
    conformal_quantile,
    fit_conformal,
    judge_sets,
    sets_tally,
)
from historay.evaluation.intervals import draw, units_of
from historay.evaluation.predictions import Predictions
from historay.evaluation.shortcut import Baseline, colour_histograms, fit_baseline

KINDS: tuple[Kind, ...] = ("marginal", "class", "site")
NUM_COHORTS = 2000
PCAM_HELD_OUT = {"valid": 1500, "test": 1000}  # tiles a class


def tiles(
    seed: int, num: int = 120, num_classes: int = 3, num_patients: int | None = 12, num_sites: int | None = 2
) -> Predictions:
    """Random probabilities, right more often than not; sites are shared by patients."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=num - num_classes)])
    raw = np.exp(generator.normal(size=(num, num_classes)) + 1.5 * (labels[:, None] == np.arange(num_classes)))
    patient = generator.integers(num_patients or num, size=num)
    return Predictions(
        tile_ids=np.arange(num).astype(str),
        labels=labels,
        probabilities=raw / raw.sum(axis=1, keepdims=True),
        patients=None if num_patients is None else patient.astype(str),
        classes=("a", "b", "c", "d")[:num_classes],
        sites=None if num_sites is None else np.array([f"site {number % num_sites}" for number in patient]),
    )


def with_scores(score_N: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.str_], sites: bool) -> Predictions:
    """Two classes, where the true one of each tile has the given score."""
    probability = np.where(labels[:, None] == np.arange(2), 1 - score_N[:, None], score_N[:, None])
    ids = np.arange(len(labels)).astype(str)
    where = np.where(labels == 0, "x", "y") if sites else None
    return Predictions(ids, labels, probability, groups, ("a", "b"), sites=where)


def clustered_scores(generator: np.random.Generator, patient_N: NDArray[np.int64], likeness: float) -> NDArray[np.float64]:
    """Scores that are uniform on 0 to 1 for a tile of a random patient, so that a threshold t covers exactly a share t."""
    of_patient = generator.normal(size=patient_N.max() + 1)
    of_tile = generator.normal(size=len(patient_N))
    return np.asarray(scipy.stats.norm.cdf(np.sqrt(likeness) * of_patient[patient_N] + np.sqrt(1 - likeness) * of_tile))


def mean_and_error(coverages: list[float]) -> tuple[float, float]:
    """The mean over simulated cohorts, and three times its Monte-Carlo error."""
    return float(np.mean(coverages)), 3 * float(np.std(coverages)) / np.sqrt(len(coverages))


def test_exchangeable_tiles_are_covered_as_promised_and_hardly_more() -> None:
    """The share lies within 1 - alpha and 1 - alpha + 1 / (N + 1), on average over 2,000 validation splits."""
    generator = np.random.default_rng(0)
    for num in (9, 37, 200):
        share, error = mean_and_error([conformal_quantile(generator.random(num), 0.1) or 1.0 for _ in range(NUM_COHORTS)])
        assert 0.9 - error <= share <= 0.9 + 1 / (num + 1) + error


@pytest.mark.parametrize("num_patients", [11, 25])
def test_new_patients_are_covered_by_the_hierarchical_rule_where_the_plain_one_falls_short(num_patients: int) -> None:
    """20 tiles a patient, alike (correlation 0.9): the plain rule takes them for so many patients."""
    generator = np.random.default_rng(num_patients)
    patient_N = np.repeat(np.arange(num_patients), 20)
    plain, hierarchical = [], []
    for _ in range(NUM_COHORTS):
        score_N = clustered_scores(generator, patient_N, 0.9)
        plain.append(conformal_quantile(score_N, 0.1) or 1.0)
        hierarchical.append(conformal_quantile(score_N, 0.1, patient_N) or 1.0)
    share, error = mean_and_error(hierarchical)
    assert share >= 0.9 - error
    share, error = mean_and_error(plain)
    assert share < 0.9 - error


def test_patients_with_many_easy_tiles_do_not_lower_the_bar_for_the_others() -> None:
    """Half of the patients have 40 tiles with scores below one half, the others 4: the plain rule loses sight of them."""
    generator = np.random.default_rng(1)
    plain, hierarchical = [], []
    for _ in range(NUM_COHORTS):
        hard = generator.random(60) < 0.5
        patient_N = np.repeat(np.arange(60), np.where(hard, 4, 40))
        score_N = (generator.random(len(patient_N)) + hard[patient_N]) / 2
        plain.append(conformal_quantile(score_N, 0.1) or 1.0)
        hierarchical.append(conformal_quantile(score_N, 0.1, patient_N) or 1.0)
    share, error = mean_and_error(hierarchical)
    assert share >= 0.9 - error
    assert share <= 0.9 + 1 / 61 + error
    assert mean_and_error(plain)[0] < 0.65


@pytest.mark.parametrize("kind", ["class", "site"])
def test_each_class_or_site_is_covered_where_the_marginal_rule_fails_the_harder(kind: Kind) -> None:
    """Scores of class and site 1 are cube roots of uniform ones, so that a threshold t covers a share t ** 3 of them."""
    generator = np.random.default_rng(2)
    patient_N = np.repeat(np.arange(40), 10)
    own: tuple[list[float], list[float]] = ([], [])
    of_marginal = []
    for _ in range(500):
        labels = (generator.random(len(patient_N)) < 0.3).astype(np.int64)
        score_N = clustered_scores(generator, patient_N, 0.5) ** np.where(labels == 1, 1 / 3, 1)
        validation = with_scores(score_N, labels, patient_N.astype(str), sites=True)
        easy, hard = (threshold.score or 1.0 for threshold in fit_conformal(validation, 0.1, kind).thresholds)
        own[0].append(easy)
        own[1].append(hard**3)
        of_marginal.append((fit_conformal(validation, 0.1, "marginal").thresholds[0].score or 1.0) ** 3)
    for coverages in own:
        share, error = mean_and_error(coverages)
        assert 0.9 - error <= share <= 0.95
    share, error = mean_and_error(of_marginal)
    assert share < 0.9 - error


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0713, 0.1137, 0.3119, 0.5207]))
def test_sets_of_single_tiles_are_those_of_crepes(seed: int, alpha: float) -> None:
    validation, test = tiles(seed, num_patients=None), tiles(seed + 1)
    score_N = 1 - validation.probabilities[np.arange(120), validation.labels]
    theirs = ConformalClassifier().fit(score_N)
    expected = theirs.predict_set(1 - test.probabilities, confidence=1 - alpha, smoothing=False)
    rule = fit_conformal(validation, alpha, "marginal")
    np.testing.assert_array_equal(rule.sets(test.probabilities), expected)

    assert validation.sites is not None
    theirs = ConformalClassifier().fit(score_N, bins=validation.sites)
    expected = theirs.predict_set(1 - test.probabilities, bins=test.sites, confidence=1 - alpha, smoothing=False)
    rule = fit_conformal(validation, alpha, "site")
    np.testing.assert_array_equal(rule.sets(test.probabilities, test.sites), expected)

    theirs = ConformalClassifier().fit(score_N, bins=validation.labels)
    by_class = fit_conformal(validation, alpha, "class").sets(test.probabilities)
    for k in range(3):
        bins = np.full(120, k)
        expected = theirs.predict_set(1 - test.probabilities, bins=bins, confidence=1 - alpha, smoothing=False)
        np.testing.assert_array_equal(by_class[:, k], expected[:, k])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.floats(0.01, 0.98), st.floats(0.01, 0.98))
def test_a_smaller_alpha_only_adds_classes_to_the_sets(seed: int, kind: Kind, one: float, other: float) -> None:
    validation, test = tiles(seed), tiles(seed + 1)
    small, large = sorted([one, other])
    wide, narrow = (fit_conformal(validation, a, kind).sets(test.probabilities, test.sites) for a in (small, large))
    assert (wide | ~narrow).all()


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(120)), st.sampled_from(KINDS))
def test_the_order_of_the_validation_tiles_changes_nothing(order: list[int], kind: Kind) -> None:
    found = tiles(3)
    assert found.patients is not None
    assert found.sites is not None
    turned = Predictions(
        found.tile_ids[order],
        found.labels[order],
        found.probabilities[order],
        found.patients[order],
        found.classes,
        sites=found.sites[order],
    )
    assert fit_conformal(turned, 0.2, kind) == fit_conformal(found, 0.2, kind)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.floats(0.01, 0.99))
def test_patients_of_one_tile_each_are_but_single_tiles(seed: int, num: int, alpha: float) -> None:
    generator = np.random.default_rng(seed)
    score_N = generator.integers(10, size=num) / 10
    assert conformal_quantile(score_N, alpha) == conformal_quantile(score_N, alpha, generator.permutation(num))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9), st.integers(2, 5))
def test_tiles_stored_twice_change_nothing_where_patients_are_known(seed: int, alpha: float, times: int) -> None:
    generator = np.random.default_rng(seed)
    score_N, patient_N = generator.random(40), generator.integers(8, size=40)
    repeated = conformal_quantile(np.repeat(score_N, times), alpha, np.repeat(patient_N, times))
    assert repeated == conformal_quantile(score_N, alpha, patient_N)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_one_class_or_one_site_alone_has_the_marginal_threshold(seed: int, alpha: float) -> None:
    generator = np.random.default_rng(seed)
    patients = generator.integers(6, size=30).astype(str)
    validation = with_scores(generator.random(30), np.zeros(30, dtype=np.int64), patients, sites=True)
    marginal, by_class, by_site = (fit_conformal(validation, alpha, kind).thresholds[0].score for kind in KINDS)
    assert marginal == by_class == by_site


def test_too_few_patients_give_full_sets_and_the_reason_in_words() -> None:
    validation = tiles(0, num_patients=8)
    rule = fit_conformal(validation, 0.1, "marginal")
    assert rule.thresholds[0].score is None
    assert rule.sets(validation.probabilities).all()
    assert "Every class is let into the set for all (8 patients): alpha = 0.1 needs at least 9 patients" in rule.guarantee
    assert "Every class" not in fit_conformal(tiles(0, num_patients=9), 0.1, "marginal").guarantee


def test_a_class_that_validation_lacks_is_in_every_set() -> None:
    patients = np.arange(30).astype(str)
    rule = fit_conformal(with_scores(np.full(30, 0.2), np.zeros(30, dtype=np.int64), patients, False), 0.1, "class")
    assert [threshold.score is None for threshold in rule.thresholds] == [False, True]
    assert rule.sets(np.array([[0.9, 0.1], [0.1, 0.9]])).tolist() == [[True, True], [False, True]]
    assert "b (0 patients)" in rule.guarantee


def test_an_unseen_site_gets_the_widest_threshold_found_and_no_promise() -> None:
    rule = fit_conformal(tiles(5), 0.3, "site")
    found = [threshold.score for threshold in rule.thresholds if threshold.score is not None]
    assert rule.fallback is not None
    assert rule.fallback.score == max([*found, fit_conformal(tiles(5), 0.3, "marginal").thresholds[0].score or 1.0])
    probability = tiles(6).probabilities
    elsewhere = rule.sets(probability, np.full(120, "elsewhere"))
    assert (elsewhere | ~rule.sets(probability, np.full(120, "site 0"))).all()
    np.testing.assert_array_equal(elsewhere, rule.sets(probability))
    assert "A site that validation had not gets the widest threshold of the known ones, with no promise." in rule.guarantee


def test_the_guarantee_names_its_unit_and_its_condition() -> None:
    assert "of new patients, a share of at least 0.95" in fit_conformal(tiles(0), 0.05, "marginal").guarantee
    without = fit_conformal(tiles(0, num_patients=None), 0.05, "class")
    assert without.unit == "tile"
    assert "Of the tiles of each class, a share of at least 0.95" in without.guarantee
    assert "only if they are exchangeable with those of validation. Patients are unknown" in without.guarantee


def test_rules_survive_json_and_refuse_what_does_not_fit() -> None:
    for kind in KINDS:
        rule = fit_conformal(tiles(1), 0.1, kind)
        assert ConformalRule.model_validate_json(rule.model_dump_json()) == rule
    with pytest.raises(DataError, match="4 classes, but the rule has a threshold for 3"):
        fit_conformal(tiles(1), 0.1, "class").sets(np.full((2, 4), 0.25))
    with pytest.raises(DataError, match="give the manifest a site column"):
        fit_conformal(tiles(1, num_sites=None), 0.1, "site")


def test_figures_on_test_are_the_means_that_their_names_say() -> None:
    validation, test = tiles(8), tiles(9, num=200)
    rule = fit_conformal(validation, 0.4, "class")
    sets = rule.sets(test.probabilities)
    covered, size = sets[np.arange(200), test.labels], sets.sum(axis=1)
    units = units_of(test.patients, 200, 0)
    found = {name: figure.value for name, figure in judge_sets(rule, test, units, 50, 0).items()}
    assert test.patients is not None
    assert test.sites is not None
    of_patients = [covered[test.patients == name].mean() for name in np.unique(test.patients)]
    expected = {
        "coverage": covered.mean(),
        "coverage:class:b": covered[test.labels == 1].mean(),
        "coverage:site:site 1": covered[test.sites == "site 1"].mean(),
        "coverage_mean_of_patients": np.mean(of_patients),
        "mean_size": size.mean(),
        "empty": (size == 0).mean(),
        "single": (size == 1).mean(),
        "full": (size == 3).mean(),
        "abstained": (size != 1).mean(),
        "accuracy_of_single": covered[size == 1].mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_mean_of_patients_is_theirs_on_each_draw() -> None:
    test = tiles(9, num=200)
    rule = fit_conformal(tiles(8), 0.4, "marginal")
    units = units_of(test.patients, 200, 0)
    left_out = draw([sets_tally(rule, test, units)], units, 2, 0).left_out["coverage_mean_of_patients"]
    covered = rule.sets(test.probabilities)[np.arange(200), test.labels]
    assert left_out[3] == pytest.approx(np.mean([covered[units.group_N == g].mean() for g in range(12) if g != 3]))


def test_without_patients_their_mean_is_null_and_says_so() -> None:
    test = tiles(9, num_patients=None)
    rule = ConformalRule(
        alpha=0.1,
        kind="marginal",
        thresholds=(Threshold(group="all", score=0.5, num_units=100, num_tiles=100),),
        num_calibration=100,
        unit="tile",
        guarantee="",
    )
    found = judge_sets(rule, test, units_of(None, 120, 0), 20, 0)["coverage_mean_of_patients"]
    assert found.value is None
    assert found.reason == "patients are unknown, so no mean over them exists"


def told_by_colour(model: Baseline, images: list[bytes], labels: NDArray[np.int64]) -> Predictions:
    histograms = colour_histograms(np.stack([decode_tile(image) for image in images]))
    return Predictions(np.arange(len(labels)).astype(str), labels, model.probabilities(histograms), None, ("normal", "tumour"))


def test_on_real_held_out_tiles_the_sets_hold_the_true_class_as_often_as_promised(pcam_source: Path) -> None:
    """Fitted on half of PCam's validation; the other half is exchangeable with it, the test split comes from other slides."""
    images, labels = read_pcam(pcam_source, "train", 1000)
    model = fit_baseline(colour_histograms(np.stack([decode_tile(image) for image in images])), labels, 2)
    validation, test = (told_by_colour(model, *read_pcam(pcam_source, split, num)) for split, num in PCAM_HELD_OUT.items())
    generator = np.random.default_rng(0)
    for kind in KINDS[:2]:
        held: dict[str, list[float]] = {"other half": [], "test": []}
        for _ in range(40):
            order = generator.permutation(len(validation.labels))
            fitted, other = validation.at(order[::2]), validation.at(order[1::2])
            rule = fit_conformal(fitted, 0.1, kind)
            for name, judged in {"other half": other, "test": test}.items():
                covered = rule.sets(judged.probabilities)[np.arange(len(judged.labels)), judged.labels]
                held[name].append(float(covered.mean()))
        # One split of 1,500 and 1,500 tiles has a spread of 0.011, the mean of 40 one of 0.002.
        assert np.mean(held["other half"]) == pytest.approx(0.9, abs=0.006)
        assert np.mean(held["test"]) == pytest.approx(0.9, abs=0.02)
