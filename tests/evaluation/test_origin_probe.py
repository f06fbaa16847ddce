"""The probe finds a site where features carry one, and does not take a patient's look for the site's."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from historay.evaluation.metrics import Floats
from historay.evaluation.origin_probe import OriginProbe, _folds, _nearest_origin, probe_origin
from historay.evaluation.predictions import Predictions
from historay.evaluation.sections import probes

NUM_PATIENTS, TILES_EACH = 24, 30
PATIENT_N = np.repeat(np.arange(NUM_PATIENTS), TILES_EACH)
SITE_N = PATIENT_N % 4
PATIENTS = [f"P{number}" for number in PATIENT_N]
SITES = [f"site-{number}" for number in SITE_N]
SLIDES = [f"P{number}-{tile % 3}" for tile, number in enumerate(PATIENT_N)]


def features(site: float, patient: float, seed: int = 0) -> Floats:
    """Noise of spread 1, with looks of sites and patients of the given spreads."""
    rng = np.random.default_rng(seed)
    looks = site * rng.normal(size=(4, 20))[SITE_N] + patient * rng.normal(size=(NUM_PATIENTS, 20))[PATIENT_N]
    return np.asarray(looks + rng.normal(size=(len(PATIENT_N), 20)))


def site_probe(features_NF: Floats, *, by_patient: bool = True, num_permutations: int = 49) -> OriginProbe:
    return probe_origin("site", SITES, PATIENTS if by_patient else None, (features_NF, features(0, 0)), num_permutations, 0)


def figure(value: float | None) -> float:
    assert value is not None
    return value


def test_a_site_in_the_features_is_told_and_colour_without_it_is_at_chance() -> None:
    probe = site_probe(features(site=1, patient=0.2))
    assert figure(probe.from_features) > 0.9
    assert figure(probe.from_colour) == pytest.approx(0.25, abs=0.1)
    assert (probe.chance, probe.num_origins, probe.num_tiles, probe.held_out) == (0.25, 4, 720, "patient")
    assert figure(probe.p_value) == 1 / 50


def test_the_looks_of_patients_are_not_taken_for_their_sites() -> None:
    only_patients = features(site=0, patient=1.5)
    assert figure(site_probe(only_patients, by_patient=False).from_features) > 0.6  # what a naive probe would say
    held_out = site_probe(only_patients)
    assert figure(held_out.from_features) < 0.45
    assert figure(held_out.p_value) > 0.05


def test_patients_are_told_on_slides_that_the_probe_never_saw() -> None:
    model, colour = features(site=0, patient=1), features(site=0, patient=0)
    probe = probe_origin("patient", PATIENTS, SLIDES, (model, colour), 19, 0)
    assert (probe.num_origins, probe.held_out) == (24, "slide")
    assert figure(probe.from_features) > 0.8
    assert figure(probe.from_colour) < 0.15
    assert "patient" in probe.sentence
    assert "P1" not in probe.sentence  # no identifier


def test_p_values_are_small_no_more_often_than_they_say_where_nothing_is_to_be_told() -> None:
    p_values = [figure(site_probe(features(0, 0.7, seed), num_permutations=9).p_value) for seed in range(40)]
    assert np.mean(np.array(p_values) <= 0.2) < 0.2 + 3 * np.sqrt(0.2 * 0.8 / 40)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.15)


def test_tiles_of_unknown_origin_are_left_out() -> None:
    half = [site if number % 2 else None for number, site in enumerate(SITES)]
    probe = probe_origin("site", half, PATIENTS, (features(1, 0), features(0, 0)), 9, 0)
    assert probe.num_tiles == 360


@pytest.mark.parametrize("sites", [["a"] * 720, [None] * 720, PATIENTS])
def test_a_site_with_one_patient_or_a_single_site_gives_words_in_place_of_figures(sites: list[str | None]) -> None:
    probe = probe_origin("site", sites, PATIENTS, (features(1, 1), features(0, 0)), 9, 0)
    assert (probe.from_features, probe.from_colour, probe.p_value, probe.chance) == (None, None, None, None)
    assert "not asked" in probe.sentence


def test_constant_features_tell_nothing() -> None:
    probe = probe_origin("site", SITES, PATIENTS, (np.ones((720, 8)), features(0, 0)), 9, 0)
    assert figure(probe.from_features) == pytest.approx(0.25, abs=0.01)
    assert figure(probe.p_value) > 0.05


def test_the_nearest_origin_is_that_of_scikit_learns_linear_discriminant() -> None:
    x = features(site=0.5, patient=0)
    train, site, test = x[::2], SITE_N[::2], x[1::2]
    _, shrinkage = ledoit_wolf(train - np.array([train[site == k].mean(axis=0) for k in site]), assume_centered=True)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[0.25] * 4).fit(train, site)
    assert (_nearest_origin(train, site, test) == reference.predict(test)).all()


@settings(max_examples=50, deadline=None)
@given(num_groups=st.lists(st.integers(2, 12), min_size=2, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_no_fold_holds_all_groups_of_an_origin(num_groups: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    origin_G: NDArray[np.int64] = rng.permutation(np.repeat(np.arange(len(num_groups)), num_groups))
    fold_G = _folds(origin_G, rng)
    for origin, number in enumerate(num_groups):
        counts = np.bincount(fold_G[origin_G == origin], minlength=5)
        assert counts.max() - counts.min() <= 1
        assert counts.max() < number


def test_the_features_of_all_tiles_are_never_copied() -> None:
    """Of a million tiles of a ResNet-18 they are 2 GB; the probe takes 5,000 of them."""
    num = 100_000
    features_NF, colours_NF = np.zeros((num, 128), np.float32), np.zeros((num, 1))
    patients = (np.arange(num) // 200).astype(str)  # each of one slide, so that nothing is asked in the end
    half = np.full((num, 2), 0.5)
    test = Predictions(np.arange(num).astype(str), np.zeros(num, np.int64), half, patients, ("a", "b"), slides=patients)
    tracemalloc.start()
    (probe,) = probes(test, features_NF, colours_NF, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert probe.from_features is None
    assert peak < features_NF.nbytes
