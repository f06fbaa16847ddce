"""A batch prediction's parts: every image in one of them, one row for each, the same columns whatever became of them."""

import io
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import PROBES, SPEC, network
from hypothesis import given
from hypothesis import strategies as st
from images import encoded, png_of_claimed_size, texture
from pydantic import BaseModel

from historay.data.decode import Limits
from historay.errors import ConfigError, DataError
from historay.models.bundle import Bundle
from historay.models.runtime import make_runtime
from historay.serving.inputs import Input, find_images
from historay.serving.parts import (
    Part,
    PartSummary,
    Plan,
    arrow_type,
    claim,
    decode_part,
    encode_part,
    list_image_parts,
    read_summaries,
    row_schema,
    write_part,
)
from historay.serving.pipeline import PartPredictor, overlapped
from historay.serving.predict_settings import PredictConfig
from historay.serving.predictor import Predictor
from historay.serving.schema import ImagePrediction
from historay.storage import LocalStore

PLAN = Plan(model="demo@1", runtime="torch", inputs=("tiles",), inputs_digest="a", images_per_part=3, num_images=3, num_parts=1)
STORES = [LocalStore(f"/{name}") for name in "abc"]
listings = st.lists(st.tuples(st.sampled_from(STORES), st.text("xyz/", min_size=1), st.none() | st.integers(0, 99)), min_size=1)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    bundle = Bundle(SPEC, network(), "1", PROBES)
    return Predictor(bundle, Limits(max_pixels=10_000), make_runtime(bundle, "torch"))


@given(listed=listings, size=st.integers(1, 5))
def test_every_image_stands_in_one_part_at_its_index_and_no_part_spans_two_stores(
    listed: list[tuple[LocalStore, str, int | None]], size: int
) -> None:
    listing = list_image_parts([Input(*image) for image in listed], size)
    placed = [(part.store, key) for part in listing.parts for key in part.keys]
    assert placed == [(store.uri, key) for store, key, _ in listed]
    assert [part.start for part in listing.parts] == [
        sum(part.num_rows for part in listing.parts[:number]) for number in range(len(listing.parts))
    ]
    assert all(len(part.keys) == part.num_rows <= size for part in listing.parts)
    assert listing.num_images == len(listed)
    assert len({part.output for part in listing.parts}) == len(listing.parts)


@given(listed=listings, other=listings)
def test_two_listings_have_one_digest_only_if_they_list_the_same(
    listed: list[tuple[LocalStore, str, int | None]], other: list[tuple[LocalStore, str, int | None]]
) -> None:
    digests = [list_image_parts([Input(*image) for image in images], 4).digest for images in (listed, listed, other)]
    assert digests[0] == digests[1]
    assert (digests[0] == digests[2]) == (listed == other)


@given(keys=st.lists(st.text(st.characters() | st.just("\udce9"), min_size=1), min_size=1))
def test_a_part_travels_as_text_and_comes_out_as_it_was(keys: list[str]) -> None:
    part = Part(3, 3072, len(keys), "s3://b/x", tuple(keys))
    assert decode_part(encode_part(part)) == part


def test_a_part_has_one_row_per_image_with_the_answers_of_the_predictor(predictor: Predictor, tmp_path: Path) -> None:
    files: dict[str, bytes] = {f"{number:02d}.jpg": encoded(texture(number)) for number in range(70)}
    files |= {"05.jpg": b"text", "40.jpg": b"", "41.png": png_of_claimed_size(9000, 9000), "69.jpg": files["69.jpg"][:400]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    keys = (*sorted(files), "gone.jpg")
    rows = PartPredictor(predictor).rows(Part(1, 1000, len(keys), str(tmp_path), keys))
    assert [row["index"] for row in rows] == list(range(1000, 1000 + len(keys)))
    assert [row["image"] for row in rows] == [str(tmp_path / key) for key in keys]
    bad = {Path(row["image"]).name: row["error_reason"] for row in rows if "error_reason" in row}
    assert bad == {
        "05.jpg": "not-an-image",
        "40.jpg": "empty",
        "41.png": "too-many-pixels",
        "69.jpg": "truncated",
        "gone.jpg": "unreadable",
    }
    for row, key in zip(rows, keys, strict=True):
        if key not in bad:
            (alone,) = predictor.predict([files[key]])
            assert isinstance(alone, ImagePrediction)
            assert (row["sha256"], row["label"]) == (alone.sha256, alone.label)
            assert row["probability_tumour"] == pytest.approx(alone.probabilities["tumour"], abs=1e-6)


def test_a_part_of_errors_alone_has_the_columns_of_any_other_and_null_is_no_answer(store: LocalStore) -> None:
    rows = [{"image": "x", "index": 0, "model": "demo@1", "error_reason": "empty", "error_detail": "no bytes"}]
    summary = PartSummary(plan="p", runtime="torch", num_rows=1, num_errors=1)
    write_part(store, "part.parquet", rows, SPEC.classes, summary)
    assert read_summaries(store, ["part.parquet"]) == [summary]
    table = pq.read_table(io.BytesIO(store.read("part.parquet")))
    assert table.schema.equals(row_schema(SPEC.classes))
    (row,) = table.to_pylist()
    assert {name for name, value in row.items() if value is not None} == set(rows[0])


def test_every_field_of_an_answer_is_a_column_but_the_pictures() -> None:
    columns = set(row_schema(("a", "b")).names)
    heatmap = {"heatmap_png", "heatmap_missing"}
    assert set(ImagePrediction.model_fields) - heatmap - {"probabilities"} <= columns
    assert {"probability_a", "probability_b", "image", "error_reason", "error_detail", "model"} <= columns
    assert not heatmap & columns


class Nested(BaseModel):
    reason: Literal["blurred", "blank"] | None
    values: tuple[float, ...]
    by_name: dict[str, bool]


def test_fields_of_any_shape_that_an_answer_may_get_have_a_column_type() -> None:
    values = pa.struct([("reason", pa.string()), ("values", pa.list_(pa.float64())), ("by_name", pa.map_("string", "bool"))])
    assert arrow_type(tuple[Nested, ...]) == pa.list_(values)
    assert arrow_type(int | None) == pa.int64()


def test_a_name_that_is_no_text_still_has_its_row(predictor: Predictor, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(encoded(texture(1)))
    listing = list_image_parts(find_images((str(tmp_path),)), 4)
    (row,) = PartPredictor(predictor).rows(listing.parts[0])
    assert (Path(row["image"]).name, row["label"] in SPEC.classes) == ("caf�.jpg", True)


def test_an_output_is_finished_by_its_own_plan_and_refused_to_any_other(store: LocalStore) -> None:
    claim(store, PLAN)
    claim(store, PLAN)
    said = "model demo@1 there, demo@2 now; num_images 3 there, 4 now; choose another --out"
    with pytest.raises(ConfigError, match=re.escape(said)):
        claim(store, PLAN.model_copy(update={"model": "demo@2", "num_images": 4}))


@given(items=st.lists(st.integers()), ahead=st.integers(0, 4))
def test_overlapped_work_keeps_the_order_and_never_runs_further_ahead(items: list[int], ahead: int) -> None:
    taken: list[int] = []

    def watched() -> Any:
        for item in items:
            taken.append(item)
            yield item

    with ThreadPoolExecutor(3) as threads:
        for number, result in enumerate(overlapped(threads, lambda item: item * 2, watched(), ahead)):
            assert result == items[number] * 2
            assert len(taken) <= number + 1 + ahead
    assert taken == items


def test_overlapped_work_does_overlap() -> None:
    both = threading.Barrier(2, timeout=30)
    with ThreadPoolExecutor(2) as threads:
        assert len(list(overlapped(threads, lambda _: both.wait(), range(2), 1))) == 2


def _parquet(paths: list[str]) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame({"path": paths, "age": 7}).to_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "write"), [("m.csv", lambda paths: "\n".join(["path", *paths]).encode()), ("m.parquet", _parquet)]
)
def test_a_manifest_names_images_relative_to_its_folder_in_its_own_order(
    name: str, write: Callable[[list[str]], bytes], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(write(["b/2.jpg", "a/1.jpg", "b/2.jpg"]))
    found = [image.store.locate(image.key) for image in find_images((str(tmp_path / name),))]
    assert found == [str(tmp_path / path) for path in ("b/2.jpg", "a/1.jpg", "b/2.jpg")]


@pytest.mark.parametrize(
    ("content", "said"),
    [("path\n../x.jpg", "row 1: path '../x.jpg'"), ("file\nx", "column path is missing"), ("path\n", "no images")],
)
def test_a_manifest_that_cannot_be_used_is_refused_with_words(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(DataError, match=re.escape(said)):
        list_image_parts(find_images((str(tmp_path / "m.csv"),)), 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset": "demo", "model": "demo"},
        {"dataset": "demo", "images": ("x",), "model": "demo", "out": "o"},
        {"dataset": "demo", "model": "demo", "out": "o", "limit": 3},
        {"images": ("x",), "url": "http://h", "out": "o"},
    ],
)
def test_what_cannot_go_together_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"out|dataset"):
        PredictConfig.from_mapping(settings, "historay predict")
