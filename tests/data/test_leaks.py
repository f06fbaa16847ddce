"""What stands on both sides of a split is found and named; what hangs on one origin is reported."""

import numpy as np
import pyarrow as pa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from historay.data.duplicates import DuplicatePairs
from historay.data.leaks import find_confounds, find_leaks, summarise_leaks
from historay.data.splits import SplitFractions, assign_splits, tile_groups

NONE = DuplicatePairs(np.empty((0, 2), np.int64), np.empty(0, bool))


def manifest(**columns: list[str | None]) -> pa.Table:
    num = len(next(iter(columns.values())))
    nothing = pa.nulls(num, pa.string())
    given = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    blank = dict.fromkeys(["patient", "slide", "site", "scanner"], nothing)
    names = {"tile_id": pa.array([f"t{row}" for row in range(num)]), "source": pa.array([f"{row}.jpg" for row in range(num)])}
    return pa.table({**names, **blank, **given})


def test_a_patient_on_both_sides_is_found_once_and_named_by_tiles() -> None:
    tiles = manifest(patient=["A", "A", "A", "B"], split=["train", "test", "test", "test"])
    (leak,) = summarise_leaks(find_leaks(tiles, NONE))
    assert (leak.kind, leak.num_pairs, leak.splits, leak.tile_a, leak.tile_b) == ("patient", 1, ("test", "train"), "t0", "t1")


def test_slides_that_are_numbered_anew_for_each_patient_are_no_leak() -> None:
    tiles = manifest(patient=["A", "B", "A"], slide=["1", "1", "2"], split=["train", "test", "train"])
    assert summarise_leaks(find_leaks(tiles, NONE)) == ()


def test_a_slide_on_both_sides_is_found_though_its_patient_is_known_of_one_only() -> None:
    tiles = manifest(patient=["A", None, "B"], slide=["1", "1", "2"], split=["train", "test", "test"])
    (leak,) = summarise_leaks(find_leaks(tiles, NONE))
    assert (leak.kind, leak.tile_a, leak.tile_b) == ("slide", "t0", "t1")


@settings(max_examples=50)
@given(
    tiles=st.lists(st.tuples(st.sampled_from(["A", "B", "C", "D", None]), st.sampled_from(["1", "2", "3", None])), min_size=20),
    seed=st.integers(0, 9),
)
def test_a_split_of_our_own_never_leaks(tiles: list[tuple[str | None, str | None]], seed: int) -> None:
    patients, slides = (list(column) for column in zip(*tiles, strict=True))
    groups = tile_groups([f"t{row}" for row in range(len(tiles))], patients, slides, NONE.pairs)
    assume(len(set(groups)) >= 3)
    split = assign_splits(np.zeros(len(tiles), int), groups, SplitFractions(), seed)
    assert summarise_leaks(find_leaks(manifest(patient=patients, slide=slides, split=split.tolist()), NONE)) == ()


def test_duplicates_within_a_split_are_no_leak() -> None:
    tiles = manifest(split=["train", "train", "test"])
    pairs = DuplicatePairs(np.array([[0, 1], [0, 2]]), np.array([True, False]))
    (leak,) = summarise_leaks(find_leaks(tiles, pairs))
    assert (leak.kind, leak.tile_a, leak.tile_b) == ("near-duplicate", "t0", "t2")


def test_a_clean_split_has_no_leak() -> None:
    tiles = manifest(patient=["A", "B"], slide=["1", "2"], split=["train", "test"])
    assert summarise_leaks(find_leaks(tiles, NONE)) == ()


def test_a_class_from_one_patient_is_reported_without_naming_the_patient() -> None:
    tiles = manifest(patient=["P7"] * 30 + ["P8", "P9"] * 15, label_name=["rare"] * 30 + ["common"] * 30)
    (found,) = find_confounds(tiles)
    assert (found.class_name, found.column) == ("rare", "patient")
    assert "P7" not in found.message


def test_sites_with_one_class_each_are_reported_and_mixed_sites_are_not() -> None:
    apart = manifest(site=["a", "b", "c", "d"] * 10, label_name=["x", "x", "y", "y"] * 10)
    assert {found.class_name for found in find_confounds(apart)} == {"x", "y"}
    mixed = manifest(site=["a", "b"] * 20, label_name=["x", "x", "y", "y"] * 10)
    assert find_confounds(mixed) == ()
