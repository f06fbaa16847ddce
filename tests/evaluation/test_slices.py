"""A planted slice is found without being told, chance and bad patients are not taken for one."""

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from historay.evaluation.slices import _p_value, cluster_tiles, find_slices

Tiles = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]


def tiles(seed: int, num: int = 2500, planted: float = 0.06, rate: float = 0.4) -> Tiles:
    """Features, labels, predictions and which tiles are planted: shifted in some features, and often taken for normal."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=num)
    features = rng.normal(size=(num, 40)) @ (np.eye(40) + 0.2 * rng.normal(size=(40, 40)))
    features[:, :5] += 1.5 * label[:, None]
    inside = rng.random(num) < planted
    features[np.ix_(inside, range(20, 28))] += 4.0
    wrong = rng.random(num) < np.where(inside, rate, 0.08)
    return features.astype(np.float32), label, np.where(wrong, 1 - label, label), inside


def test_a_planted_slice_is_found_and_told_apart_from_the_rest() -> None:
    features, label, predicted, inside = tiles(0)
    search = find_slices(features, label, predicted, None, seed=0)
    assert search.num_clusters == 7  # sqrt(2500 / 50)
    assert len(search.slices) == 1
    found = search.slices[0]
    assert found.p_adjusted < 1e-6
    assert found.num_tiles == pytest.approx(inside.sum(), rel=0.15)
    assert inside[list(found.typical_rows)].all()
    assert inside[list(found.wrong_rows)].all()
    assert (label != predicted)[list(found.wrong_rows)].all()
    assert found.rest_error_rate == pytest.approx(0.08, abs=0.02)
    assert found.error_rate.low is not None
    assert found.error_rate.low > found.rest_error_rate


def test_planted_slices_are_found_in_nearly_all_of_20_data_sets() -> None:
    found = 0
    for seed in range(20):
        features, label, predicted, inside = tiles(seed)
        slices = find_slices(features, label, predicted, None, seed).slices
        found += bool(slices) and bool(inside[list(slices[0].typical_rows)].mean() > 0.8)
    assert found >= 18


def test_where_errors_fall_by_chance_no_slice_is_found_in_95_of_100_data_sets() -> None:
    mistaken = 0
    for seed in range(100):
        features, label, predicted, _ = tiles(seed, num=1200, rate=0.08)
        mistaken += bool(find_slices(features, label, predicted, None, seed).slices)
    assert mistaken <= 11  # 5 expected at most; the 99th percentile of that binomial


def of_patients(seed: int) -> tuple[Tiles, NDArray[np.str_]]:
    """30 patients, each with features and an error rate of their own, unrelated."""
    features, label, _, inside = tiles(seed, num=1200, rate=0.08)
    rng = np.random.default_rng([seed, 1])
    patient = rng.integers(30, size=len(label))
    features = features + 3.0 * rng.normal(size=(30, 40))[patient].astype(np.float32)
    rate = rng.beta(1.0, 6.0, size=30)[patient]
    wrong = rng.random(len(label)) < rate
    return (features, label, np.where(wrong, 1 - label, label), inside), np.array([f"MRN-{p}" for p in patient])


def test_bad_patients_are_no_slice_where_patients_are_known() -> None:
    by_patient = by_tile = 0
    for seed in range(100):
        (features, label, predicted, _), patients = of_patients(seed)
        by_patient += bool(find_slices(features, label, predicted, patients, seed).slices)
        by_tile += bool(find_slices(features, label, predicted, None, seed).slices)
    assert by_patient <= 11
    assert by_tile > 50, "tiles taken as independent see slices where there are only patients"


def test_a_slice_that_many_patients_share_is_found_and_nobody_is_named() -> None:
    features, label, predicted, inside = tiles(3)
    patients = np.array([f"MRN-{7000 + number}" for number in np.random.default_rng(0).integers(40, size=len(label))])
    search = find_slices(features, label, predicted, patients, seed=0)
    assert len(search.slices) == 1
    assert inside[list(search.slices[0].typical_rows)].all()
    assert search.slices[0].num_patients == len(np.unique(patients[inside]))
    assert "MRN" not in search.model_dump_json()


def test_the_commonest_mistake_is_named() -> None:
    features, label, predicted, inside = tiles(0)
    label = np.where(inside, 2, label)
    predicted = np.where(inside, np.where(np.arange(len(label)) % 3 > 0, 0, 2), predicted)
    found = find_slices(features, label, predicted, None, seed=0).slices[0]
    assert found.mistake == (2, 0)
    assert found.num_mistakes == pytest.approx(2 * inside.sum() / 3, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_the_test_is_fishers_and_the_interval_wilsons(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wrong, member = rng.random(300) < 0.2, rng.random(300) < 0.3
    table = [[(wrong & member).sum(), (~wrong & member).sum()], [(wrong & ~member).sum(), (~wrong & ~member).sum()]]
    expected = scipy.stats.fisher_exact(table, alternative="greater").pvalue
    assert _p_value(wrong, member, None) == pytest.approx(expected, rel=1e-9)

    features, label, predicted, _ = tiles(seed)
    for found in find_slices(features, label, predicted, None, seed).slices:
        num_wrong = round((found.error_rate.value or 0) * found.num_tiles)
        interval = proportion_confint(num_wrong, found.num_tiles, method="wilson")
        assert (found.error_rate.low, found.error_rate.high) == pytest.approx(interval, abs=1e-12)


def test_neither_the_scale_of_a_feature_nor_a_constant_one_matters() -> None:
    features, label, predicted, _ = tiles(1)
    scaled = np.column_stack([features * np.geomspace(0.01, 100, 40, dtype=np.float32), np.full(len(label), 0.1, np.float32)])
    one, other = (find_slices(part, label, predicted, None, seed=0).slices for part in (features, scaled))
    assert [found.typical_rows for found in one] == [found.typical_rows for found in other]


@pytest.mark.parametrize("num", [1, 2, 30])
def test_few_or_equal_tiles_have_no_slice(num: int) -> None:
    wrong = np.zeros(num, np.int64), np.ones(num, np.int64)
    for features in (np.full((num, 4), 0.1, np.float32), np.eye(num, 4, dtype=np.float32)):
        search = find_slices(features, *wrong, None, seed=0)
        assert (search.num_tested, search.slices) == (0, ())


def test_tiles_beyond_the_sample_that_axes_are_learned_from_get_their_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    features, label, predicted, inside = tiles(0)
    monkeypatch.setattr("historay.evaluation.slices._MAX_FIT", 800)
    monkeypatch.setattr("historay.evaluation.slices._CHUNK", 333)
    cluster, distance = cluster_tiles(features, seed=0)
    assert len(cluster) == len(distance) == len(label)
    assert inside[list(find_slices(features, label, predicted, None, seed=0).slices[0].typical_rows)].all()
