"""What runs a bundle's network while serving: OpenVINO on a CPU, half precision on a GPU, or torch as it was trained.

Whatever runs is compared with the bundle's own torch model on the spot, and refused beyond a stated tolerance.
Suffixes: B images, H rows, W columns, C channels (RGB), K classes, F features.
"""

import copy
import os
import shutil
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from historay.data.stain import Macenko, Reinhard, normalise_stain
from historay.data.transforms import Preprocessing, normalise, to_input, to_unit
from historay.errors import BundleError, ConfigError
from historay.log import log_event
from historay.models.bundle import Bundle
from historay.models.features import last_linear, predict_logits_and_features
from historay.models.inference import for_inference, probabilities

RuntimeName = Literal["auto", "torch", "openvino-fp32", "openvino-bf16", "cuda-bf16"]

# Largest difference of a probability from torch in fp32, on the bundle's probe tiles. bfloat16 keeps 8 bits of a
# number: on 1,000 PCam tiles it moved a probability by 0.0015 on average and 0.0083 at most, fp32 by 5e-7.
TOLERANCES = {"torch": 1e-5, "openvino-fp32": 1e-4, "openvino-bf16": 0.03, "cuda-bf16": 0.03}


class Outputs(NamedTuple):
    """What one pass of the network gives."""

    logits_BK: NDArray[np.float32]
    features_BF: NDArray[np.float32]


class Runtime(Protocol):
    """Runs tiles; ``run`` may be called from as many threads at once as there are streams."""

    name: str
    num_streams: int

    def run(self, tiles_BHWC: NDArray[np.uint8]) -> Outputs:
        """Runs uint8 tiles (B, input_px, input_px, 3)."""
        ...


class TorchRuntime:
    """The bundle's own model, eager, in fp32; the reference for the others."""

    name = "torch"
    num_streams = 1  # torch shares out the cores itself

    def __init__(self, bundle: Bundle) -> None:
        self._model, self._preprocessing = bundle.model, bundle.spec.preprocessing

    def run(self, tiles_BHWC: NDArray[np.uint8]) -> Outputs:
        """Runs uint8 tiles (B, input_px, input_px, 3)."""
        return Outputs(*predict_logits_and_features(self._model, tiles_BHWC, self._preprocessing))


class CudaRuntime:
    """The model in bfloat16 on the GPU, channels last; any other ``device`` is for tests."""

    name = "cuda-bf16"
    num_streams = 1

    def __init__(self, bundle: Bundle, device: str = "cuda") -> None:
        network = _Network(bundle.model, bundle.spec.preprocessing).eval().to(device)
        self._network, self._device = network.to(memory_format=torch.channels_last), device
        self._stain = bundle.spec.preprocessing.stain

    def run(self, tiles_BHWC: NDArray[np.uint8]) -> Outputs:
        """Runs uint8 tiles (B, input_px, input_px, 3)."""
        with torch.inference_mode():
            tiles = _of_one_stain(torch.from_numpy(np.ascontiguousarray(tiles_BHWC)).to(self._device), self._stain)
            with torch.autocast(self._device, torch.bfloat16):
                logits_BK, features_BF = self._network(tiles)
        return Outputs(logits_BK.float().cpu().numpy(), features_BF.float().cpu().numpy())


class OpenVinoRuntime:
    """The network compiled by OpenVINO for this CPU, one stream per core: twice the throughput of one batch on all cores."""

    def __init__(self, bundle: Bundle, precision: Literal["fp32", "bf16"], num_threads: int) -> None:
        self.name = f"openvino-{precision}"
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": num_threads,
        }
        self.num_streams = num_threads
        self._compiled = openvino.Core().compile_model(_exported(bundle), "CPU", settings)
        self._stain = bundle.spec.preprocessing.stain
        self._of_thread = threading.local()  # making a request anew takes a quarter of the time of a pass

    def run(self, tiles_BHWC: NDArray[np.uint8]) -> Outputs:
        """Runs uint8 tiles (B, input_px, input_px, 3)."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        found = self._of_thread.request.infer([self._input(np.ascontiguousarray(tiles_BHWC))], share_inputs=True)
        return Outputs(np.array(found[0]), np.array(found[1]))

    def _input(self, tiles_BHWC: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
        if self._stain is None:
            return tiles_BHWC
        with torch.inference_mode():
            return np.asarray(_of_one_stain(torch.from_numpy(tiles_BHWC), self._stain).numpy())


def _of_one_stain(tiles_BHWC: Tensor, stain: Reinhard | Macenko | None) -> Tensor:
    """What ``_Network`` takes: a tile's stain is found in fp32 as in training, whatever the network computes in."""
    return tiles_BHWC if stain is None else normalise_stain(to_unit(tiles_BHWC), stain)


def make_runtime(bundle: Bundle, name: RuntimeName = "auto", num_threads: int = 1) -> Runtime:
    """Builds the runtime and checks it against torch on the bundle's probe tiles.

    ``auto`` takes the GPU if there is one, else OpenVINO in bfloat16 where the CPU computes in it, else in fp32.
    Raises BundleError if a probability differs by more than ``TOLERANCES`` allows, ConfigError without the GPU asked for.
    """
    chosen = _best_here() if name == "auto" else name
    runtime: Runtime
    if chosen == "torch":
        runtime = TorchRuntime(bundle)
    elif chosen == "cuda-bf16":
        if not torch.cuda.is_available():
            raise ConfigError(f"runtime={name}: torch finds no GPU here; choose another --runtime, or auto")
        runtime = CudaRuntime(bundle)
    else:
        runtime = OpenVinoRuntime(bundle, "bf16" if chosen == "openvino-bf16" else "fp32", num_threads)
    log_event("runtime", model=bundle.reference, runtime=chosen, differs_by=check_runtime(runtime, bundle))
    return runtime


def check_runtime(runtime: Runtime, bundle: Bundle) -> float:
    """Returns the largest difference of a raw probability from torch on the probe tiles, alone and together.

    Raises BundleError beyond the tolerance, and if torch here does not give what it gave when the bundle was made.
    """
    expected_BK = probabilities(TorchRuntime(bundle).run(bundle.probes.tiles_BHWC).logits_BK)
    _refuse(expected_BK, probabilities(bundle.probes.logits_BK), "torch on this machine", 1e-3, bundle)
    together_BK = probabilities(runtime.run(bundle.probes.tiles_BHWC).logits_BK)
    alone_BK = probabilities(np.concatenate([runtime.run(tile[None]).logits_BK for tile in bundle.probes.tiles_BHWC]))
    return max(
        _refuse(found_BK, expected_BK, runtime.name, TOLERANCES[runtime.name], bundle) for found_BK in (together_BK, alone_BK)
    )


def _refuse(
    found_BK: NDArray[np.float64], expected_BK: NDArray[np.float64], what: str, tolerance: float, bundle: Bundle
) -> float:
    difference = float(np.abs(found_BK - expected_BK).max())
    if not difference <= tolerance:  # not a number is beyond it too
        raise BundleError(
            f"{bundle.reference}: {what} gives a probability that differs by {difference:.2g} from what it should be, "
            f"and {tolerance:g} is allowed; choose another --runtime"
        )
    return difference


def _best_here() -> RuntimeName:
    if torch.cuda.is_available():
        return "cuda-bf16"
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "openvino-bf16" if "BF16" in able else "openvino-fp32"


class _Network(nn.Module):
    """A copy of a network, from uint8 tiles or those of one stain to its logits and to what its last layer saw."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.trunk, self._preprocessing = copy.deepcopy(for_inference(model)), preprocessing
        self.head = last_linear(self.trunk)
        for module in list(self.trunk.modules()):
            for name, child in module.named_children():
                if child is self.head:
                    setattr(module, name, nn.Identity())

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Takes uint8 (B, H, W, 3), or float32 (B, 3, H, W) on [0, 1] whose stain is the reference's already."""
        is_uint8 = tiles.dtype == torch.uint8
        input_BCHW = to_input(tiles, self._preprocessing) if is_uint8 else normalise(tiles, self._preprocessing)
        features_BF = self.trunk(input_BCHW).flatten(1)
        return self.head(features_BF), features_BF


def _exported(bundle: Bundle) -> openvino.Model:
    """Returns the network in OpenVINO's form, from the cache if this version was exported here before.

    The export takes 2 to 12 s. A cache that was tampered with is caught where the runtime is compared with torch.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "historay" / "openvino" / f"{bundle.version}-{version('openvino')}"
    if (folder / "network.xml").exists():
        try:
            return openvino.Core().read_model(folder / "network.xml")
        except RuntimeError as error:
            log_event("runtime exported anew", folder=folder, because=error)
            shutil.rmtree(folder, ignore_errors=True)
    network = _export(bundle)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            openvino.save_model(network, Path(scratch) / "whole" / "network.xml", compress_to_fp16=False)
            (Path(scratch) / "whole").rename(folder)
    # OpenVINO's own errors are RuntimeErrors. Another replica may have come first: a folder is not renamed over a full one.
    except (OSError, RuntimeError) as error:
        log_event("runtime not cached", folder=folder, because=error)
    return network


def _export(bundle: Bundle) -> openvino.Model:
    side, has_stain = bundle.spec.preprocessing.input_px, bundle.spec.preprocessing.stain is not None
    example = torch.zeros((2, 3, side, side)) if has_stain else torch.zeros((2, side, side, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with torch.no_grad():
        network = _Network(bundle.model, bundle.spec.preprocessing).eval()
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    model = openvino.convert_model(program)
    model.reshape([-1, *example.shape[1:]])
    return model
