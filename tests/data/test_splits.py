"""Splits keep patients whole, share out each class, and depend on nothing but seed and names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from historay.data.splits import SplitFractions, assign_splits, tile_groups
from historay.errors import DataError

NO_PAIRS = np.empty((0, 2), np.int64)


def cohort(seed: int, num_tiles: int = 600, num_patients: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, num_patients, num_tiles)
    return rng.integers(0, 3, num_tiles), np.array([f"P{patient}" for patient in patients])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_patient_spans_two_splits(seed: int) -> None:
    labels, patients = cohort(seed)
    splits = assign_splits(labels, patients, SplitFractions(), seed)
    assert len({(patient, split) for patient, split in zip(patients, splits, strict=True)}) == len(set(patients))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_the_rows_does_not_change_a_tile_s_split(seed: int) -> None:
    labels, patients = cohort(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    straight = assign_splits(labels, patients, SplitFractions(), seed=7)
    assert np.array_equal(straight[order], assign_splits(labels[order], patients[order], SplitFractions(), seed=7))


def test_each_class_is_shared_out_as_the_fractions_say() -> None:
    labels, patients = cohort(1, num_tiles=8000, num_patients=400)
    splits = assign_splits(labels, patients, SplitFractions(val=0.2, test=0.1), seed=0)
    for label in range(3):
        shares = [(splits[labels == label] == name).mean() for name in ("train", "val", "test")]
        assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_another_seed_gives_another_split() -> None:
    labels, patients = cohort(1)
    assert not np.array_equal(
        assign_splits(labels, patients, SplitFractions(), seed=0), assign_splits(labels, patients, SplitFractions(), seed=1)
    )


def test_three_patients_fill_three_splits_and_two_do_not() -> None:
    labels, patients = np.zeros(30, int), np.repeat(["a", "b", "c"], 10)
    assert set(assign_splits(labels, patients, SplitFractions(), seed=0)) == {"train", "val", "test"}
    with pytest.raises(DataError, match=r"2 group\(s\) of tiles cannot fill the splits train, val, test"):
        assign_splits(labels[:20], patients[:20], SplitFractions(), seed=0)


def test_patients_who_share_a_duplicate_become_one_group() -> None:
    groups = tile_groups(["t0", "t1", "t2", "t3"], ["A", "B", "C", None], [None] * 4, np.array([[0, 1]]))
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_slides_that_are_numbered_anew_for_each_patient_join_no_patients() -> None:
    assert len(set(tile_groups(["t0", "t1", "t2"], ["A", "B", "C"], ["1"] * 3, NO_PAIRS))) == 3


def test_one_tile_without_a_patient_does_not_join_all_who_have_a_slide_of_that_number() -> None:
    assert len(set(tile_groups(["t0", "t1", "t2"], ["A", "B", None], ["1"] * 3, NO_PAIRS))) == 3


def test_a_tile_without_a_patient_stays_with_the_patient_of_its_slide() -> None:
    groups = tile_groups(["t0", "t1", "t2", "t3"], ["A", None, "B", None], ["s", "s", "r", "q"], NO_PAIRS)
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_without_a_patient_the_slide_groups_and_without_both_the_tile() -> None:
    groups = tile_groups(["t0", "t1", "t2", "t3"], [None] * 4, ["s", "s", None, None], NO_PAIRS)
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_fractions_that_leave_nothing_to_train_are_refused() -> None:
    with pytest.raises(ValueError, match=r"val=0.6 and test=0.4: both must be at least 0 and their sum below 1"):
        SplitFractions(val=0.6, test=0.4)
