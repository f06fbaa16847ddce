"""What a model said of each tile of one split, checked on creation and kept as Parquet."""

import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from historay.errors import DataError

# float32 softmax over K classes is off by less than 1e-6; what is off by more was never normalised.
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Predictions:
    """N tiles in any order and their probabilities over K classes; DataError on any shape or value that cannot be."""

    tile_ids: NDArray[np.str_]  # (N,)
    labels: NDArray[np.int64]  # (N,) true class, index into classes
    probabilities: NDArray[np.float64]  # (N, K), rows sum to 1
    patients: NDArray[np.str_] | None  # (N,); None: at least one tile's patient is unknown
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        num, num_classes = len(self.tile_ids), len(self.classes)
        if num == 0:
            raise DataError("no predictions: the split has no tiles")
        if self.labels.shape != (num,) or self.probabilities.shape != (num, num_classes):
            raise DataError(
                f"{num} tile ids and {num_classes} classes, but labels have the shape {self.labels.shape} "
                f"and probabilities {self.probabilities.shape}; expected ({num},) and ({num}, {num_classes})"
            )
        if self.patients is not None and self.patients.shape != (num,):
            raise DataError(f"{num} tile ids, but patients have the shape {self.patients.shape}; expected ({num},)")
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

    def to_parquet(self) -> bytes:
        """Encodes as Parquet: tile_id, label, patient and one column ``p<k>`` a class; the classes in the metadata."""
        num = len(self.tile_ids)
        columns: dict[str, pa.Array] = {
            "tile_id": pa.array(self.tile_ids.tolist(), pa.string()),
            "label": pa.array(self.labels, pa.int64()),
            "patient": pa.nulls(num, pa.string()) if self.patients is None else pa.array(self.patients.tolist(), pa.string()),
        }
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
        patient = table["patient"]
        return cls(
            tile_ids=np.array(table["tile_id"].to_pylist(), dtype=np.str_),
            labels=table["label"].to_numpy(),
            probabilities=np.column_stack([table[f"p{k}"].to_numpy() for k in range(len(classes))]),
            patients=None if patient.null_count else np.array(patient.to_pylist(), dtype=np.str_),
            classes=classes,
        )
