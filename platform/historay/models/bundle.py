"""The bundle: all that serving needs of a model, in files whose digests are checked whenever it is loaded.

``models/<name>/<version>/`` holds model.safetensors, model.json (BundleSpec), report.json, report.html, MODEL_CARD.md and,
written last, bundle.json with the digest of each. The version is the digest of those digests; nothing is pickled.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from historay.data.transforms import Preprocessing
from historay.errors import BundleError, NotFound
from historay.evaluation.operating_point import OperatingPoint
from historay.models.zoo import build_model
from historay.storage import Store

FORMAT = 1
_INDEX = "bundle.json"
_WEIGHTS = "model.safetensors"
_SPEC = "model.json"
_CARD = "MODEL_CARD.md"


class BundleSpec(BaseModel):
    """The content of model.json: what a model is, how its input is made, and what it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    name: str
    architecture: str
    dropout: float
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    mpp: float | None  # of the training tiles, micrometres per pixel; None: unknown or mixed
    temperature: float = 1.0
    operating_point: OperatingPoint | None  # None: more than two classes
    dataset: str  # name@version
    dataset_digest: str
    accepted_leaks: tuple[str, ...]
    run: str
    seed: int
    created: str  # ISO 8601, UTC
    historay: str  # version of the code


@dataclass(frozen=True)
class Bundle:
    """A verified model, ready to predict."""

    spec: BundleSpec
    model: nn.Module  # in evaluation mode
    version: str

    @property
    def reference(self) -> str:
        """``name@version``, as answers and reports state it."""
        return f"{self.spec.name}@{self.version}"


def bundle_prefix(name: str, version: str) -> str:
    """Returns the folder of a model version in the store."""
    return f"models/{name}/{version}"


def save_bundle(store: Store, spec: BundleSpec, model: nn.Module, documents: dict[str, bytes]) -> str:
    """Writes a bundle, its index last, and returns its version: the same content has the same version.

    ``documents`` are further files by name, such as report.json and report.html.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files = {
        _WEIGHTS: save_tensors(tensors),
        _SPEC: spec.model_dump_json(indent=2).encode(),
        _CARD: _model_card(spec, documents).encode(),
        **documents,
    }
    digests = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in sorted(files.items())}
    index = json.dumps({"format": FORMAT, "files": digests}, indent=2).encode()
    version = hashlib.sha256(index).hexdigest()[:16]
    prefix = bundle_prefix(spec.name, version)
    if not store.exists(f"{prefix}/{_INDEX}"):
        for name, data in files.items():
            store.write(f"{prefix}/{name}", data)
        store.write(f"{prefix}/{_INDEX}", index)
    return version


def load_bundle(store: Store, name: str, version: str, device: str = "cpu") -> Bundle:
    """Loads a model version after checking every byte of it; BundleError names the file that is missing or differs."""
    files = read_verified(store, name, version)
    try:
        spec = BundleSpec.model_validate_json(files[_SPEC])
        tensors = load_tensors(files[_WEIGHTS])
    except (ValidationError, SafetensorError, KeyError) as error:
        raise BundleError(f"{_where(store, name, version)}: cannot be read: {error}") from None
    model = build_model(spec.architecture, len(spec.classes), spec.preprocessing.input_px, spec.dropout)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise BundleError(f"{_where(store, name, version)}: {_WEIGHTS} does not fit {spec.architecture}: {error}") from None
    return Bundle(spec, model.eval().requires_grad_(requires_grad=False).to(torch.device(device)), version)


def read_spec(store: Store, name: str, version: str) -> BundleSpec:
    """Reads what a model is, without its weights and without checking digests."""
    return BundleSpec.model_validate_json(store.read(f"{bundle_prefix(name, version)}/{_SPEC}"))


def read_verified(store: Store, name: str, version: str) -> dict[str, bytes]:
    """Returns every file of a bundle, after checking each against bundle.json and bundle.json against the version."""
    prefix, where = bundle_prefix(name, version), _where(store, name, version)
    try:
        index = store.read(f"{prefix}/{_INDEX}")
    except NotFound:
        raise BundleError(f"{where}: there is no such model version; historay models list shows what there is") from None
    if hashlib.sha256(index).hexdigest()[:16] != version:
        raise BundleError(f"{where}: {_INDEX} was changed after it was written; restore it from a copy")
    content = json.loads(index)
    if content["format"] != FORMAT:
        raise BundleError(f"{where}: format {content['format']}, and this Historay reads format {FORMAT}; install a newer one")
    files = {}
    for file, expected in content["files"].items():
        try:
            files[file] = store.read(f"{prefix}/{file}")
        except NotFound:
            raise BundleError(f"{where}: {file} is missing; restore it from a copy") from None
        if hashlib.sha256(files[file]).hexdigest() != expected["sha256"]:
            raise BundleError(f"{where}: {file} was changed after it was written; restore it from a copy")
    return files


def _where(store: Store, name: str, version: str) -> str:
    return store.locate(bundle_prefix(name, version))


def _model_card(spec: BundleSpec, documents: dict[str, bytes]) -> str:
    report = json.loads(documents["report.json"]) if "report.json" in documents else None
    environment = Environment(
        loader=PackageLoader("historay.models"),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # noqa: S701 Markdown
    )
    return environment.get_template("MODEL_CARD.md").render(spec=spec, report=report)
