"""Whatever runs a network must say what torch says of it, alone and in any batch, or it does not run at all."""

from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from bundles import PROBES, SPEC, network
from gpus import needs_gpu
from images import texture

from historay.data.stain import StainMethod
from historay.data.transforms import measure_preprocessing, to_input
from historay.errors import BundleError, ConfigError
from historay.models.bundle import Bundle, make_probes
from historay.models.inference import probabilities
from historay.models.runtime import TOLERANCES, CudaRuntime, RuntimeName, TorchRuntime, _Network, check_runtime, make_runtime
from historay.models.zoo import build_model

BUNDLE = Bundle(SPEC, network(), "f" * 16, PROBES)
TILES = np.random.default_rng(1).integers(0, 256, (37, 48, 48, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def bundle_of(architecture: str, side: int) -> Bundle:
    torch.manual_seed(2)
    model = build_model(architecture, 3, side).eval()
    preprocessing = SPEC.preprocessing.model_copy(update={"input_px": side})
    spec = SPEC.model_copy(update={"architecture": architecture, "classes": ("a", "b", "c"), "preprocessing": preprocessing})
    tiles = np.random.default_rng(3).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    return Bundle(spec, model, "e" * 16, make_probes(model, tiles, preprocessing))


@pytest.mark.parametrize("name", ["torch", "openvino-fp32", "openvino-bf16", pytest.param("cuda-bf16", marks=needs_gpu)])
def test_a_runtime_gives_torch_s_probabilities_and_features_within_its_tolerance(name: RuntimeName) -> None:
    expected, found = TorchRuntime(BUNDLE).run(TILES), make_runtime(BUNDLE, name, num_threads=2).run(TILES)
    assert np.abs(probabilities(found.logits_BK) - probabilities(expected.logits_BK)).max() <= TOLERANCES[name]
    assert found.features_BF.shape == expected.features_BF.shape
    assert np.abs(found.features_BF - expected.features_BF).max() <= 0.05 * np.abs(expected.features_BF).max()


@pytest.mark.parametrize(("name", "tolerance"), [("openvino-fp32", 0.0), ("openvino-bf16", 1e-6)])
def test_the_same_tile_gets_the_same_answer_in_any_batch(name: RuntimeName, tolerance: float) -> None:
    runtime = make_runtime(BUNDLE, name, num_threads=2)
    together = probabilities(runtime.run(TILES).logits_BK)
    for size in (1, 3, 16):
        parts = [runtime.run(TILES[start : start + size]).logits_BK for start in range(0, len(TILES), size)]
        assert np.abs(probabilities(np.concatenate(parts)) - together).max() <= tolerance


@pytest.mark.parametrize(("architecture", "side"), [("resnet18", 32), ("mobilenet_v3_small", 64), ("convnext_tiny", 32)])
def test_networks_of_the_zoo_can_be_exported(architecture: str, side: int) -> None:
    assert make_runtime(bundle_of(architecture, side), "openvino-fp32").name == "openvino-fp32"


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_a_bundle_that_normalises_stain_runs_as_in_torch(method: StainMethod) -> None:
    tiles = np.stack([texture(seed, 48) for seed in range(16)])
    preprocessing = measure_preprocessing(tiles, method)
    spec, model = SPEC.model_copy(update={"preprocessing": preprocessing}), network()
    bundle = Bundle(spec, model, "c" * 16, make_probes(model, tiles[:4], preprocessing))
    expected = probabilities(TorchRuntime(bundle).run(tiles).logits_BK)
    assert np.abs(probabilities(make_runtime(bundle, "openvino-fp32").run(tiles).logits_BK) - expected).max() < 1e-5


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_stain_is_found_in_fp32_where_the_network_computes_in_bfloat16(method: StainMethod) -> None:
    tiles = np.stack([texture(seed, 48) for seed in range(16)])
    preprocessing = measure_preprocessing(tiles, method)
    spec, model = SPEC.model_copy(update={"preprocessing": preprocessing}), network()
    bundle = Bundle(spec, model, "c" * 16, make_probes(model, tiles[:4], preprocessing))
    input_BCHW = to_input(torch.from_numpy(tiles), preprocessing)
    trunk = _Network(model, preprocessing).eval().to(memory_format=torch.channels_last).trunk
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected_BF = trunk(input_BCHW).flatten(1).float().numpy()
    assert np.abs(CudaRuntime(bundle, device="cpu").run(tiles).features_BF - expected_BF).max() < 1e-4


@pytest.mark.parametrize("architecture", ["p4m_resnet"])
def test_an_equivariant_network_is_folded_into_plain_convolutions(architecture: str) -> None:
    bundle = bundle_of(architecture, 32)
    turned = np.ascontiguousarray(np.rot90(bundle.probes.tiles_BHWC, 1, (1, 2)))
    runtime = make_runtime(bundle, "openvino-fp32")
    assert np.abs(runtime.run(turned).logits_BK - runtime.run(bundle.probes.tiles_BHWC).logits_BK).max() < 1e-4


def test_a_runtime_that_differs_is_refused_with_the_figure_and_the_way_out() -> None:
    torch.manual_seed(9)
    other = Bundle(SPEC, build_model("small_cnn", 2, 48).eval(), "d" * 16, PROBES)
    with pytest.raises(BundleError, match=r"torch on this machine gives a probability that differs by 0\.\d+ .*--runtime"):
        make_runtime(other, "torch")
    whole = Bundle(SPEC, other.model, "d" * 16, make_probes(other.model, PROBES.tiles_BHWC, SPEC.preprocessing))
    with pytest.raises(BundleError, match=r"openvino-fp32 gives a probability that differs"):
        check_runtime(make_runtime(BUNDLE, "openvino-fp32"), whole)


def test_an_export_is_kept_and_read_again_by_its_version(cache: Path) -> None:
    make_runtime(BUNDLE, "openvino-fp32")
    (kept,) = cache.rglob("network.xml")
    assert kept.parent.name.startswith("f" * 16)
    written = kept.stat().st_mtime_ns
    make_runtime(BUNDLE, "openvino-bf16")
    assert kept.stat().st_mtime_ns == written


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert make_runtime(BUNDLE, "openvino-fp32").run(TILES).logits_BK.shape == (37, 2)


def test_a_disk_that_fills_up_while_an_export_is_kept_costs_time_and_nothing_else(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Can't write data to the bin file")  # as OpenVINO says it

    monkeypatch.setattr(openvino, "save_model", full)
    assert make_runtime(BUNDLE, "openvino-fp32").run(TILES).logits_BK.shape == (37, 2)


@pytest.mark.parametrize("ending", ["xml", "bin"])
def test_an_export_that_was_damaged_on_disk_is_made_anew(cache: Path, ending: str) -> None:
    expected = make_runtime(BUNDLE, "openvino-fp32").run(TILES).logits_BK
    (kept,) = cache.rglob(f"network.{ending}")
    size = kept.stat().st_size
    kept.write_bytes(kept.read_bytes()[: size // 2])
    assert np.array_equal(make_runtime(BUNDLE, "openvino-fp32").run(TILES).logits_BK, expected)
    assert kept.stat().st_size > 0.9 * size


def test_of_replicas_that_export_at_once_the_first_keeps_its_export_and_the_others_run_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = openvino.save_model

    def second(*arguments: object, **named: object) -> None:
        monkeypatch.setattr(openvino, "save_model", real)
        make_runtime(BUNDLE, "openvino-fp32")  # another replica, meanwhile
        real(*arguments, **named)

    monkeypatch.setattr(openvino, "save_model", second)
    assert make_runtime(BUNDLE, "openvino-fp32").run(TILES).logits_BK.shape == (37, 2)
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == ["network.bin", "network.xml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match="runtime=cuda-bf16: torch finds no GPU here"):
        make_runtime(BUNDLE, "cuda-bf16")
