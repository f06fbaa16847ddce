"""A batch prediction in files: which images each part covers, how its rows look, and the two records beside the parts.

Under the output address stand ``plan.json``, written first: which model predicts which images;
``parts/part-000000.parquet``, each written whole; and ``predictions.json``, written last: all is there.
"""

import hashlib
import itertools
import json
import textwrap
import types
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from historay.data.dataset import Dataset
from historay.data.schema import Split
from historay.errors import ConfigError, Conflict, DataError
from historay.models.runtime import RuntimeName
from historay.serving.inputs import Input
from historay.serving.schema import ImagePrediction, Result
from historay.storage import Store

PARTS = "parts"
_PLAN = "plan.json"
_RECORD = "predictions.json"
_SUMMARY_KEY = b"historay.part"
_FOOTER_READERS = 16
# What the columns of a part say in their own way, or not at all.
_NOT_COPIED = {"index", "probabilities", "heatmap_png", "heatmap_missing"}


class Part(NamedTuple):
    """Some consecutive images of the input: files of one store, or the tiles of one shard."""

    number: int
    start: int  # index of its first image in the whole input
    num_rows: int
    store: str  # URI
    keys: tuple[str, ...]  # of the images, or of the shard
    of_shard: bool = False

    @property
    def output(self) -> str:
        """The key of its file under the output address."""
        return f"{PARTS}/part-{self.number:06d}.parquet"


class Listing(NamedTuple):
    """The whole input, in parts, and the digest of what was listed."""

    parts: list[Part]
    digest: str

    @property
    def num_images(self) -> int:
        """How many rows there must be in the end."""
        return self.parts[-1].start + self.parts[-1].num_rows


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Plan(_Record):
    """The content of plan.json: all that decides the rows."""

    model: str  # name@version
    runtime: RuntimeName  # as it was asked for
    inputs: tuple[str, ...]  # addresses, or data set and split
    inputs_digest: str  # SHA-256 of the addresses and sizes listed, or of the data set
    images_per_part: int  # of files; of a data set each shard is a part
    num_images: int
    num_parts: int

    @property
    def digest(self) -> str:
        """Names this plan in the footer of its parts."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class PartSummary(_Record):
    """What a part's footer says of it."""

    plan: str  # the plan's digest
    runtime: str  # what ran
    num_rows: int
    num_errors: int


class PredictionsRecord(Plan):
    """The content of predictions.json: the plan, and what came of it."""

    dataset: str  # that the model was trained on, name@version
    dataset_digest: str
    classes: tuple[str, ...]
    runtimes: tuple[str, ...]  # what ran; several where the workers' machines differ
    num_errors: int  # rows with an error_reason
    historay: str  # version of the code


def list_image_parts(images: Iterable[Input], images_per_part: int) -> Listing:
    """Cuts images, in the order given, into parts that each lie in one store."""
    parts: list[Part] = []
    digest, start = hashlib.sha256(), 0
    for uri, of_store in itertools.groupby(images, key=lambda image: image.store.uri):
        while chunk := list(itertools.islice(of_store, images_per_part)):
            for image in chunk:
                digest.update(f"{uri}\0{image.key}\0{image.size}\n".encode("utf-8", "surrogateescape"))
            parts.append(Part(len(parts), start, len(chunk), uri, tuple(image.key for image in chunk)))
            start += len(chunk)
    if not parts:
        raise DataError("no images: the manifest has no rows")
    return Listing(parts, digest.hexdigest())


def list_dataset_parts(dataset: Dataset, split: Split) -> Listing:
    """Makes a part of each shard of a split."""
    counted = dataset.manifest(["shard"])["shard"].value_counts().to_pylist()
    rows = {f"{dataset.prefix}/shards/{item['values']}.parquet": item["counts"] for item in counted}
    parts: list[Part] = []
    start = 0
    for key in dataset.shard_keys(split):
        parts.append(Part(len(parts), start, rows[key], dataset.store.uri, (key,), of_shard=True))
        start += rows[key]
    return Listing(parts, hashlib.sha256(f"{dataset.record.digest}:{split}".encode()).hexdigest())


def row_schema(classes: Sequence[str]) -> pa.Schema:
    """Returns the columns of a part, which are the same in every part of a model."""
    copied = [
        pa.field(name, arrow_type(field.annotation))
        for name, field in ImagePrediction.model_fields.items()
        if name not in _NOT_COPIED
    ]
    return pa.schema(
        [
            pa.field("image", pa.string(), nullable=False),  # address, or tile_id of a data set
            pa.field("index", pa.int64(), nullable=False),
            *copied,
            *(pa.field(f"probability_{name}", pa.float64()) for name in classes),
            pa.field("error_reason", pa.string()),  # none: the image was predicted
            pa.field("error_detail", pa.string()),
            pa.field("model", pa.string(), nullable=False),
        ]
    )


def part_row(image: str, index: int, result: Result, model: str) -> dict[str, Any]:
    """Returns one image's row; the columns that it does not name are null."""
    # A file's name need not be text.
    shown = image.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    row: dict[str, Any] = {"image": shown, "index": index, "model": model}
    if isinstance(result, ImagePrediction):
        row |= result.model_dump(exclude=_NOT_COPIED)
        row |= {f"probability_{name}": value for name, value in result.probabilities.items()}
    else:
        row |= {"error_reason": result.error.reason, "error_detail": result.error.detail}
    return row


def write_part(store: Store, key: str, rows: list[dict[str, Any]], classes: Sequence[str], summary: PartSummary) -> None:
    """Writes a part whole, its summary in the footer."""
    schema = row_schema(classes).with_metadata({_SUMMARY_KEY: summary.model_dump_json()})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    store.write(key, sink.getvalue().to_pybytes())


def read_summaries(store: Store, keys: Sequence[str]) -> list[PartSummary]:
    """Reads the footers of parts, without their rows."""
    filesystem, root = store.arrow()

    def read(key: str) -> PartSummary:
        return PartSummary.model_validate_json(pq.read_schema(f"{root}/{key}", filesystem=filesystem).metadata[_SUMMARY_KEY])

    with ThreadPoolExecutor(_FOOTER_READERS) as threads:
        return list(threads.map(read, keys))


def claim(out: Store, plan: Plan) -> None:
    """Writes the plan if none stands there; ConfigError if another one does, naming what differs."""
    try:
        out.swap(_PLAN, plan.model_dump_json(indent=2).encode(), expected=None)
    except Conflict:
        there = Plan.model_validate_json(out.read(_PLAN))
        if differing := list(_differences(there, plan)):
            raise ConfigError(
                f"{out.uri}: holds another prediction: {'; '.join(differing)}; choose another --out, or give again what "
                "is there to finish it"
            ) from None


def write_record(out: Store, record: PredictionsRecord) -> None:
    """Writes predictions.json."""
    out.write(_RECORD, record.model_dump_json(indent=2).encode())


def arrow_type(annotation: Any) -> pa.DataType:
    """Returns the column type of a field of an answer."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, types.UnionType}:
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return arrow_type(inner)
    if origin is Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(arrow_type(arguments[0]))
    if origin is dict:
        return pa.map_(arrow_type(arguments[0]), arrow_type(arguments[1]))
    if issubclass(annotation, BaseModel):
        return pa.struct([pa.field(name, arrow_type(field.annotation)) for name, field in annotation.model_fields.items()])
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[annotation]


def encode_part(part: Part) -> str:
    """Returns a part as text that Ray may carry; a key need not be valid Unicode."""
    return json.dumps(part)


def decode_part(text: str) -> Part:
    """Returns the part that ``encode_part`` wrote."""
    number, start, num_rows, store, keys, of_shard = json.loads(text)
    return Part(number, start, num_rows, store, tuple(keys), of_shard)


def _differences(there: Plan, now: Plan) -> Iterator[str]:
    for name in Plan.model_fields:
        old, new = getattr(there, name), getattr(now, name)
        if old != new:
            yield f"{name} {_shown(old)} there, {_shown(new)} now"


def _shown(value: object) -> str:
    return textwrap.shorten(" ".join(value) if isinstance(value, tuple) else str(value), 200)
