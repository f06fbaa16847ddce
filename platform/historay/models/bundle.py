"""The bundle: all that serving needs of a model, in files whose digests are checked whenever it is loaded.

``models/<name>/<version>/`` holds model.safetensors, model.json (BundleSpec), report.json, report.html, MODEL_CARD.md,
probes.safetensors and, written last, bundle.json with the digest of each. The version is the digest of those digests;
nothing is pickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from historay.data.transforms import Preprocessing
from historay.errors import BundleError, NotFound
from historay.evaluation.calibration import Calibration
from historay.evaluation.conformal import ConformalRule
from historay.evaluation.drift import DriftReference
from historay.evaluation.operating_point import OperatingPoint
from historay.models.averaging import Averaging, averaged, without_averaging
from historay.models.inference import predict_logits
from historay.models.input_gate import FeatureSpace, InputGate
from historay.models.zoo import build_model
from historay.storage import Store

FORMAT = 3
_INDEX = "bundle.json"
_WEIGHTS = "model.safetensors"
_SPEC = "model.json"
CARD = "MODEL_CARD.md"
REPORT = "report.html"
PROMOTIONS = "PROMOTIONS.md"  # not of the bundle: written at each promotion
_PROBES = "probes.safetensors"
_SPACE = "input_gate.safetensors"


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
    averaging: Averaging = "none"  # of the logits over the symmetries of the square
    calibration: Calibration = Calibration()  # of the probabilities, before anything is decided on them
    operating_point: OperatingPoint | None  # None: more than two classes
    conformal: ConformalRule | None = None  # None: no prediction sets were fitted
    input_gate: InputGate | None = None  # None: validation had too few tiles; its arrays are input_gate.safetensors
    drift_reference: DriftReference | None = None  # None: made before drift was watched
    dataset: str  # name@version
    dataset_digest: str
    accepted_leaks: tuple[str, ...]
    run: str
    predictions: dict[str, str] = {}  # SHA-256 of those that the run keeps, by split; empty: made before they were kept so
    seed: int
    created: str  # ISO 8601, UTC
    historay: str  # version of the code


class Probes(NamedTuple):
    """A few tiles and what torch said of them when the bundle was made: whatever runs the model later must say the same."""

    tiles_BHWC: NDArray[np.uint8]
    logits_BK: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A verified model, ready to predict."""

    spec: BundleSpec
    model: nn.Module  # in evaluation mode
    version: str
    probes: Probes
    documents: Mapping[str, bytes] = field(default_factory=dict)  # CARD (with PROMOTIONS) and REPORT, as far as it has them
    feature_space: FeatureSpace | None = None  # of the input gate

    @property
    def reference(self) -> str:
        """``name@version``, as answers and reports state it."""
        return f"{self.spec.name}@{self.version}"


def bundle_prefix(name: str, version: str) -> str:
    """Returns the folder of a model version in the store."""
    return f"models/{name}/{version}"


def make_probes(model: nn.Module, tiles_BHWC: NDArray[np.uint8], preprocessing: Preprocessing) -> Probes:
    """Runs a model on the tiles that will prove it wherever it is loaded; 8 to 16 are enough."""
    return Probes(tiles_BHWC, predict_logits(model, tiles_BHWC, preprocessing))


def save_bundle(
    store: Store,
    spec: BundleSpec,
    model: nn.Module,
    documents: dict[str, bytes],
    probes: Probes,
    feature_space: FeatureSpace | None = None,
) -> str:
    """Writes a bundle, its index last, and returns its version: the same content has the same version.

    ``documents`` are further files by name, such as report.json and report.html; a spec with an input gate has its
    feature space.
    """
    assert (spec.input_gate is None) == (feature_space is None)
    files = {
        _WEIGHTS: _weights(without_averaging(model)),
        _SPEC: spec.model_dump_json(indent=2).encode(),
        CARD: _model_card(spec, documents).encode(),
        _PROBES: save_arrays({"tiles": probes.tiles_BHWC, "logits": probes.logits_BK}),
        **documents,
    }
    if feature_space is not None:
        files[_SPACE] = save_arrays({"mean": feature_space.mean_F, "axes": np.ascontiguousarray(feature_space.axes_FK)})
    digests = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in sorted(files.items())}
    index = json.dumps({"format": FORMAT, "files": digests}, indent=2).encode()
    version = hashlib.sha256(index).hexdigest()[:16]
    prefix = bundle_prefix(spec.name, version)
    if not store.exists(f"{prefix}/{_INDEX}"):
        for name, data in files.items():
            store.write(f"{prefix}/{name}", data)
        store.write(f"{prefix}/{_INDEX}", index)
    return version


def weights_digest(model: nn.Module) -> str:
    """Returns the SHA-256 that model.safetensors has, or would have."""
    return hashlib.sha256(_weights(without_averaging(model))).hexdigest()


def load_bundle(store: Store, name: str, version: str, device: str = "cpu") -> Bundle:
    """Loads a model version after checking every byte of it; BundleError names the file that is missing or differs."""
    files = read_verified(store, name, version)
    try:
        spec = BundleSpec.model_validate_json(files[_SPEC])
        tensors, arrays = load_tensors(files[_WEIGHTS]), load_arrays(files[_PROBES])
        probes = Probes(arrays["tiles"], arrays["logits"])
        space = _feature_space(files[_SPACE]) if spec.input_gate else None
    except (ValidationError, SafetensorError, KeyError) as error:
        raise BundleError(f"{_where(store, name, version)}: cannot be read: {error}") from None
    model = build_model(spec.architecture, len(spec.classes), spec.preprocessing.input_px, spec.dropout)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise BundleError(f"{_where(store, name, version)}: {_WEIGHTS} does not fit {spec.architecture}: {error}") from None
    model = model.eval().requires_grad_(requires_grad=False).to(torch.device(device))
    documents = {file: files[file] for file in (CARD, REPORT) if file in files}
    if store.exists(promotions := f"{bundle_prefix(name, version)}/{PROMOTIONS}"):
        documents[CARD] += b"\n" + store.read(promotions)
    return Bundle(spec, averaged(model, spec.averaging), version, probes, documents, space)


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
        mend = "install a newer one" if content["format"] > FORMAT else "historay evaluate makes the bundle of a run anew"
        raise BundleError(f"{where}: format {content['format']}, and this Historay reads format {FORMAT}; {mend}")
    files = {}
    for file, expected in content["files"].items():
        try:
            files[file] = store.read(f"{prefix}/{file}")
        except NotFound:
            raise BundleError(f"{where}: {file} is missing; restore it from a copy") from None
        if hashlib.sha256(files[file]).hexdigest() != expected["sha256"]:
            raise BundleError(f"{where}: {file} was changed after it was written; restore it from a copy")
    return files


def _weights(model: nn.Module) -> bytes:
    return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})


def _feature_space(data: bytes) -> FeatureSpace:
    arrays = load_arrays(data)
    return FeatureSpace(arrays["mean"], arrays["axes"])


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
