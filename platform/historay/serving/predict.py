"""Predicts images one after the other, with a bundle in this process or through an endpoint, and prints the answers.

Millions of them are batch.py's, which needs Ray.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from historay.cpus import available_cpus
from historay.data.decode import Limits
from historay.errors import BadImage
from historay.models.bundle import load_bundle
from historay.models.registry import resolve
from historay.models.runtime import make_runtime
from historay.serving.client import Client
from historay.serving.inputs import Input, find_images, read_input
from historay.serving.keys import API_KEY
from historay.serving.limits import PART_OVERHEAD_BYTES
from historay.serving.predict_settings import PredictConfig
from historay.serving.predictor import Predictor, refusal
from historay.serving.schema import ImagePrediction, ImageRefusal, RequestLimits, Result
from historay.storage import open_store

_REQUESTS_AT_ONCE, _PER_REQUEST = 4, 32
_AT_ONCE = _REQUESTS_AT_ONCE * _PER_REQUEST  # images that are read before they are answered


class Answer(NamedTuple):
    """One image's address and what was said of it."""

    image: str
    result: Result


def predict(config: PredictConfig) -> int:
    """Prints an answer for each image, or writes all to ``out``, and returns how many could not be used."""
    if config.out is not None:
        from historay.serving.batch import predict_in_batch

        return predict_in_batch(config)
    answers = predict_images(config)
    if config.format == "json":
        return sum(_print_json(answer) for answer in answers)
    table, num_failed = Table("image", "label", "probability"), 0
    for answer in answers:
        if isinstance(answer.result, ImagePrediction):
            shown = ", ".join(f"{name} {value:.3f}" for name, value in answer.result.probabilities.items())
            table.add_row(answer.image, answer.result.label, shown)
        else:
            num_failed += 1
            table.add_row(answer.image, answer.result.error.reason, answer.result.error.detail)
    Console().print(table)
    return num_failed


def predict_images(config: PredictConfig) -> Iterator[Answer]:
    """Yields an answer for each image, in order; one that cannot be used is answered with the reason."""
    images = itertools.islice(find_images(config.images), config.limit)
    with contextlib.nullcontext(_with_bundle(config)) if config.url is None else _through_endpoint(config.url) as ask:
        while batch := list(itertools.islice(images, _AT_ONCE)):
            found = [_read(image) for image in batch]
            readable = [data for data in found if isinstance(data, bytes)]
            answered = iter(ask(readable) if readable else [])
            for image, data in zip(batch, found, strict=True):
                yield Answer(image.store.locate(image.key), next(answered) if isinstance(data, bytes) else data)


def _read(image: Input) -> bytes | ImageRefusal:
    """Reads one image; one that cannot be read stops none of the others."""
    try:
        return read_input(image.store, image.key)
    except BadImage as error:
        return refusal(0, error)


def _with_bundle(config: PredictConfig) -> Callable[[list[bytes]], list[Result]]:
    store = open_store(config.store)
    bundle = load_bundle(store, *resolve(store, str(config.model)))
    return Predictor(bundle, Limits(), make_runtime(bundle, config.runtime, available_cpus())).predict


@contextlib.contextmanager
def _through_endpoint(url: str) -> Iterator[Callable[[list[bytes]], list[Result]]]:
    """Yields what asks an endpoint for any number of images, in requests within its limits, several at once."""
    with Client(url, api_key=os.environ.get(API_KEY)) as client, ThreadPoolExecutor(_REQUESTS_AT_ONCE) as senders:
        limits = client.model().limits

        def ask(images: list[bytes]) -> list[Result]:
            sent = [data for data in images if len(data) <= limits.max_image_bytes]
            answers = senders.map(client.predict, _requests_of(sent, limits))
            found = itertools.chain.from_iterable(answer.results for answer in answers)
            return [next(found) if len(data) <= limits.max_image_bytes else _too_large(data, limits) for data in images]

        yield ask


def _too_large(data: bytes, limits: RequestLimits) -> ImageRefusal:
    most = f"the endpoint takes at most {limits.max_image_bytes} in one image"
    return refusal(0, BadImage(f"too-many-bytes: {len(data)} bytes; {most}"))


def _requests_of(images: list[bytes], limits: RequestLimits) -> list[list[bytes]]:
    """Shares images out to requests, in order; each of them alone is within the limits."""
    requests: list[list[bytes]] = []
    room = 0
    for data in images:
        size = len(data) + PART_OVERHEAD_BYTES
        if size > room or len(requests[-1]) == min(limits.max_files, _PER_REQUEST):
            requests.append([])
            room = limits.max_body_bytes
        requests[-1].append(data)
        room -= size
    return requests


def _print_json(answer: Answer) -> bool:
    print(json.dumps({"image": answer.image, **answer.result.model_dump(exclude={"index"})}))  # noqa: T201
    return not isinstance(answer.result, ImagePrediction)
