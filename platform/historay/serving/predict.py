"""Predicts images one after the other, with a bundle in this process or through an endpoint, and prints the answers."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Annotated, Literal, NamedTuple

import tyro
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from historay.config import Config
from historay.data.decode import Limits
from historay.data.layouts import IMAGE_ENDINGS
from historay.errors import BadImage, DataError, NotFound, Unreadable
from historay.models.bundle import load_bundle
from historay.models.registry import resolve
from historay.serving.client import Client
from historay.serving.http import API_KEY
from historay.serving.predictor import Predictor, refusal
from historay.serving.schema import ImagePrediction, ImageRefusal, Result
from historay.storage import Store, open_store, split_uri

_AT_ONCE = 32  # images per request or forward pass


class PredictConfig(Config):
    """Predicts images, folders or s3:// prefixes with a bundle, or through an endpoint by --url."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Image files, folders of images, or s3:// addresses of either."""
    model: str | None = None
    """``name``, ``name@alias`` or ``name@version`` of a bundle in the store."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    url: str | None = None
    """Endpoint to ask instead of a bundle; its key comes from HISTORAY_API_KEY."""
    format: Literal["table", "json"] = "table"
    """json prints one object a line."""
    limit: int | None = Field(default=None, ge=1)
    """Stop after so many images."""

    @model_validator(mode="after")
    def _check(self) -> "PredictConfig":
        if not self.images:
            raise ValueError("no images: name files, folders or s3:// addresses")
        if (self.model is None) == (self.url is None):
            raise ValueError(f"model={self.model} and url={self.url}: give exactly one of --model and --url")
        return self


class Answer(NamedTuple):
    """One image's address and what was said of it."""

    image: str
    result: Result


def predict(config: PredictConfig) -> int:
    """Prints an answer for each image and returns how many could not be used."""
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
    addresses = itertools.islice(_addresses(config.images), config.limit)
    ask = _through_endpoint(config.url) if config.url is not None else _with_bundle(config)
    while batch := list(itertools.islice(addresses, _AT_ONCE)):
        found = [_read(store, key) for store, key in batch]
        readable = [data for data in found if isinstance(data, bytes)]
        answered = iter(ask(readable) if readable else [])
        for (store, key), data in zip(batch, found, strict=True):
            yield Answer(store.locate(key), next(answered) if isinstance(data, bytes) else data)


def _read(store: Store, key: str) -> bytes | ImageRefusal:
    """Reads one image; one that cannot be read stops none of the others."""
    try:
        return store.read(key)
    except (NotFound, Unreadable) as error:
        return refusal(0, BadImage(f"unreadable: {type(error).__name__}"))


def _addresses(images: tuple[str, ...]) -> Iterator[tuple[Store, str]]:
    for image in images:
        folder, name = split_uri(image.rstrip("/"))
        store = open_store(folder)
        if store.exists(name):
            yield store, name
            continue
        inside = open_store(image)
        found = [item.key for item in inside.list() if PurePosixPath(item.key).suffix.lower() in IMAGE_ENDINGS]
        if not found:
            raise DataError(f"{image}: no such image, and no folder with any of {', '.join(sorted(IMAGE_ENDINGS))}")
        yield from ((inside, key) for key in found)


def _with_bundle(config: PredictConfig) -> Callable[[list[bytes]], list[Result]]:
    store = open_store(config.store)
    bundle = load_bundle(store, *resolve(store, str(config.model)))
    return Predictor(bundle, Limits()).predict


def _through_endpoint(url: str) -> Callable[[list[bytes]], list[Result]]:
    client = Client(url, api_key=os.environ.get(API_KEY))

    def ask(images: list[bytes]) -> list[Result]:
        return list(client.predict(images).results)

    return ask


def _print_json(answer: Answer) -> bool:
    print(json.dumps({"image": answer.image, **answer.result.model_dump(exclude={"index"})}))  # noqa: T201
    return not isinstance(answer.result, ImagePrediction)
