"""One part of a batch prediction, from its images to its rows: reading, decoding and the network overlap in threads."""

import io
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pyarrow.parquet as pq

from historay.errors import BadImage
from historay.serving.inputs import read_input
from historay.serving.parts import Part, part_row
from historay.serving.predictor import Predictor, PreparedImage
from historay.storage import open_store

T = TypeVar("T")
R = TypeVar("R")

_PER_PASS = 32  # images in one pass of the network
# Threads that read and decode: a store that answers in 20 ms then delivers 800 images a second to each worker.
_NUM_READERS = 16
# Images read ahead of the network, which are held as resized pixels, 27 KB each at 96 px.
_READ_AHEAD = 4 * _PER_PASS


class PartPredictor:
    """A predictor with threads that feed it; memory is bounded by what is read ahead, however large the part."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._readers = ThreadPoolExecutor(_NUM_READERS)
        self._streams = ThreadPoolExecutor(predictor.runtime.num_streams)

    def rows(self, part: Part) -> list[dict[str, Any]]:
        """Returns one row per image of the part, in its order; StorageError if the store as a whole cannot be read."""
        names, loaders = _images(part)
        prepared = overlapped(self._readers, self._tried, loaders, _READ_AHEAD)
        passes = iter(lambda: list(itertools.islice(prepared, _PER_PASS)), [])
        ahead = self._predictor.runtime.num_streams + 1
        results = itertools.chain.from_iterable(overlapped(self._streams, self._predictor.results, passes, ahead))
        model = self._predictor.bundle.reference
        return [
            part_row(name, part.start + number, result, model)
            for number, (name, result) in enumerate(zip(names, results, strict=True))
        ]

    def _tried(self, load: Callable[[], bytes]) -> PreparedImage | BadImage:
        try:
            return self._predictor.prepare(load())
        except BadImage as error:
            return error


def overlapped(threads: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Yields ``work`` of each item in order, while at most ``ahead`` further ones are under way."""
    coming: deque[Any] = deque()
    for item in items:
        coming.append(threads.submit(work, item))
        if len(coming) > ahead:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _images(part: Part) -> tuple[list[str], list[Callable[[], bytes]]]:
    """What each image of a part is called in the output, and how its bytes are had."""
    store = open_store(part.store)
    if not part.of_shard:
        return [store.locate(key) for key in part.keys], [partial(read_input, store, key) for key in part.keys]
    (key,) = part.keys
    shard = pq.read_table(io.BytesIO(store.read(key)), columns=["tile_id", "bytes"])
    return shard["tile_id"].to_pylist(), [data.as_py for data in shard["bytes"]]
