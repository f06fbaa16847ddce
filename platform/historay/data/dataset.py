"""Opens a data set version in the store by its reference ``name`` (the newest version) or ``name@version``."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from historay.data.schema import DatasetRecord
from historay.errors import DataError, LeakError, NotFound
from historay.storage import Store


@dataclass(frozen=True)
class Dataset:
    """One visible, immutable data set version."""

    store: Store
    record: DatasetRecord

    @property
    def prefix(self) -> str:
        """The version's folder in the store."""
        return dataset_prefix(self.record.name, self.record.version)

    @property
    def reference(self) -> str:
        """``name@version``, as run.json, model.json and the report state it."""
        return f"{self.record.name}@{self.record.version}"

    def manifest(self, columns: list[str] | None = None) -> pa.Table:
        """Returns the manifest, one row per tile, sorted by tile_id, without the bytes."""
        return self.table(f"{self.prefix}/manifest.parquet", columns)

    def leaks(self) -> pa.Table:
        """Returns every leaking pair (LEAK_SCHEMA)."""
        return self.table(f"{self.prefix}/leaks.parquet")

    def shard_keys(self, split: str) -> list[str]:
        """Returns the store keys of a split's shards, in order; DataError if the split is empty."""
        if not self.record.num_tiles.get(split):
            raise DataError(f"{self.reference}: split {split!r} has no tiles; it has {dict(self.record.num_tiles)}")
        return [f"{self.prefix}/{key}" for key in self.record.shards[split]]

    def tables(self, split: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yields a split's shards as tables, one at a time."""
        for key in self.shard_keys(split):
            yield self.table(key, columns)

    def table(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """Reads one Parquet object of the store whole, such as a shard."""
        return pq.read_table(io.BytesIO(self.store.read(key)), columns=columns)

    def refuse_leaks(self, accepted: tuple[str, ...]) -> None:
        """Raises LeakError on any leak whose kind is not accepted by name, naming one pair of tiles of each kind."""
        blocking = [leak for leak in self.record.leaks if leak.kind not in accepted]
        if not blocking:
            return
        found = "; ".join(
            f"{leak.kind}: {leak.num_pairs} pair(s) across {' and '.join(leak.splits)}, "
            f"e.g. tiles {leak.tile_a} and {leak.tile_b}"
            for leak in blocking
        )
        kinds = " ".join(leak.kind for leak in blocking)
        raise LeakError(
            f"{self.reference} leaks between its splits: {found}. All pairs are in "
            f"{self.store.locate(f'{self.prefix}/leaks.parquet')}. Remove them and ingest again, or accept them by name with "
            f"--accept-leaks {kinds}, which is stamped on everything downstream"
        )


def dataset_prefix(name: str, version: str) -> str:
    """Returns the folder of a data set version in the store."""
    return f"datasets/{name}/{version}"


def open_dataset(store: Store, reference: str) -> Dataset:
    """Opens ``name@version``, or the newest version of ``name``; NotFound names the versions there are."""
    name, _, version = reference.partition("@")
    if version:
        try:
            return Dataset(
                store, DatasetRecord.model_validate_json(store.read(f"{dataset_prefix(name, version)}/dataset.json"))
            )
        except NotFound:
            pass
    records = list_datasets(store, name)
    if version or not records:
        known = ", ".join(f"{name}@{record.version}" for record in records) or "none; run historay ingest first"
        raise NotFound(f"{store.uri}: no data set {reference}; there is {known}")
    return Dataset(store, max(records, key=lambda record: (record.created, record.version)))


def list_datasets(store: Store, name: str) -> list[DatasetRecord]:
    """Returns the records of all visible versions of a data set."""
    markers = (item.key for item in store.list(f"datasets/{name}") if item.key.endswith("/dataset.json"))
    return [DatasetRecord.model_validate_json(store.read(key)) for key in markers]
