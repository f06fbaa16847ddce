"""Subgroups: the same figures on fewer tiles, the bad one found, chance not mistaken for it, and no patient named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from historay.evaluation.operating_point import OperatingPoint
from historay.evaluation.predictions import Predictions
from historay.evaluation.subgroups import QUANTILES, SubgroupColumn, holm, judge_subgroups

POINT = OperatingPoint(positive_class="tumour", threshold=0.5, rule="a test")


def predictions(
    seed: int = 0, num_patients: int = 40, tiles: int = 40, bad_site: int | None = None, num_sites: int = 4
) -> Predictions:
    """Patients of some sites whose tiles are alike; at the bad site the network sees nothing."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), tiles)
    site = patient % num_sites
    label = rng.integers(2, size=len(patient))
    signal = np.where(site == bad_site, 0.0, 1.0)
    logit = signal * 2.4 * (label - 0.5) + rng.normal(size=len(patient)) + 0.4 * rng.normal(size=num_patients)[patient]
    positive = 1 / (1 + np.exp(-logit))
    return Predictions(
        tile_ids=np.array([f"{row:06d}" for row in range(len(patient))]),
        labels=label,
        probabilities=np.stack([1 - positive, positive], axis=1),
        patients=np.array([f"MRN-{7000 + number}" for number in patient]),
        classes=("normal", "tumour"),
        sites=np.array(["Aa", "Bb", "Cc", "Dd"])[site],
        scanners=np.array(["old", "new"])[patient // 4 % 2],
        mpps=np.array([0.2425, 0.2521, 0.5])[rng.integers(3, size=len(patient))],
    )


def column(found: Predictions, name: str, seed: int = 0, num_resamples: int = 400) -> SubgroupColumn:
    judged = judge_subgroups(found, POINT, {}, num_resamples, seed)
    return next(one for one in judged.columns if one.column == name)


def test_a_group_s_figures_are_those_of_its_tiles_alone() -> None:
    found = predictions()
    for group in column(found, "site").groups:
        rows = found.sites == group.name
        label, probability = found.labels[rows], found.probabilities[rows, 1]
        assert group.num_tiles == rows.sum() == 400
        assert group.num_patients == 10
        assert group.roc_auc.value == pytest.approx(sklearn.metrics.roc_auc_score(label, probability), abs=1e-12)
        assert group.accuracy.value == pytest.approx(sklearn.metrics.accuracy_score(label, probability >= 0.5), abs=1e-12)
        assert group.sensitivity is not None
        assert group.sensitivity.value == pytest.approx(sklearn.metrics.recall_score(label, probability >= 0.5), abs=1e-12)
        rest = sklearn.metrics.roc_auc_score(found.labels[~rows], found.probabilities[~rows, 1])
        assert group.gap.value == pytest.approx(group.roc_auc.value - rest, abs=1e-12)


def test_groups_beyond_the_20_largest_keep_their_values_alone_and_the_small_are_only_counted() -> None:
    found = predictions(num_patients=60)
    sites = np.array([f"{number % 25:02d}" for number in np.repeat(np.arange(60), 40)])
    sites[sites == "24"] = np.where(np.arange((sites == "24").sum()) < 29, "24", "00")
    judged = column(replace(found, sites=sites), "site")
    assert (len(judged.groups), judged.num_small) == (20, 1)
    assert {group.name for group in judged.groups} | {group.name for group in judged.further} == set(sites) - {"24"}
    for group in judged.further:
        rows = sites == group.name
        label, probability = found.labels[rows], found.probabilities[rows, 1]
        assert group.num_tiles == rows.sum()
        assert group.roc_auc == pytest.approx(sklearn.metrics.roc_auc_score(label, probability), abs=1e-12)
        assert group.accuracy == pytest.approx(sklearn.metrics.accuracy_score(label, probability >= 0.5), abs=1e-12)


def test_a_site_where_the_network_fails_is_named_and_no_other_column_is_blamed() -> None:
    judged = {one.column: one for one in judge_subgroups(predictions(bad_site=2), POINT, {}, 400, 0).columns}
    site = judged["site"]
    assert (site.worst, site.worst_differs, site.groups[0].name) == ("Cc", True, "Cc")
    assert site.groups[0].gap.high is not None
    assert site.groups[0].gap.high < 0
    assert site.level == pytest.approx(1 - 0.05 / 4)
    assert judged["scanner"].worst is not None
    assert not judged["scanner"].worst_differs
    assert not judged["magnification"].worst_differs


def test_a_site_shown_to_be_worse_is_named_though_a_site_of_two_patients_ranks_below_it() -> None:
    found = predictions(bad_site=2, num_patients=60)
    assert found.patients is not None
    assert found.sites is not None
    two = np.isin(found.patients, np.unique(found.patients[found.sites == "Aa"])[:2])
    noise = 1 - found.probabilities[:, 1]  # a mirror image: below any other site
    positive = np.where(two, noise, found.probabilities[:, 1])
    changed = {"sites": np.where(two, "Zz", found.sites), "probabilities": np.stack([1 - positive, positive], axis=1)}
    site = column(Predictions(**{**vars(found), **changed}), "site")
    assert (site.worst, site.worst_differs, site.worse) == ("Zz", False, ("Cc",))


def test_where_all_groups_are_alike_one_is_blamed_in_at_most_5_of_100_columns() -> None:
    blamed = 0
    for seed in range(100):
        found = predictions(seed, num_patients=36, tiles=15, num_sites=3)
        site = column(found, "site", seed, num_resamples=100)
        blamed += any(group.p_adjusted is not None and group.p_adjusted < 0.05 for group in site.groups)
    assert blamed <= 11  # 5 expected; the 99th percentile of that binomial


def test_intervals_of_all_groups_hold_the_truth_together_in_95_of_100() -> None:
    """True accuracy at the threshold 0.5, by Monte Carlo over many patients."""
    many = predictions(99, num_patients=20_000, tiles=5)
    truth = np.mean((many.probabilities[:, 1] >= 0.5) == many.labels)
    held = 0
    for seed in range(100):
        groups = column(predictions(seed, num_patients=60, tiles=15, num_sites=3), "site", seed, num_resamples=200).groups
        held += all(group.accuracy.low <= truth <= group.accuracy.high for group in groups)  # type: ignore[operator]
    assert held >= 89  # the 1st percentile at 95 %


def test_tiles_of_unknown_site_are_in_no_comparison_and_small_sites_are_only_counted() -> None:
    found = predictions()
    assert found.sites is not None
    sites = found.sites.astype("<U10")
    sites[:100], sites[100:120], sites[120:125] = "unknown", "tiny", "tinier"
    changed = Predictions(**{**vars(found), "sites": sites})
    site = column(changed, "site")
    assert {group.name for group in site.groups} == {"Aa", "Bb", "Cc", "Dd"}
    assert (site.num_unknown, site.num_small) == (100, 2)
    rows, known = sites == "Aa", sites != "unknown"
    aucs = [sklearn.metrics.roc_auc_score(found.labels[side], found.probabilities[side, 1]) for side in (rows, known & ~rows)]
    assert next(group for group in site.groups if group.name == "Aa").gap.value == pytest.approx(aucs[0] - aucs[1], abs=1e-12)


def test_a_site_of_one_class_has_no_auc_and_says_why_and_accuracy_orders_the_column() -> None:
    found = predictions()
    labels = np.where(found.sites == "Bb", 0, found.labels)
    site = column(Predictions(**{**vars(found), "labels": labels}), "site")
    assert site.criterion == "accuracy"
    lone = next(group for group in site.groups if group.name == "Bb")
    assert (lone.roc_auc.value, lone.roc_auc.reason) == (None, "undefined: no tiles of class tumour in this group")
    values = [group.accuracy.value for group in site.groups]
    assert values == sorted(values)  # type: ignore[type-var]


def test_a_site_that_is_always_wrong_is_found_though_no_resample_varies() -> None:
    found = predictions()
    right = np.where(found.labels == 1, 0.9, 0.1)
    positive = np.where(found.sites == "Dd", 1 - right, right)
    labels = np.where((found.sites == "Dd") & (found.labels == 0), 1, found.labels)
    positive[labels != found.labels] = 0.1
    sure = Predictions(**{**vars(found), "labels": labels, "probabilities": np.stack([1 - positive, positive], axis=1)})
    site = column(sure, "site")
    assert (site.worst, site.worst_differs, site.groups[0].gap.value) == ("Dd", True, -1.0)


def test_a_site_of_one_patient_is_shown_but_not_tested() -> None:
    found = predictions(num_patients=4)
    site = column(found, "site")
    assert [group.num_patients for group in site.groups] == [1] * 4
    assert all(
        group.p_adjusted is None and "effectively 1 patients on one side" in str(group.gap.reason) for group in site.groups
    )
    assert not site.worst_differs


def test_a_column_of_one_value_has_no_worst() -> None:
    found = predictions()
    one = np.full(len(found.labels), "stain cluster 1")
    judged = judge_subgroups(found, POINT, {"stain cluster": one}, 100, 0).columns[-1]
    assert (judged.column, judged.worst, judged.worst_differs, len(judged.groups)) == ("stain cluster", None, False, 1)
    assert judged.groups[0].gap.value is None


def test_magnification_is_named_to_two_digits() -> None:
    names = {group.name for group in column(predictions(), "magnification").groups}
    assert names == {"0.24 µm/px", "0.25 µm/px", "0.5 µm/px"}


def test_of_several_classes_the_auc_is_the_mean_of_each_against_the_rest() -> None:
    found = predictions()
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=len(found.labels))
    raw = rng.random((len(labels), 3)) + 0.8 * np.eye(3)[labels]
    three = Predictions(
        **{**vars(found), "labels": labels, "probabilities": raw / raw.sum(axis=1, keepdims=True), "classes": ("a", "b", "c")}
    )
    for group in judge_subgroups(three, None, {}, 100, 0).columns[0].groups:
        rows = three.sites == group.name
        expected = sklearn.metrics.roc_auc_score(labels[rows], three.probabilities[rows], multi_class="ovr")
        assert group.roc_auc.value == pytest.approx(expected, abs=1e-12)
        assert group.sensitivity is None


def test_no_patient_is_named_anywhere_and_the_spread_is_numpys() -> None:
    found = predictions()
    judged = judge_subgroups(found, POINT, {}, 100, 0)
    text = judged.model_dump_json()
    assert found.patients is not None
    assert not any(patient in text for patient in np.unique(found.patients))
    assert "NaN" not in text
    assert json.loads(text)["patients"]["num_patients"] == 40
    right = (found.probabilities[:, 1] >= 0.5) == found.labels
    by_patient = [right[found.patients == patient].mean() for patient in np.unique(found.patients)]
    assert judged.patients is not None
    assert judged.patients.accuracy is not None
    assert list(judged.patients.accuracy.values()) == pytest.approx(np.quantile(by_patient, QUANTILES))
    assert judged.patients.tiles["0.5"] == 40
    assert judged.patients.worst is not None
    expected = proportion_confint(round(min(by_patient) * 40), 40, alpha=0.05 / 40, method="wilson")
    assert judged.patients.worst.value == min(by_patient)
    assert (judged.patients.worst.low, judged.patients.worst.high) == pytest.approx(expected)


def test_without_patients_tiles_are_drawn_and_the_spread_is_absent() -> None:
    judged = judge_subgroups(Predictions(**{**vars(predictions()), "patients": None}), POINT, {}, 100, 0)
    assert judged.patients is None
    assert all(group.num_patients is None for one in judged.columns for group in one.groups)


def test_patients_of_few_tiles_have_no_accuracy() -> None:
    spread = judge_subgroups(predictions(tiles=9), POINT, {}, 100, 0).patients
    assert spread is not None
    assert (spread.num_patients, spread.num_judged, spread.accuracy, spread.worst) == (40, 0, None, None)


def test_the_order_of_the_tiles_does_not_matter() -> None:
    found = predictions()
    order = np.random.default_rng(5).permutation(len(found.labels))
    mixed = Predictions(
        **{name: value[order] if isinstance(value, np.ndarray) else value for name, value in vars(found).items()}
    )
    for one, other in zip(column(found, "site").groups, column(mixed, "site").groups, strict=True):
        assert one.name == other.name
        assert one.p_adjusted == pytest.approx(other.p_adjusted, rel=1e-6)
        assert one.roc_auc.low == pytest.approx(other.roc_auc.low, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 3))
def test_holm_is_statsmodels(p_values: list[float], num_untested: int) -> None:
    expected: NDArray[np.float64] = multipletests(p_values, method="holm")[1]
    found = holm([None] * num_untested + p_values)  # type: ignore[operator]
    assert found[:num_untested] == [None] * num_untested
    assert found[num_untested:] == pytest.approx(expected)
