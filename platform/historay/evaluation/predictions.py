"""What a model said of each tile of one split, checked on creation and kept as Parquet."""

import io
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from historay.errors import DataError

# float32 softmax over K classes is off by less than 1e-6; what is off by more was never normalised.
_SUM_TOLERANCE = 1e-6
UNKNOWN = "unknown"  # the site or scanner of a tile that has none, where others have
_ORIGINS = ("patients", "slides", "sites", "scanners")


@dataclass(frozen=True)
class Predictions:
    """N tiles in any order and their probabilities over K classes; DataError on any shape or value that cannot be."""

    tile_ids: NDArray[np.str_]  # (N,)
    labels: NDArray[np.int64]  # (N,) true class, index into classes
    probabilities: NDArray[np.float64]  # (N, K), rows sum to 1
    patients: NDArray[np.str_] | None  # (N,); None: at least one tile's patient is unknown
    classes: tuple[str, ...]
    slides: NDArray[np.str_] | None = None  # (N,); None: at least one tile's slide is unknown
    sites: NDArray[np.str_] | None = None  # (N,), "unknown" where it is; None: of every tile
    scanners: NDArray[np.str_] | None = None  # likewise
    mpps: NDArray[np.float64] | None = None  # (N,) micrometres per pixel, NaN where unknown; None: of every tile

    def __post_init__(self) -> None:
        num, num_classes = len(self.tile_ids), len(self.classes)
        if num == 0:
            raise DataError("no predictions: the split has no tiles")
        if self.labels.shape != (num,) or self.probabilities.shape != (num, num_classes):
            raise DataError(
                f"{num} tile ids and {num_classes} classes, but labels have the shape {self.labels.shape} "
                f"and probabilities {self.probabilities.shape}; expected ({num},) and ({num}, {num_classes})"
            )
        for name in (*_ORIGINS, "mpps"):
            values = getattr(self, name)
            if values is not None and values.shape != (num,):
                raise DataError(f"{num} tile ids, but {name} have the shape {values.shape}; expected ({num},)")
        if len(np.unique(self.tile_ids)) != num:
            raise DataError(f"{num - len(np.unique(self.tile_ids))} tile ids stand twice; predict each tile once")
        self._check_values()

    def _check_values(self) -> None:
        outside = (self.labels < 0) | (self.labels >= len(self.classes))
        if outside.any():
            tile = int(outside.argmax())
            raise DataError(f"tile {self.tile_ids[tile]}: label {self.labels[tile]} is no index into {self.classes}")
        within = np.isfinite(self.probabilities) & (self.probabilities >= 0) & (self.probabilities <= 1)
        wrong = ~within.all(axis=1) | (np.abs(self.probabilities.sum(axis=1) - 1) > _SUM_TOLERANCE)
        if wrong.any():
            tile = int(wrong.argmax())
            raise DataError(
                f"tile {self.tile_ids[tile]}: {self.probabilities[tile].tolist()} are no probabilities that sum to 1 "
                f"(so are {int(wrong.sum())} of {len(wrong)} rows); a NaN means that training diverged"
            )

    def at(self, row_M: NDArray[np.int64] | NDArray[np.bool_]) -> "Predictions":
        """Returns the chosen rows, in the order given."""
        chosen: dict[str, Any] = {name: value[row_M] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **chosen)

    def with_probabilities(self, probability_NK: NDArray[np.float64]) -> "Predictions":
        """Returns the same tiles with other probabilities, e.g. calibrated ones."""
        return replace(self, probabilities=probability_NK)

    def to_parquet(self) -> bytes:
        """Encodes as Parquet: tile_id, label, origins and one column ``p<k>`` a class; the classes in the metadata."""
        num = len(self.tile_ids)
        columns: dict[str, pa.Array] = {
            "tile_id": pa.array(self.tile_ids.tolist(), pa.string()),
            "label": pa.array(self.labels, pa.int64()),
        }
        for name in _ORIGINS:
            values = getattr(self, name)
            columns[name[:-1]] = pa.nulls(num, pa.string()) if values is None else pa.array(values.tolist(), pa.string())
        columns["mpp"] = pa.nulls(num, pa.float64()) if self.mpps is None else pa.array(self.mpps, pa.float64())
        columns |= {f"p{k}": pa.array(self.probabilities[:, k]) for k in range(len(self.classes))}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns).replace_schema_metadata({"classes": json.dumps(self.classes)}), buffer)
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes) -> "Predictions":
        """Decodes what ``to_parquet`` wrote; DataError if it is something else."""
        table = pq.read_table(io.BytesIO(data))
        metadata = table.schema.metadata or {}
        if b"classes" not in metadata:
            raise DataError(f"not a predictions file: no classes in its metadata, columns are {table.column_names}")
        classes = tuple(json.loads(metadata[b"classes"]))
        origins = {name: _known(table[name[:-1]]) for name in _ORIGINS}
        return cls(
            tile_ids=np.array(table["tile_id"].to_pylist(), dtype=np.str_),
            labels=table["label"].to_numpy(),
            probabilities=np.column_stack([table[f"p{k}"].to_numpy() for k in range(len(classes))]),
            classes=classes,
            mpps=None if table["mpp"].null_count else table["mpp"].to_numpy(),
            **origins,
        )


def _known(column: pa.ChunkedArray) -> NDArray[np.str_] | None:
    return None if column.null_count else np.array(column.to_pylist(), dtype=np.str_)
