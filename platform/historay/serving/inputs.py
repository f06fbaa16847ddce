"""What is to be predicted: images, folders, prefixes and manifests as one list in a fixed order."""

import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet as pq

from historay.data.decode import Limits
from historay.data.layouts import IMAGE_ENDINGS
from historay.errors import BadImage, DataError, NotFound, TooLarge, Unreadable
from historay.storage import Store, open_store, split_uri

_MANIFEST_ENDINGS = {".csv", ".parquet"}


class Input(NamedTuple):
    """One image that was named or found, not opened yet."""

    store: Store
    key: str
    size: int | None  # bytes; None: not known from a listing


def find_images(addresses: tuple[str, ...]) -> Iterator[Input]:
    """Yields every image behind the addresses, in their order and sorted within each; DataError where there is none."""
    for address in addresses:
        folder, name = split_uri(address.rstrip("/"))
        store = open_store(folder)
        if PurePosixPath(name).suffix.lower() in _MANIFEST_ENDINGS and store.exists(name):
            yield from (Input(store, path, None) for path in _manifest_paths(store, name))
        elif store.exists(name):
            yield Input(store, name, None)
        else:
            yield from _inside(address)


def read_input(store: Store, key: str) -> bytes:
    """Reads one image; BadImage if it is absent, too large or refuses to be read, which is no fault of the others."""
    try:
        return store.read(key, at_most=Limits().max_bytes)
    except TooLarge as error:
        raise BadImage(f"too-many-bytes: {str(error).rpartition(': ')[2]}") from None
    except (NotFound, Unreadable) as error:
        raise BadImage(f"unreadable: {type(error).__name__}") from None


def _inside(address: str) -> Iterator[Input]:
    store, found = open_store(address), False
    for item in store.list():
        if PurePosixPath(item.key).suffix.lower() in IMAGE_ENDINGS:
            found = True
            yield Input(store, item.key, item.size)
    if not found:
        raise DataError(f"{address}: no such image, and no folder with any of {', '.join(sorted(IMAGE_ENDINGS))}")


def _manifest_paths(store: Store, name: str) -> list[str]:
    """The column ``path`` of a CSV or Parquet file, relative to its folder."""
    data, where = io.BytesIO(store.read(name)), store.locate(name)
    parquet = name.lower().endswith(".parquet")
    read = pq.read_table(data).to_pandas() if parquet else pd.read_csv(data, dtype=str, keep_default_na=False)
    if "path" not in read.columns:
        raise DataError(f"{where}: column path is missing; it has {', '.join(map(str, read.columns))}")
    paths = [str(path) for path in read["path"]]
    for row, path in enumerate(paths, start=1):
        if not path or path.startswith("/") or ".." in path.split("/"):
            raise DataError(f"{where}: row {row}: path {path!r} is not relative to the folder of the manifest")
    return paths
